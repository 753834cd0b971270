"""The terminal that tunstack shares with the command that it runs.

Both are in one session, and at first in one process group, so that Ctrl-C and Ctrl-Z reach the command
from the kernel. tunstack does not act on them: it stops when the command has stopped, so that the shell gets
its terminal back after the command has tidied it, and it hands the terminal on when it is continued.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios

assert sys.platform != "win32", "this is for Linux"


class Terminal:
    """The controlling terminal, or nothing if there is none."""

    def __init__(self) -> None:
        self._own_group = os.getpgrp()
        self._attributes: list[int | list[bytes | int]] | None = None
        try:
            self._fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        self._was_foreground = self.is_foreground()
        if self._was_foreground:
            with contextlib.suppress(termios.error):
                self._attributes = termios.tcgetattr(self._fd)

    def is_foreground(self) -> bool:
        """Whether the terminal's keys signal this process's group now."""
        return self._fd >= 0 and self._group() == self._own_group

    def stop(self, pid: int) -> bool:
        """Stop this process as the command, `pid`, has stopped; returns when somebody continues it.

        Without a terminal nobody controls jobs: nothing happens, and the answer is false.
        """
        if self._fd < 0:
            return False
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        try:
            # SIGTSTP and not SIGSTOP: the kernel discards it where no shell is left to continue us.
            signal.raise_signal(signal.SIGTSTP)
        finally:
            signal.signal(signal.SIGTSTP, handler)
        # What we were given is the command's, if it leads a group of its own (a shell does).
        with contextlib.suppress(ProcessLookupError):
            group = os.getpgid(pid)
            if group != self._own_group and self.is_foreground():
                self._give_to(group)
        return True

    def restore(self, killed: bool) -> None:
        """Take the terminal back after the command; also its modes if it was killed and could not tidy up."""
        if not self._was_foreground:
            return
        if not self.is_foreground():
            self._give_to(self._own_group)
        if killed and self._attributes is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._attributes)

    def close(self) -> None:
        """Give up the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _group(self) -> int:
        try:
            return os.tcgetpgrp(self._fd)
        except OSError:
            return -1

    def _give_to(self, group: int) -> None:
        # Who is in the background and asks for this is sent SIGTTOU, unless that is ignored.
        handler = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            with contextlib.suppress(OSError):  # the group has ended, or the terminal was hung up
                os.tcsetpgrp(self._fd, group)
        finally:
            signal.signal(signal.SIGTTOU, handler)
