"""Byte queues made of pages: the send buffer that is also the retransmission buffer.

A `PageChain` is filled at its tail, in place, by `recvmsg_into`, viewed anywhere by the packets that
are sent, and freed at its head by acknowledgements. All pages come from one `PagePool` with a limit; an
empty chain owns no page.
"""

from __future__ import annotations

from collections import deque

from tunstack.limits import PAGE_SIZE
from tunstack.packet import Buffer

_SHIFT = PAGE_SIZE.bit_length() - 1
_MASK = PAGE_SIZE - 1
assert 1 << _SHIFT == PAGE_SIZE


class PagePool:
    """Pages of `PAGE_SIZE` bytes, at most `limit` bytes of them in use.

    Freed pages are kept for reuse up to `cached` of them: a page is warm in the cache of the processor.
    """

    __slots__ = ("_cached", "_free", "limit", "used")

    def __init__(self, limit: int, cached: int = 256) -> None:
        self.limit = limit
        self.used = 0
        """Bytes of the pages that are out."""
        self._cached = cached
        self._free: list[memoryview] = []

    def allocate(self) -> memoryview | None:
        """A writable page with unspecified content, or None at the limit."""
        if self.used + PAGE_SIZE > self.limit:
            return None
        self.used += PAGE_SIZE
        if self._free:
            return self._free.pop()
        return memoryview(bytearray(PAGE_SIZE))

    def free(self, page: memoryview) -> None:
        """Give `page` back; nobody may view it any more."""
        self.used -= PAGE_SIZE
        if len(self._free) < self._cached:
            self._free.append(page)


class PageChain:
    """A queue of bytes in pages. Offsets count from its head."""

    __slots__ = ("_head", "_pages", "_reserved", "length", "pool")

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self._pages: deque[memoryview] = deque()
        self._head = 0
        """Offset of the first byte in the first page."""
        self._reserved = 0
        """Pages at the tail that hold no committed byte yet."""
        self.length = 0

    def reserve(self, limit: int) -> list[memoryview]:
        """Writable views for up to `limit` bytes at the tail, followed by `commit`.

        Fewer bytes, even none, when the pool is at its limit.
        """
        views: list[memoryview] = []
        used = (self._head + self.length) & _MASK
        if limit > 0 and used and self.length:
            room = self._pages[-1 - self._reserved][used : min(PAGE_SIZE, used + limit)]
            views.append(room)
            limit -= len(room)
        reserved = list(self._pages)[len(self._pages) - self._reserved :] if self._reserved else []
        while limit > 0:
            if reserved:
                page = reserved.pop(0)
            else:
                fresh = self.pool.allocate()
                if fresh is None:
                    break
                page = fresh
                self._pages.append(page)
                self._reserved += 1
            views.append(page if limit >= PAGE_SIZE else page[:limit])
            limit -= PAGE_SIZE
        return views

    def commit(self, count: int) -> None:
        """The first `count` bytes of what `reserve` gave are filled; the rest is returned."""
        self.length += count
        needed = (self._head + self.length + _MASK) >> _SHIFT if self.length else 0
        pages = self._pages
        while len(pages) > needed:
            self.pool.free(pages.pop())
        if not self.length:
            self._head = 0
        self._reserved = 0

    def append(self, data: Buffer) -> int:
        """Copy `data` to the tail; returns how many bytes found room in the pool."""
        copied = 0
        source = memoryview(data)
        for view in self.reserve(len(source)):
            size = len(view)
            view[:] = source[copied : copied + size]
            copied += size
        self.commit(copied)
        return copied

    def views(self, offset: int, count: int) -> list[memoryview]:
        """Views of `count` bytes from `offset` on, all of which must be there."""
        if offset < 0 or count < 0 or offset + count > self.length:
            raise IndexError("outside the chain")
        position = self._head + offset
        index = position >> _SHIFT
        start = position & _MASK
        pages = self._pages
        if start + count <= PAGE_SIZE:
            return [pages[index][start : start + count]] if count else []
        views = [pages[index][start:]]
        count -= PAGE_SIZE - start
        while count >= PAGE_SIZE:
            index += 1
            views.append(pages[index])
            count -= PAGE_SIZE
        if count:
            views.append(pages[index + 1][:count])
        return views

    def release(self, count: int) -> None:
        """Forget the first `count` bytes."""
        if count < 0 or count > self.length:
            raise IndexError("outside the chain")
        self.length -= count
        head = self._head + count
        pages = self._pages
        while head >= PAGE_SIZE:
            self.pool.free(pages.popleft())
            head -= PAGE_SIZE
        if not self.length:
            while pages:
                self.pool.free(pages.popleft())
            head = 0
            self._reserved = 0
        self._head = head

    def clear(self) -> None:
        """Forget everything."""
        self.release(self.length)
