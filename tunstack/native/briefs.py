"""Doors and brief flows of the fast path, as Python sees them; the theory is in `csrc/fast_brief.h`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunstack.native.fastpath import FastPath, ffi, lib


class Briefs:
    """The brief flows of one `FastPath`.

    A key is that of a connection: remote address, local address, remote port, local port.

    Attributes:
        c: the `struct ts_briefs`.
    """

    __slots__ = ("_fast", "c")

    def __init__(self, fast: FastPath) -> None:
        self._fast = fast
        self.c = fast.c.briefs

    def set_secret(self, secret: bytes) -> None:
        """The secret of a `tunstack.tcp.isn.SequenceSource`."""
        lib.ts_brief_set_secret(self._fast.c, secret, len(secret))

    def hash(self, which: int, key: bytes) -> int:
        """What is behind an ISN (0) or a timestamp offset (1)."""
        value: int = lib.ts_brief_hash(self._fast.c, which, *_parts(key))
        return value

    def new_door(self) -> Any:
        """A `struct ts_door` with everything 0, to be filled in. MemoryError."""
        door = lib.ts_door_new()
        if not door:
            raise MemoryError
        return door

    def open(self, door: Any) -> None:
        """Let the guest through `door`, or free it, if it cannot be."""
        lib.ts_door_open(self._fast.c, door)

    def has_door(self, key: bytes) -> bool:
        """Whether there is a door for a connection of `key`."""
        return bool(lib.ts_door_find(self._fast.c, *_parts(key)))

    def doors(self) -> list[Any]:
        """All of them."""
        return [door for door in self.c.doors if door] if self.c.door_count else []

    def close(self, door: Any) -> None:
        """Forget `door`; what has come through it stays."""
        lib.ts_door_close(self._fast.c, door)

    def claim(self, key: bytes, by: int) -> None:
        """Python has a connection of `key` (1), or has it no longer (-1)."""
        lib.ts_brief_claim(self._fast.c, *_parts(key), by)

    def find(self, key: bytes) -> Any | None:
        """The brief flow of `key`, or None."""
        if not self.c.count:
            return None
        family, addresses, ports = _parts(key)
        flow = lib.ts_fast_find(self._fast.c, addresses, family, ports)
        return flow if flow and flow.is_brief else None

    def flows(self) -> Iterator[Any]:
        """All brief flows, the oldest first; they may be removed on the way."""
        brief = self.c.oldest
        while brief:
            newer = brief.newer
            yield ffi.addressof(brief.flow)
            brief = newer


def brief_of(flow: Any) -> Any:
    """The `struct ts_brief` of a brief flow."""
    return ffi.cast("struct ts_brief *", flow)


def _parts(key: bytes) -> tuple[int, bytes, bytes]:
    return 4 if len(key) == 12 else 6, key[:-4], key[-4:]
