"""A timer behind a descriptor, for what cannot wait for those of the trio loop, which count milliseconds."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time

import trio

from tunstack.errors import WrongSystem

_TFD_TIMER_ABSTIME = 1
_NANOSECONDS = 10**9
LONGEST_LEAD = 0.001
"""Seconds; who is later has other reasons than the way out of sleep."""


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class Alarm:
    """A timer of Linux (timerfd) that polls readable at a time of trio's clock. A `Token` of the poller.

    Through ctypes: `os` has it from Python 3.13 on only.

    Attributes:
        lead: seconds by which it should be set before what must not be late: as late as it was lately.
    """

    __slots__ = ("_deadline", "_fd", "_libc", "_offset", "_setting", "lead")

    def __init__(self) -> None:
        """OSError if the kernel has none. Within trio, on its real clock."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = _new_timer(self._libc)
        self._setting = _Itimerspec()
        self._deadline = float("inf")
        self.lead = 0.0
        self._offset = time.monotonic() - trio.current_time()

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def on_ready(self, ready: int, now: float) -> None:
        """See `Token`: it has expired, or was moved since."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
            lateness = now - self._deadline
            if 0 <= lateness < LONGEST_LEAD:
                # Sooner more than less: what is early only waits.
                self.lead += (lateness - self.lead) / (4 if lateness > self.lead else 32)
        self._deadline = float("inf")

    def set(self, deadline: float) -> None:
        """Be readable from `deadline` on (trio's clock; infinity: never)."""
        if deadline == self._deadline:
            return
        self._deadline = deadline
        value = self._setting.it_value
        if deadline == float("inf"):
            value.tv_sec = value.tv_nsec = 0
        else:
            # Rounded up; and 0, the past, would turn it off.
            nanoseconds = max(1, int((deadline + self._offset) * _NANOSECONDS) + 1)
            value.tv_sec, value.tv_nsec = divmod(nanoseconds, _NANOSECONDS)
        self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(self._setting), None)

    def close(self) -> None:
        """Close the descriptor, which the poller must have forgotten."""
        os.close(self._fd)


def _new_timer(libc: ctypes.CDLL) -> int:
    if sys.platform != "linux":
        raise WrongSystem
    fd = int(libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def make_alarm() -> Alarm | None:
    """An alarm, or None where there can be none: no timerfd, or a clock that is not the real one."""
    if sys.platform != "linux" or type(trio.lowlevel.current_clock()).__name__ != "SystemClock":
        return None
    try:
        return Alarm()
    except OSError:
        return None
