"""The control socket: where it is, who may open it, and how it goes.

Each running gateway has one, `PID.sock` in a directory that only its user can enter: `tunstack` in
`$XDG_RUNTIME_DIR`, or where that is not set in `/run/user/UID`, `/run` for root, or `/tmp`, there with the
user's number behind the name. What a process that was killed has left there is removed by the next.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio

from tunstack.api.acceptor import Acceptor
from tunstack.background import beside
from tunstack.gateway.gateway import Gateway

log = logging.getLogger("tunstack")

BACKLOG = 16


def runtime_directory() -> Path:
    """The directory of the control sockets of this user; it may not be there."""
    if given := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(given) / "tunstack"
    uid = os.getuid()
    for parent in (f"/run/user/{uid}", "/run"):
        if os.access(parent, os.W_OK | os.X_OK):
            return Path(parent) / "tunstack"
    return Path(f"/tmp/tunstack-{uid}")


def running() -> dict[int, Path]:
    """The control sockets that somebody serves, by the number of the process."""
    found: dict[int, Path] = {}
    for path in _sockets(runtime_directory()):
        if _is_served(path):
            found[int(path.stem)] = path
    return found


def _sockets(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for path in sorted(directory.glob("*.sock")):
            if path.stem.isascii() and path.stem.isdecimal():
                yield path


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except BlockingIOError:
            return True  # more wait than it accepts at once
        except OSError:
            return False
    return True


def _prepare(directory: Path) -> None:
    """Make the directory, and see that it is ours alone; OSError if it is not."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise OSError(errno.EPERM, "the directory is not this user's alone", str(directory))
    for path in _sockets(directory):
        if not _is_served(path):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # No moment in which others could open it: the mode is that of the socket when it is bound.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        os.chmod(path, 0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        error.filename = str(path)
        raise
    return listener


@contextlib.asynccontextmanager
async def control_socket(
    gateway: Gateway, path: str | os.PathLike[str] | None = None
) -> AsyncIterator[Path | None]:
    """Serve the API of `gateway` on a UNIX socket as long as the block; gives its path.

    Without `path` it is `runtime_directory()/PID.sock`, and there is none, which is not an error (None), if
    it cannot be made there.

    Raises:
        OSError: there is something at `path`, or it cannot be made.
    """
    try:
        if path is None:
            chosen = runtime_directory() / f"{os.getpid()}.sock"
            _prepare(chosen.parent)
            with contextlib.suppress(FileNotFoundError):
                chosen.unlink()  # of one that had our number, and is no more
        else:
            chosen = Path(path)
        listener = _listen(chosen)
    except OSError as error:
        if path is not None:
            raise
        log.info("no control socket: %s: %s", error.filename, error.strerror)
        yield None
        return
    log.info("control socket %s", chosen)
    nursery: trio.Nursery

    def make_app() -> object:
        from tunstack.api.app import make_app

        return make_app(gateway, nursery)

    served = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    try:
        async with beside(lambda: Acceptor(make_app).serve(served)) as nursery:
            yield chosen
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            chosen.unlink()
