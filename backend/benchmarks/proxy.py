"""A TCP proxy between the servers and the database, in its own process: it adds latency and counts round trips."""

import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from queue import SimpleQueue

import psycopg2
from sqlalchemy import make_url


@dataclass(frozen=True)
class Proxy:
    """The proxied database."""

    url: str
    _trips: "Synchronized[int]"

    def trips(self) -> int:
        """The number of round trips so far: how often a client sent data after it had received some."""
        return self._trips.value


@contextmanager
def proxied(url: str, milliseconds: float = 0) -> Iterator[Proxy]:
    """A proxy for the database at `url`; each round trip through it takes `milliseconds` longer."""
    with closing(psycopg2.connect(url)) as connection:
        host, port = connection.info.host, connection.info.port
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = make_url(url).difference_update_query(["host", "port"])
        near = near.set(host="127.0.0.1", port=listening.getsockname()[1])
        fork = multiprocessing.get_context("fork")
        trips = fork.Value("q")
        arguments = (listening, host, port, milliseconds / 2000, trips)
        process = fork.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        try:
            yield Proxy(near.render_as_string(hide_password=False), trips)
        finally:
            process.terminate()
            process.join()


def round_trip_ms(url: str) -> float:
    """How long the shortest statement takes: the best of fifty."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        took = []
        for _ in range(50):
            started = time.perf_counter()
            cursor.execute("SELECT 1")
            took.append(time.perf_counter() - started)
    return min(took) * 1000


def _serve(listening: socket.socket, host: str, port: int, seconds: float, trips: "Synchronized[int]") -> None:
    while True:
        near, _ = listening.accept()
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if host.startswith("/"):
            far = socket.socket(socket.AF_UNIX)
            far.connect(f"{host}/.s.PGSQL.{port}")
        else:
            far = socket.create_connection((host, port))
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answered = threading.Event()
        answered.set()
        for source, target in ((near, far), (far, near)):
            buffered: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
            counter = trips if source is near else None
            threading.Thread(target=_read, args=(source, buffered, seconds, answered, counter), daemon=True).start()
            threading.Thread(target=_write, args=(target, buffered), daemon=True).start()


def _read(
    source: socket.socket,
    buffered: "SimpleQueue[tuple[float, bytes]]",
    seconds: float,
    answered: threading.Event,
    trips: "Synchronized[int] | None",
) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            if trips is None:
                answered.set()
            elif answered.is_set():
                answered.clear()
                with trips.get_lock():
                    trips.value += 1
            buffered.put((time.monotonic() + seconds, data))
    buffered.put((0, b""))


def _write(target: socket.socket, buffered: "SimpleQueue[tuple[float, bytes]]") -> None:
    # A thread sleeps with a precision of about ten microseconds, an event loop's timer with one of a millisecond.
    with target, suppress(OSError):
        while (item := buffered.get())[1]:
            time.sleep(max(0.0, item[0] - time.monotonic()))
            target.sendall(item[1])
        target.shutdown(socket.SHUT_RDWR)
