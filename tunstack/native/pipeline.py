"""The native form of a pipeline, as the stages of `tunstack.link.shaping` fill it in and read it back.

`csrc/pipeline.h` states the theory of operation and every field. The twin is `Pipeline` itself: what it lends
to this form goes on here as it would there, and where `fastpath.available` is False it stays there.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from tunstack.errors import DropReason
from tunstack.native.fastpath import ffi, lib

_REASONS = (DropReason.SHAPING_LOSS, DropReason.SHAPING_QUEUE_FULL, DropReason.SHAPING_MEMORY)
"""In the order of `enum ts_shape_drop`."""
_KINDS = ("loss", "rate", "delay")
"""In the order of `enum ts_stage_kind`."""
_ENDLESS = (1 << 64) - 1
"""A bound that is none."""
_VERSION = 3
"""Of the state of `random.Random`."""


class NativePipeline:
    """One pipeline in C, without stages at first.

    Attributes:
        c: the `struct ts_pipeline`.
    """

    __slots__ = ("c",)

    def __init__(self) -> None:
        """MemoryError."""
        pipeline = lib.ts_pipeline_new()
        if not pipeline:
            raise MemoryError
        self.c = ffi.gc(pipeline, lib.ts_pipeline_free)

    def send(self, data: bytes, at: float) -> None:
        """See `Pipeline.push`."""
        lib.ts_pipeline_send(self.c, data, len(data), at)

    def pop(self, now: float) -> list[tuple[float, bytes]]:
        """See `Pipeline.pop_timed`."""
        departures = []
        while packet := lib.ts_pipeline_pop(self.c, now):
            departures.append((packet.due, self._free(packet)))
        return departures

    def next_timeout(self) -> float | None:
        """See `Pipeline.next_timeout`."""
        deadline: float = lib.ts_pipeline_deadline(self.c)
        return None if deadline == float("inf") else deadline

    def set_queue(self, discipline: int, packets: int | None, size: int | None) -> None:
        """Which queue stands before the rate, and how much may wait in it; None: any number. MemoryError."""
        if lib.ts_pipeline_set_queue(self.c, discipline):
            raise MemoryError
        self.c.queue_packets = _ENDLESS if packets is None else packets
        self.c.queue_bytes = _ENDLESS if size is None else size

    def add_bucket(self, bucket: int, turn: int | None = None) -> Any:
        """The `struct ts_bucket` of that number, which is used from now on, and last in that turn."""
        return lib.ts_pipeline_add_bucket(self.c, bucket, lib.TS_NO_TURN if turn is None else turn)

    def put(self, place: int, data: bytes, since: float, due: float = 0.0) -> None:
        """A packet where it was, behind those that were put there before. MemoryError."""
        if lib.ts_pipeline_put(self.c, place, data, len(data), since, due):
            raise MemoryError

    def take(self, place: int) -> Iterator[tuple[float, float, bytes]]:
        """Take all packets out of a place, in order: since when each is there, when it leaves, its bytes."""
        while packet := lib.ts_pipeline_take(self.c, place):
            since, due = packet.since, packet.due
            yield since, due, self._free(packet)

    def counts(self, kind: str) -> Any:
        """The `struct ts_stage` of the stage of that kind."""
        return self.c.stages[_KINDS.index(kind)]

    def take_drops(self, kind: str) -> list[tuple[DropReason, int]]:
        """The packets that the stage has dropped since the last call, by cause."""
        dropped = self.counts(kind).dropped
        drops = [(reason, count) for reason, count in zip(_REASONS, dropped, strict=True) if count]
        for index in range(len(_REASONS)):
            dropped[index] = 0
        return drops

    @staticmethod
    def lend_random(native: Any, rng: random.Random) -> None:
        """Let the `struct ts_random` go on where `rng` is."""
        *words, index = rng.getstate()[1]
        native.words = words
        native.index = index

    @staticmethod
    def restore_random(native: Any, rng: random.Random) -> None:
        """And back."""
        rng.setstate((_VERSION, (*native.words, native.index), None))

    @staticmethod
    def _free(packet: Any) -> bytes:
        data = bytes(ffi.buffer(packet.data + lib.TS_PIPELINE_GAP, packet.length))
        lib.ts_packet_free(packet)
        return data


def can_lend(source: object) -> bool:
    """Whether C can draw what `source` would."""
    return type(source) is random.Random
