"""Where control sockets are on systems with UNIX sockets, and who may open them.

Each running gateway has one, `PID.sock` in a directory that only its user can enter: `tunstack` in
`$XDG_RUNTIME_DIR`, or where that is not set in `/run/user/UID`, `/run` for root, or `/tmp`, there with the
user's number behind the name. What a process that was killed has left there is removed by the next.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunstack.errors import WrongSystem

if TYPE_CHECKING:
    import trio

BACKLOG = 16


def runtime_directory() -> Path:
    """The directory of the control sockets of this user; it may not be there."""
    if given := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(given) / "tunstack"
    uid = _uid()
    for parent in (f"/run/user/{uid}", "/run"):
        if os.access(parent, os.W_OK | os.X_OK):
            return Path(parent) / "tunstack"
    return Path(f"/tmp/tunstack-{uid}")


def running() -> dict[int, Path]:
    """The control sockets that somebody serves, by the number of the process."""
    found: dict[int, Path] = {}
    for path in numbered(runtime_directory(), "sock"):
        if _is_served(path):
            found[int(path.stem)] = path
    return found


def own_place() -> Path:
    """Where this process's is to be, in a directory that is this user's alone; OSError if it is not."""
    chosen = runtime_directory() / f"{os.getpid()}.sock"
    _prepare(chosen.parent)
    with contextlib.suppress(FileNotFoundError):
        chosen.unlink()  # of one that had our number, and is no more
    return chosen


def listen(path: Path) -> trio.SocketListener:
    """A listener at `path`, for this user alone. OSError."""
    import trio  # a client does without

    return trio.SocketListener(trio.socket.from_stdlib_socket(_bound(path)))


def remove(path: Path) -> None:
    """Take away what a listener has left."""
    with contextlib.suppress(OSError):
        path.unlink()


def connect(path: Path, timeout: float) -> socket.socket:
    """A connection to who listens at `path`, each call of which takes `timeout` seconds at most. OSError."""
    sock = _new_socket()
    try:
        sock.settimeout(timeout)
        deadline = time.monotonic() + timeout
        while True:
            try:
                sock.connect(str(path))
                return sock
            except BlockingIOError:  # too many wait
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
    except BaseException:
        sock.close()
        raise


def _uid() -> int:
    if sys.platform == "win32":
        raise WrongSystem
    return os.getuid()


def _new_socket() -> socket.socket:
    if sys.platform == "win32":
        raise WrongSystem
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def numbered(directory: Path, suffix: str) -> Iterator[Path]:
    """The files of a directory, which may not be there, whose names are the numbers of processes."""
    with contextlib.suppress(OSError):
        for path in sorted(directory.glob(f"*.{suffix}")):
            if path.stem.isascii() and path.stem.isdecimal():
                yield path


def _is_served(path: Path) -> bool:
    with _new_socket() as client:
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
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != _uid() or status.st_mode & 0o077:
        raise OSError(errno.EPERM, "the directory is not this user's alone", str(directory))
    for path in numbered(directory, "sock"):
        if not _is_served(path):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _bound(path: Path) -> socket.socket:
    listener = _new_socket()
    try:
        # No moment in which others could open it: the mode is that of the socket when it is bound.
        os.chmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        os.chmod(path, 0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        error.filename = str(path)
        raise
    return listener
