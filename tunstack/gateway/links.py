"""Where virtual machines plug in: the URLs of links, their sockets, and who may be connected when.

    qemu+unix:///PATH      a UNIX socket           qemu+tcp://HOST:PORT   a TCP socket
    qemu+fd://N            an inherited socket     ?connect=yes           dial it in place of listening

One virtual machine is connected at a time: while it is, another one is turned away. When it goes the next may
come; connections and whatever else the gateway knows stay. A socket file that nobody listens at any more is
replaced; it is removed in the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import trio

from tunstack.gateway.gateway import Gateway

SCHEMES = ("qemu+unix", "qemu+tcp", "qemu+fd")
RETRY = 1.0
"""Seconds between attempts to dial a link that nobody answers."""
BACKLOG = 8

Tell = Callable[[str], object]
"""Takes one line about what happens at a link."""


class LinkError(ValueError):
    """A link cannot be what its URL says; the message is one sentence."""


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """What a URL says. `address` is a path, a host and port, or a descriptor."""

    url: str
    kind: Literal["unix", "tcp", "fd"]
    address: str | tuple[str, int] | int
    connect: bool

    @classmethod
    def parse(cls, url: str) -> Link:
        """The link of `url`; `LinkError` if there can be none."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise LinkError(f"'{url}' is no URL: {error}") from None
        if parts.scheme not in SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise LinkError(f"'{url}' is no link: it begins with one of {known}")
        words = dict(parse_qsl(parts.query, keep_blank_values=True))
        connect = words.pop("connect", "no")
        if words or connect not in ("yes", "no") or parts.fragment:
            raise LinkError(f"'{url}': the only word behind the address is connect=yes or connect=no")
        kind = parts.scheme.removeprefix("qemu+")
        if kind == "unix":
            return cls(url, "unix", _path(url, parts.netloc, parts.path), connect == "yes")
        if parts.path not in ("", "/"):
            raise LinkError(f"'{url}': nothing may stand behind the address")
        if kind == "fd":
            if not parts.netloc.isdecimal() or connect == "yes":
                raise LinkError(f"'{url}' is not the number of a descriptor, as in qemu+fd://3")
            return cls(url, "fd", int(parts.netloc), False)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or not port:
            raise LinkError(f"'{url}' has no host and port, as in qemu+tcp://127.0.0.1:5555")
        return cls(url, "tcp", (host, port), connect == "yes")


def _path(url: str, host: str, path: str) -> str:
    path = unquote(path)
    if host or not path.startswith("/") or path == "/" or "\0" in path:
        raise LinkError(f"'{url}' has no absolute path, as in qemu+unix:///run/vm.sock")
    if len(os.fsencode(path)) > 107:
        raise LinkError(f"'{url}': the path of a socket has at most 107 bytes")
    return path


async def serve(link: Link, gateway: Gateway, *, once: bool, tell: Tell) -> None:
    """Let virtual machines come and go at `link`; with `once` until the first has gone.

    Raises:
        LinkError: somebody else listens there, or the descriptor is no stream socket.
        OSError: the socket cannot be made.
    """
    if link.connect:
        await _serve_dialled(link, gateway, once, tell)
        return
    with _listener(link) as sock:
        tell(f"waiting at {link.url}")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            _attach(gateway, sock.dup(), link, tell)
            await gateway.wait_detached()
            return
        await _serve_listening(link, gateway, once, tell, sock)


async def _serve_listening(link: Link, gateway: Gateway, once: bool, tell: Tell, sock: socket.socket) -> None:
    async with trio.open_nursery() as nursery:

        async def until_gone() -> None:
            await gateway.wait_detached()
            tell(f"the virtual machine at {link.url} has gone")
            if once:
                nursery.cancel_scope.cancel()

        while True:
            await trio.lowlevel.wait_readable(sock)
            with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                client, _ = sock.accept()
                if gateway.has_device:
                    client.close()
                    tell(f"another virtual machine was turned away at {link.url}: one is connected")
                else:
                    _attach(gateway, client, link, tell)
                    nursery.start_soon(until_gone)


async def _serve_dialled(link: Link, gateway: Gateway, once: bool, tell: Tell) -> None:
    is_told = False
    while True:
        try:
            client = await _dial(link)
        except OSError as error:
            if once:
                raise
            if not is_told:
                tell(f"nobody answers at {link.url} ({error.strerror}); trying again each second")
                is_told = True
            await trio.sleep(RETRY)
            continue
        is_told = False
        _attach(gateway, client, link, tell)
        await gateway.wait_detached()
        tell(f"the virtual machine at {link.url} has gone")
        if once:
            return
        await trio.sleep(RETRY)


def _attach(gateway: Gateway, client: socket.socket, link: Link, tell: Tell) -> None:
    if link.kind == "tcp":
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    gateway.attach_stream(client)
    tell(f"a virtual machine is connected at {link.url}")


async def _dial(link: Link) -> socket.socket:
    if link.kind == "tcp":
        assert isinstance(link.address, tuple)
        stream = await trio.open_tcp_stream(*link.address)
        return socket.socket(fileno=stream.socket.detach())
    client = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await client.connect(link.address)
    except BaseException:
        client.close()
        raise
    return socket.socket(fileno=client.detach())


@contextlib.contextmanager
def _listener(link: Link) -> Iterator[socket.socket]:
    """The socket to accept from, or an inherited one that is connected already; non-blocking."""
    with contextlib.ExitStack() as stack:
        if isinstance(link.address, int):
            sock = stack.enter_context(_inherited(link, link.address))
        elif isinstance(link.address, tuple):
            sock = stack.enter_context(
                socket.create_server(link.address, backlog=BACKLOG, family=_family(link))
            )
        else:
            sock = stack.enter_context(_bind(link, link.address))
            stack.callback(_remove, link.address, os.stat(link.address).st_ino)
        sock.setblocking(False)
        yield sock


def _family(link: Link) -> socket.AddressFamily:
    assert isinstance(link.address, tuple)
    return socket.AF_INET6 if ":" in link.address[0] else socket.AF_INET


def _inherited(link: Link, fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise LinkError(f"'{link.url}': {error.strerror or error}") from None
    if sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise LinkError(f"'{link.url}' is no stream socket")
    return sock


def _bind(link: Link, path: str) -> socket.socket:
    """A socket that listens at `path`, for this user alone; one that nobody listens at is replaced."""
    _remove_stale(link, path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.umask(mask)
    return sock


def _remove_stale(link: Link, path: str) -> None:
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise LinkError(f"'{link.url}': there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code == errno.ECONNREFUSED:
        os.unlink(path)
    elif code in (0, errno.EAGAIN, errno.EINPROGRESS):
        raise LinkError(f"'{link.url}': somebody listens there already")
    elif code != errno.ENOENT:
        raise OSError(code, os.strerror(code), path)


def _remove(path: str, inode: int) -> None:
    """Remove our socket file, if it is still ours."""
    with contextlib.suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)
