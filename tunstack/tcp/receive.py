"""What has arrived and was not consumed: the in-order queue and the out-of-order blocks.

Theory of operation. In-order payload is first only *borrowed* from the frame buffer, because in the common
case the reader (a host socket) takes all of it at once and nothing is ever copied. What is left when the
batch ends is copied into pages by `settle`. Out-of-order payload is copied at once and kept as disjoint
blocks, positioned by their distance from the first byte of the stream; blocks that touch are joined, so their
number counts gaps. Memory is bounded by the window that was advertised, by the number of blocks, and by a
`ReceiveAccount` that all connections of a stack share.
"""

from __future__ import annotations

from bisect import bisect_right

from tunstack.packet import Buffer
from tunstack.tcp.pages import PageChain, PagePool


class ReceiveAccount:
    """Bytes held for readers by all connections together, and their limit."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def free(self) -> int:
        """Bytes left, never negative."""
        return max(0, self.limit - self.used)


class ReceiveQueue:
    """In-order bytes for the reader: first the kept, then the borrowed."""

    __slots__ = ("_account", "_borrowed", "_kept", "size")

    def __init__(self, account: ReceiveAccount, pool: PagePool) -> None:
        self._account = account
        self._kept = PageChain(pool)
        self._borrowed: list[memoryview] = []
        self.size = 0

    def append(self, view: memoryview) -> None:
        """Queue `view`, borrowed until `settle`."""
        self._borrowed.append(view)
        self.size += len(view)
        self._account.used += len(view)

    def peek(self) -> list[memoryview]:
        """All queued bytes as views, in order."""
        kept = self._kept
        if kept.length:
            return kept.views(0, kept.length) + self._borrowed
        return self._borrowed

    def consume(self, count: int) -> None:
        """Forget the first `count` bytes."""
        if count < 0 or count > self.size:
            raise IndexError("more than is queued")
        self.size -= count
        self._account.used -= count
        if not self.size:
            self._kept.clear()
            self._borrowed = []
            return
        kept = min(count, self._kept.length)
        if kept:
            self._kept.release(kept)
            count -= kept
        borrowed = self._borrowed
        done = 0
        while count:
            size = len(borrowed[done])
            if size > count:
                borrowed[done] = borrowed[done][count:]
                break
            count -= size
            done += 1
        if done:
            self._borrowed = borrowed[done:]

    def hand_over(self) -> None:
        """Forget all bytes, which somebody else holds from now on: the account stays charged for them."""
        self._kept.clear()
        self._borrowed = []
        self.size = 0

    def take_over(self, data: Buffer) -> None:
        """Queue a copy of `data`, for which the account is charged already."""
        if data:
            self._kept.append(data)
            self.size += len(data)

    def settle(self) -> None:
        """Copy what is still borrowed."""
        if self._borrowed:
            for view in self._borrowed:
                if self._kept.append(view) != len(view):
                    # The pool is not smaller than the account, so it has room for what was accepted.
                    raise MemoryError("the page pool is smaller than the receive account")
            self._borrowed = []

    def clear(self) -> None:
        """Forget everything."""
        self.consume(self.size)


class OutOfOrder:
    """Disjoint blocks of the stream beyond the first gap. Positions are plain integers."""

    __slots__ = ("_account", "_blocks", "_limit", "_starts", "size")

    def __init__(self, account: ReceiveAccount, limit: int) -> None:
        self._account = account
        self._limit = limit
        self._starts: list[int] = []
        self._blocks: list[bytearray] = []
        self.size = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def ranges(self) -> list[tuple[int, int]]:
        """The blocks as (start, end) positions, ascending."""
        return [(s, s + len(b)) for s, b in zip(self._starts, self._blocks, strict=True)]

    def block_at(self, position: int) -> tuple[int, int] | None:
        """The block that holds `position`, as (start, end)."""
        index = bisect_right(self._starts, position) - 1
        if index < 0:
            return None
        start = self._starts[index]
        end = start + len(self._blocks[index])
        return (start, end) if position < end else None

    def overlap(self, start: int, end: int) -> tuple[int, int] | None:
        """The first part of [start, end) that is here already."""
        block = self.block_at(start)
        if block is not None:
            return start, min(end, block[1])
        index = bisect_right(self._starts, start)
        if index < len(self._starts) and self._starts[index] < end:
            first = self._starts[index]
            return first, min(end, first + len(self._blocks[index]))
        return None

    def insert(self, start: int, data: Buffer) -> bool:
        """Keep the bytes of `data` that are new; False if the number of blocks forbids it.

        Where bytes overlap, those that came first stay.
        """
        view = memoryview(data)
        while view:
            index = bisect_right(self._starts, start) - 1
            if index >= 0:
                end = self._starts[index] + len(self._blocks[index])
                if end > start:
                    view = view[end - start :]
                    start = end
                    continue
            limit = self._starts[index + 1] - start if index + 1 < len(self._starts) else len(view)
            piece, view = view[:limit], view[limit:]
            if not self._place(index, start, piece):
                return False
            start += len(piece)
        return True

    def _place(self, index: int, start: int, piece: memoryview) -> bool:
        """Put `piece`, which overlaps nothing, behind block `index`, joining neighbours."""
        starts, blocks = self._starts, self._blocks
        joins_left = index >= 0 and starts[index] + len(blocks[index]) == start
        if joins_left:
            blocks[index] += piece
        else:
            if len(blocks) >= self._limit:
                return False
            index += 1
            starts.insert(index, start)
            blocks.insert(index, bytearray(piece))
        self.size += len(piece)
        self._account.used += len(piece)
        following = index + 1
        if following < len(starts) and starts[following] == start + len(piece):
            blocks[index] += blocks[following]
            del starts[following], blocks[following]
        return True

    def take(self, position: int) -> bytearray | None:
        """Remove and return what continues the stream at `position`, or None.

        Blocks that lie before `position` altogether are dropped.
        """
        while self._starts and self._starts[0] <= position:
            start = self._starts.pop(0)
            block = self._blocks.pop(0)
            self.size -= len(block)
            self._account.used -= len(block)
            if start + len(block) > position:
                return block[position - start :] if start < position else block
        return None

    def clear(self) -> None:
        """Forget everything."""
        self._account.used -= self.size
        self.size = 0
        self._starts.clear()
        self._blocks.clear()
