"""Selective acknowledgements (RFC 2018) and reports of duplicates (RFC 2883), written and read.

Theory of operation, writing. The out-of-order store says which blocks there are; `SackWriter` adds in which
order they arrived. The first block of an option is the one that holds the segment just received, then those
reported before, latest first. A duplicate is reported once, in front of all others, and followed by the block
that it lies in, if any. Several segments of a batch that are owed an ACK each get it in their order of
arrival, so that all their blocks are told.

SACK rides on pure ACKs only. Data therefore keeps its full size (no segment is smaller by the option, MUST-16
holds by itself); while there is something to report, an ACK that is due goes out in front of the data.

Reading. What a peer reports is its word, not a fact: blocks beyond `snd_nxt`, empty or backward ones, and
those older than the largest window are ignored.
"""

from __future__ import annotations

from collections import deque

from tunstack.tcp.receive import OutOfOrder
from tunstack.tcp.seq import add, diff, le, lt

Block = tuple[int, int]
"""[start, end), as sequence numbers or as stream positions."""

MAX_DUPLICATE_REPORTS = 32
"""Duplicates of one batch that are reported; each takes an ACK."""


class SackWriter:
    """What a receiver has to report. Everything here is in stream positions."""

    __slots__ = ("_duplicates", "_recent")

    def __init__(self) -> None:
        self._recent: list[int] = []
        """A position in each block of the store, the latest arrival first."""
        self._duplicates: deque[Block] = deque(maxlen=MAX_DUPLICATE_REPORTS)

    @property
    def duplicates(self) -> int:
        """Duplicates not yet reported."""
        return len(self._duplicates)

    def arrived(self, position: int, store: OutOfOrder) -> None:
        """The store has taken data at `position`."""
        block = store.block_at(position)
        if block is not None:
            start, end = block
            recent = [other for other in self._recent if not start <= other < end]
            recent.insert(0, position)
            self._recent = recent

    def duplicate(self, start: int, end: int) -> None:
        """[start, end) of a segment that arrived had been received before."""
        self._duplicates.append((start, end))

    def blocks(self, store: OutOfOrder, limit: int, skip: int = 0) -> list[Block]:
        """The next option, of at most `limit` blocks; takes one duplicate off what is to be reported.

        `skip`: how many further ACKs of this batch will tell of later arrivals.
        """
        blocks: list[Block] = []
        if self._duplicates:
            duplicate = self._duplicates.popleft()
            blocks.append(duplicate)
            around = store.block_at(duplicate[0])
            if around is not None:
                blocks.append(around)
        if not len(store):
            self._recent.clear()
            return blocks
        recent = self._recent
        if recent and len(recent) > len(store):
            # Blocks that the stream has caught up with.
            recent = self._recent = [p for p in recent if store.block_at(p) is not None]
        for position in recent[min(skip, len(recent) - 1) if recent else 0 :]:
            if len(blocks) >= limit:
                break
            block = store.block_at(position)
            if block is not None and block not in blocks:
                blocks.append(block)
        return blocks[:limit]

    def clear(self) -> None:
        """Nothing is to be reported."""
        self._recent.clear()
        self._duplicates.clear()


def read_blocks(
    blocks: tuple[Block, ...], ack: int, una: int, nxt: int, max_window: int
) -> tuple[Block | None, list[Block]]:
    """The duplicate that the SACK option of a segment reports, if any, and what it acknowledges anew.

    `ack` is the acknowledgement of that segment, `una` and `nxt` bound what is outstanding. The blocks that
    are returned lie within [una, nxt).
    """
    duplicate: Block | None = None
    usable: list[Block] = []
    for index, (start, end) in enumerate(blocks):
        if not lt(start, end) or not le(end, nxt) or diff(start, una) < -max_window:
            continue
        if index == 0 and _is_duplicate(start, end, ack, blocks[1:2]):
            duplicate = start, end
            continue
        if lt(una, end):
            usable.append((start if lt(una, start) else una, end))
    return duplicate, usable


def _is_duplicate(start: int, end: int, ack: int, second: tuple[Block, ...]) -> bool:
    """RFC 2883 section 4: the first block lies below the cumulative ACK, or inside the second block."""
    if lt(start, ack):
        return True
    return any(le(low, start) and le(end, high) for low, high in second)


def to_sequence(blocks: list[Block], position: int, seq: int) -> list[Block]:
    """Stream positions as sequence numbers; `position` is that of `seq`."""
    return [(add(seq, start - position), add(seq, end - position)) for start, end in blocks]
