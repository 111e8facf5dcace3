"""HTTP over a socket whose bytes are sent unchanged."""

import socket
import time
from contextlib import closing, suppress
from http.client import HTTPResponse
from typing import Self
from urllib.parse import urlsplit

import httpx

UPGRADE = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
HEAD_LIMIT = 64 * 1024


class Raw:
    """A connection that sends bytes unchanged."""

    def __init__(self, base_url: str, receive_buffer: int | None = None, segment: int | None = None) -> None:
        address = urlsplit(base_url)
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if segment:
            # The send buffer of the server is a multiple of it.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        self.socket.settimeout(45)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.socket.connect((address.hostname, address.port))
        except OSError:
            self.socket.close()
            raise

    def send(self, *segments: bytes) -> Self:
        """Send each part in its own segment."""
        for segment in segments:
            self.socket.sendall(segment)
            if len(segments) > 1:
                time.sleep(0.01)  # it cannot be observed that the server has read a segment
        return self

    def response(self, method: str = "GET") -> httpx.Response:
        answer = HTTPResponse(self.socket, method=method)
        answer.begin()
        with closing(answer):
            return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())

    def rest(self) -> bytes:
        """All bytes received until the server closes the connection."""
        received = b""
        with suppress(ConnectionError):
            while data := self.socket.recv(65536):
                received += data
        return received

    def close(self) -> None:
        self.socket.close()


def request(method: str, path: str, headers: str = "", body: bytes = b"", *, chunked: bool = False) -> bytes:
    """The bytes of a request with a JSON body."""
    framing = ""
    if chunked:
        framing = "Transfer-Encoding: chunked\r\n"
        middle = len(body) // 2
        parts = [part for part in (body[:middle], body[middle:]) if part]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    elif body:
        framing = f"Content-Length: {len(body)}\r\n"
    head = f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n{headers}{framing}\r\n"
    return head.encode() + body


def segments(data: bytes, how: str) -> list[bytes]:
    head, separator, body = data.partition(b"\r\n\r\n")
    if how == "one segment":
        return [data]
    if how == "head and body":
        return [head + separator, body]
    return [data[i : i + 40] for i in range(0, len(data), 40)]
