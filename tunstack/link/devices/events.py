"""Events of the system that reset themselves, and a task of trio that waits for one without losing a wake.

Theory of operation. trio cannot wait for an event of Windows but in a thread, and its own way to do that
(`WaitForSingleObject`) leaves the thread behind when it is cancelled: the leftover would swallow the next
signal of an event that resets itself, or wait for a handle that means something else by then. So a waiter has
an event of its own to stop its thread with. Whoever is cancelled sets that and waits for the thread; if the
thread had got the signal all the same, the signal is given back. The thread ends before the task goes on, in
every case.

On Linux an event is an eventfd, for tests and for stand-ins of Wintun; the waiter is the same.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import trio

from tunstack.errors import WrongSystem
from tunstack.link.devices.linux import new_eventfd, read_eventfd, write_eventfd

_FOREVER = 0xFFFFFFFF
_WAIT_OBJECT_0, _WAIT_TIMEOUT = 0, 0x102


class Events(Protocol):
    """What a system has of events that reset themselves; an event is a number."""

    def make(self) -> int: ...

    def set(self, event: int) -> None: ...

    def reset(self, event: int) -> None: ...

    def close(self, event: int) -> None: ...

    def wait(self, events: Sequence[int], timeout: float | None) -> int | None:
        """The place of the first that was set, which it is not any more; None after `timeout` seconds."""
        ...


class EventFds:
    """Those of Linux."""

    def make(self) -> int:
        """A new event, not set."""
        return new_eventfd()

    def set(self, event: int) -> None:
        """Wake who waits for it, now or next."""
        write_eventfd(event, 1)

    def reset(self, event: int) -> None:
        """It is not set any more."""
        with contextlib.suppress(BlockingIOError):
            read_eventfd(event)

    def close(self, event: int) -> None:
        """It is gone."""
        os.close(event)

    def wait(self, events: Sequence[int], timeout: float | None) -> int | None:
        """See `Events`."""
        if sys.platform == "win32":
            raise WrongSystem
        poll = select.poll()
        for event in events:
            poll.register(event, select.POLLIN)
        while ready := dict(poll.poll(None if timeout is None else timeout * 1000)):
            for place, event in enumerate(events):
                if event in ready:
                    with contextlib.suppress(BlockingIOError):  # somebody else was faster
                        read_eventfd(event)
                        return place
        return None


if sys.platform == "win32":

    class WindowsEvents:
        """Those of Windows."""

        def __init__(self) -> None:
            import cffi

            ffi: Any = cffi.FFI()
            ffi.cdef("""
                void *__stdcall CreateEventW(void *, int32_t manual, int32_t initial, const wchar_t *name);
                int32_t __stdcall SetEvent(void *);
                int32_t __stdcall ResetEvent(void *);
                int32_t __stdcall CloseHandle(void *);
                uint32_t __stdcall WaitForMultipleObjects(uint32_t, void **, int32_t all, uint32_t ms);
            """)
            self._ffi = ffi
            self._kernel = ffi.dlopen("kernel32.dll")

        def make(self) -> int:
            """A new event, not set; OSError."""
            handle = self._kernel.CreateEventW(self._ffi.NULL, 0, 0, self._ffi.NULL)
            if not handle:
                raise OSError(self._ffi.getwinerror()[1])
            return int(self._ffi.cast("intptr_t", handle))

        def set(self, event: int) -> None:
            """Wake who waits for it, now or next."""
            self._kernel.SetEvent(self._ffi.cast("void *", event))

        def reset(self, event: int) -> None:
            """It is not set any more."""
            self._kernel.ResetEvent(self._ffi.cast("void *", event))

        def close(self, event: int) -> None:
            """It is gone."""
            self._kernel.CloseHandle(self._ffi.cast("void *", event))

        def wait(self, events: Sequence[int], timeout: float | None) -> int | None:
            """See `Events`."""
            handles = self._ffi.new("void *[]", [self._ffi.cast("void *", event) for event in events])
            patience = _FOREVER if timeout is None else int(timeout * 1000)
            place = int(self._kernel.WaitForMultipleObjects(len(events), handles, 0, patience))
            if place == _WAIT_TIMEOUT:
                return None
            if not _WAIT_OBJECT_0 <= place < len(events):
                raise OSError(f"the wait for an event has failed: {self._ffi.getwinerror()[1]}")
            return place

    def system_events() -> Events:
        """Those of this system."""
        return WindowsEvents()

else:

    def system_events() -> Events:
        """Those of this system."""
        return EventFds()


class Waiter:
    """Waits for `event`, which stays its owner's. One task at a time."""

    def __init__(self, events: Events, event: int) -> None:
        self._events = events
        self._event = event
        self._stop = events.make()

    async def wait(self) -> None:
        """Return when the event was set, which it is not any more then; who is cancelled leaves it set."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._events.wait((self._event,), 0) is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()
        cancellation: list[trio.lowlevel.RaiseCancelT] = []

        def deliver(result: Any) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(trio.lowlevel.reschedule, task, result)

        def abort(raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            cancellation.append(raise_cancel)
            self._events.set(self._stop)
            return trio.lowlevel.Abort.FAILED

        trio.lowlevel.start_thread_soon(lambda: self._events.wait((self._event, self._stop), None), deliver)
        place = await trio.lowlevel.wait_task_rescheduled(abort)
        if cancellation:
            if place == 0:  # it came while we were being cancelled: whoever waits next gets it
                self._events.set(self._event)
            self._events.reset(self._stop)
            cancellation[0]()

    def close(self) -> None:
        """Nobody waits any more."""
        stop, self._stop = self._stop, -1
        if stop >= 0:
            self._events.close(stop)
