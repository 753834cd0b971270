"""System calls that Linux has and other systems lack, under one name everywhere.

Elsewhere each is an error. So the modules above are read, checked and imported on every system alike.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from tunstack.errors import WrongSystem
from tunstack.packet import Buffer

if sys.platform == "linux":
    import fcntl

    OPEN_FLAGS = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
    """How a device is opened."""
    ioctl = fcntl.ioctl
    writev = os.writev
    read_eventfd = os.eventfd_read
    write_eventfd = os.eventfd_write

    def unblock(fd: int) -> None:
        """Let nothing wait for `fd`."""
        os.set_blocking(fd, False)

    def new_eventfd() -> int:
        """One that counts 0, non-blocking."""
        return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

else:
    OPEN_FLAGS = 0

    def ioctl(fd: Any, request: int, argument: Any = 0) -> Any:
        """There is none."""
        raise WrongSystem

    def writev(fd: int, buffers: Sequence[Buffer]) -> int:
        """There is none."""
        raise WrongSystem

    def unblock(fd: int) -> None:
        """There is none."""
        raise WrongSystem

    def read_eventfd(fd: int) -> int:
        """There is none."""
        raise WrongSystem

    def write_eventfd(fd: int, value: int) -> None:
        """There is none."""
        raise WrongSystem

    def new_eventfd() -> int:
        """There is none."""
        raise WrongSystem
