"""A network between the servers and the database: a TCP proxy, in a process of its own, that holds every byte back."""

import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from queue import SimpleQueue

import psycopg2
from sqlalchemy import make_url


@contextmanager
def delayed(url: str, milliseconds: float) -> Iterator[str]:
    """A URL of the database at `url` to which a round trip takes `milliseconds` longer."""
    with closing(psycopg2.connect(url)) as connection:
        host, port = connection.info.host, connection.info.port
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = make_url(url).difference_update_query(["host", "port"])
        near = near.set(host="127.0.0.1", port=listening.getsockname()[1])
        arguments = (listening, host, port, milliseconds / 2000)
        proxy = multiprocessing.get_context("fork").Process(target=_serve, args=arguments, daemon=True)
        proxy.start()
        try:
            yield near.render_as_string(hide_password=False)
        finally:
            proxy.terminate()
            proxy.join()


def round_trip_ms(url: str) -> float:
    """What the shortest statement takes, as measured: the best of fifty."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        took = []
        for _ in range(50):
            started = time.perf_counter()
            cursor.execute("SELECT 1")
            took.append(time.perf_counter() - started)
    return min(took) * 1000


def _serve(listening: socket.socket, host: str, port: int, seconds: float) -> None:
    while True:
        near, _ = listening.accept()
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if host.startswith("/"):
            far = socket.socket(socket.AF_UNIX)
            far.connect(f"{host}/.s.PGSQL.{port}")
        else:
            far = socket.create_connection((host, port))
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, target in ((near, far), (far, near)):
            held: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
            threading.Thread(target=_take, args=(source, held, seconds), daemon=True).start()
            threading.Thread(target=_give, args=(target, held), daemon=True).start()


def _take(source: socket.socket, held: "SimpleQueue[tuple[float, bytes]]", seconds: float) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            held.put((time.monotonic() + seconds, data))
    held.put((0, b""))


def _give(target: socket.socket, held: "SimpleQueue[tuple[float, bytes]]") -> None:
    # A thread's sleep is exact to some ten microseconds, the timers of an event loop to a millisecond.
    with target, suppress(OSError):
        while (item := held.get())[1]:
            time.sleep(max(0.0, item[0] - time.monotonic()))
            target.sendall(item[1])
        target.shutdown(socket.SHUT_RDWR)
