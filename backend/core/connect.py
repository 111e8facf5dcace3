"""Opening a connection to PostgreSQL without blocking the event loop."""

import asyncio
import socket

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ, connection, make_dsn, parse_dsn, register_type

from backend.core.types import TIMESTAMPTZ

DEFAULTS = {
    "application_name": "task-service",
    "client_encoding": "utf8",
    "connect_timeout": "10",  # for migrations; libpq ignores it in asynchronous mode
    "keepalives_idle": "30",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


class ConnectionLost(Exception):
    """A connection could not be opened, or it broke; the text is the reason in one line."""

    def __init__(self, cause: Exception | str) -> None:
        super().__init__(" ".join(str(cause).split()))


def connection_string(url: str) -> str:
    """`url` as a libpq connection string, with `DEFAULTS` for the options it leaves out."""
    options = parse_dsn(url)
    return make_dsn(url, **{name: value for name, value in DEFAULTS.items() if name not in options})


def split_hosts(url: str) -> list[dict[str, str]]:
    """The connection parameters of each host in `url`, in order (PostgreSQL docs, "Specifying Multiple Hosts")."""
    options = parse_dsn(connection_string(url))
    lists = {name: options[name].split(",") for name in ("host", "hostaddr", "port") if name in options}
    hosts = range(max(map(len, lists.values()), default=1))
    return [{**options, **{name: values[i % len(values)] for name, values in lists.items()}} for i in hosts]


def require_utf8(raw: connection) -> None:
    """Raises psycopg2.OperationalError if the database's encoding is not UTF8: it could not store every title."""
    if (encoding := raw.get_parameter_status("server_encoding")) != "UTF8":
        raise psycopg2.OperationalError(f"the database's encoding is {encoding}, but it must be UTF8")


async def connect(hosts: list[dict[str, str]], deadline: float) -> connection:
    """Connect to the first of `hosts` that accepts a connection before `deadline`, in the event loop's time.

    That host is tried first the next time. Raises ConnectionLost if all fail, TimeoutError at the deadline.
    """
    loop = asyncio.get_running_loop()
    targets = [(host, host) for host in hosts]
    while True:
        host, parameters = targets.pop(0)
        try:
            # An equal share of the time left: libpq would wait forever for an address that does not answer.
            async with asyncio.timeout_at(loop.time() + (deadline - loop.time()) / (len(targets) + 1)):
                name = parameters.get("host", "")
                if name and name[0] not in "/@" and not parameters.get("hostaddr"):
                    # libpq's DNS lookup would block the event loop.
                    found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
                    addresses = dict.fromkeys(str(address[0]) for *_, address in found)
                    targets[:0] = [(host, {**parameters, "hostaddr": address}) for address in addresses]
                    continue
                raw = await _connect(parameters)
        except TimeoutError:
            if not targets:
                raise
        except (psycopg2.Error, OSError) as error:
            if not targets:
                raise ConnectionLost(error) from error
        else:
            hosts.remove(host)
            hosts.insert(0, host)
            return raw


async def _connect(parameters: dict[str, str]) -> connection:
    loop = asyncio.get_running_loop()
    raw = psycopg2.connect(make_dsn(**parameters), async_=True)
    try:
        while (state := raw.poll()) != POLL_OK:
            # The file descriptor can change while connecting.
            file, ready = raw.fileno(), asyncio.Event()
            (loop.add_reader if state == POLL_READ else loop.add_writer)(file, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(file)
                loop.remove_writer(file)
        register_type(TIMESTAMPTZ, raw)
        require_utf8(raw)
    except BaseException:
        raw.close()
        raise
    return raw
