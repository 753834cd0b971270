"""What was sent and is not acknowledged: the scoreboard (RFC 2018, RFC 6675 section 3, RFC 8985 section 5).

Theory of operation. A record covers the sequence numbers of one (super-)segment, and knows when it was last
sent and how often. It is in one of three states: in flight, lost (to be sent again, not in the network any
more) or sacked (the peer has it). The records of a connection lie in order, without gap or overlap, from
`snd_una` to `snd_nxt`, so that

    pipe = (snd_nxt - snd_una) - lost_bytes - sacked_bytes

A record begins where a segment began on the wire. SACK edges split records at segment boundaries only, and
what a block covers of a segment in part is not taken as received; adjacent sacked records are joined. So the
number of records stays below that of segments, a block that is repeated costs one look, and everything that
an acknowledgement tells is done once for each record.

What is in flight hangs in a second order besides, by time of transmission, then sequence: RACK looks at its
old end only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from tunstack.tcp.records import Delivery, SentRecord
from tunstack.tcp.seq import MASK, le, lt

MAX_FRAGMENTS = 4096
"""Records of one connection beyond which SACK edges split none; 4 MiB in segments of 1024 bytes."""


class Scoreboard:
    """The records of one connection and the sums over them."""

    __slots__ = ("_hint", "_records", "_timeline", "lost_bytes", "sacked_bytes", "sacked_segments")

    def __init__(self) -> None:
        self._records: list[SentRecord] = []
        self._timeline = SentRecord(0, 0, 0.0, 1)
        """Sentinel of the ring of records in flight; `newer` is the oldest of them."""
        self._timeline.older = self._timeline.newer = self._timeline
        self._hint = 0
        """No lost record begins before this sequence number."""
        self.lost_bytes = 0
        self.sacked_bytes = 0
        self.sacked_segments = 0

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[SentRecord]:
        return iter(self._records)

    def __getitem__(self, index: int) -> SentRecord:
        return self._records[index]

    @property
    def first(self) -> SentRecord | None:
        """The record at `snd_una`."""
        return self._records[0] if self._records else None

    @property
    def oldest(self) -> SentRecord | None:
        """The record in flight that was sent first; `following` leads on from it."""
        return self.following(self._timeline)

    def following(self, record: SentRecord) -> SentRecord | None:
        """The record in flight that was sent next after `record`."""
        newer = record.newer
        return None if newer is self._timeline else newer

    def sent(self, seq: int, end: int, now: float, mss: int) -> None:
        """New data [seq, end) went out in segments of `mss` bytes."""
        record = SentRecord(seq, end, now, mss)
        self._records.append(record)
        self._link(record)

    # what acknowledgements say

    def acknowledge(self, ack: int, delivery: Delivery) -> None:
        """Drop everything before `ack`, noting what was not known to have arrived."""
        records = self._records
        count = 0
        for record in records:
            if not le(record.end, ack):
                break
            count += 1
            if record.sacked:
                self.sacked_bytes -= (record.end - record.seq) & MASK
                self.sacked_segments -= record.segments
                continue
            if record.lost:
                self.lost_bytes -= (record.end - record.seq) & MASK
            else:
                self._unlink(record)
            delivery.note(record, record.end)
        del records[:count]
        if records and lt(records[0].seq, ack):
            self._acknowledge_in_part(ack, delivery)

    def _acknowledge_in_part(self, ack: int, delivery: Delivery) -> None:
        record = self._records[0]
        gone = (ack - record.seq) & MASK
        if record.sacked:
            left = max(1, record.segments * (record.size - gone) // record.size)
            self.sacked_segments -= record.segments - left
            record.segments = left
            self.sacked_bytes -= gone
        else:
            beyond = gone % record.mss
            if beyond:
                # An ACK inside a segment: what is left of it stays a record of its own.
                self._split_if_few(0, gone - beyond + record.mss)
            if record.lost:
                self.lost_bytes -= gone
            delivery.note(record, ack)
        record.seq = ack

    def sack(self, start: int, end: int, delivery: Delivery) -> None:
        """The peer has [start, end), which lies between `snd_una` and `snd_nxt`."""
        records = self._records
        first = index = self._index(start)
        if records[index].sacked and le(end, records[index].end):
            return
        while index < len(records) and lt(records[index].seq, end):
            record = records[index]
            if record.sacked:
                index += 1
                continue
            skip = (start - record.seq) & MASK
            if lt(record.seq, start):
                if not self._split_if_few(index, skip + -skip % record.mss):
                    index += 1
                    continue
                index += 1
                record = records[index]
            if lt(end, record.end):
                size = (end - record.seq) & MASK
                if lt(end, record.seq) or not self._split_if_few(index, size - size % record.mss):
                    break
            self._mark_sacked(record, delivery)
            index += 1
        self._join(max(0, first - 1), min(len(records), index + 1))

    def _split_if_few(self, index: int, size: int) -> bool:
        if not 0 < size < self._records[index].size or len(self._records) >= MAX_FRAGMENTS:
            return False
        self._split(index, size)
        return True

    def _mark_sacked(self, record: SentRecord, delivery: Delivery) -> None:
        size = record.size
        if record.lost:
            record.lost = False
            self.lost_bytes -= size
        else:
            self._unlink(record)
        delivery.note(record, record.end)
        record.sacked = True
        record.segments = -(-size // record.mss)
        self.sacked_bytes += size
        self.sacked_segments += record.segments

    def _join(self, low: int, high: int) -> None:
        """Join adjacent sacked records among those with indices [low, high)."""
        joined: list[SentRecord] = []
        for record in self._records[low:high]:
            if record.sacked and joined and joined[-1].sacked:
                joined[-1].end = record.end
                joined[-1].segments += record.segments
            else:
                joined.append(record)
        if len(joined) != high - low:
            self._records[low:high] = joined

    # loss

    def next_lost(self) -> int:
        """The index of the first lost record, -1 if there is none."""
        if not self.lost_bytes:
            return -1
        records = self._records
        index = self._index(self._hint)
        while not records[index].lost:
            index += 1
        self._hint = records[index].seq
        return index

    def mark_lost(self, record: SentRecord) -> None:
        """Deem `record`, which is in flight, lost."""
        self._unlink(record)
        record.lost = True
        if not self.lost_bytes or lt(record.seq, self._hint):
            self._hint = record.seq
        self.lost_bytes += record.size

    def mark_first_lost(self, size: int) -> None:
        """Deem the first `size` bytes lost, splitting the record that they begin."""
        if not self._records:
            return
        record = self._records[0]
        if record.size > size:
            self._split(0, size)
        if not record.lost and not record.sacked:
            self.mark_lost(record)

    def mark_all_lost(self) -> None:
        """Deem everything lost that is in flight."""
        record = self.oldest
        while record is not None:
            self.mark_lost(record)
            record = self.oldest

    def time_out(self, sent_before: float) -> None:
        """An RTO: what was sacked no longer counts as such (RFC 2018 section 8: the peer may have dropped
        it); the first record is lost, and all that were last sent at `sent_before` or earlier (RFC 8985 6.3).
        """
        for index, record in enumerate(self._records):
            if record.sacked:
                record.sacked = False
                record.segments = 0
                record.transmissions = 0
            record.lost = record.lost or not index or record.sent_at <= sent_before
        self._recount()

    def forget_losses(self) -> None:
        """What is deemed lost was only late: it is in flight after all."""
        if self.lost_bytes:
            for record in self._records:
                record.lost = False
            self._recount()

    def resend(self, index: int, size: int, now: float, mss: int) -> SentRecord:
        """Note that the first `size` bytes of record `index` go out again; returns their record."""
        record = self._records[index]
        if record.size > size:
            self._split(index, size)
        if record.lost:
            record.lost = False
            self.lost_bytes -= record.size
        elif record.sacked:
            record.sacked = False
            self.sacked_bytes -= record.size
            self.sacked_segments -= record.segments
            record.segments = 0
        else:
            self._unlink(record)
        record.sent_at = now
        record.mss = mss
        record.transmissions = max(1, record.transmissions) + 1
        self._link(record)
        return record

    def last_segment(self, *, fin: bool) -> int:
        """The index of a record that holds the last segment alone; `fin`: with the FIN."""
        record = self._records[-1]
        before = (record.size - 1 - fin) // record.mss * record.mss
        if before > 0:
            self._split(len(self._records) - 1, before)
        return len(self._records) - 1

    def clear(self) -> None:
        """Forget everything."""
        self._records.clear()
        self._recount()

    # order

    def _index(self, seq: int) -> int:
        """The index of the record that holds `seq`; 0 if it lies before all of them."""
        base = self._records[0].seq
        if lt(seq, base):
            return 0
        return bisect_right(self._records, (seq - base) & MASK, key=lambda r: (r.seq - base) & MASK) - 1

    def _split(self, index: int, size: int) -> None:
        record = self._records[index]
        cut = (record.seq + size) & MASK
        rest = SentRecord(cut, record.end, record.sent_at, record.mss)
        rest.transmissions = record.transmissions
        rest.lost = record.lost
        if record.sacked:
            rest.sacked = True
            rest.segments = record.segments // 2
            record.segments -= rest.segments
        elif not record.lost:
            self._insert(rest, record)
        record.end = cut
        self._records.insert(index + 1, rest)

    def _link(self, record: SentRecord) -> None:
        """Put `record` at the new end of the timeline, among those of the same instant by sequence."""
        older = self._timeline.older
        assert older is not None
        while older.sent_at == record.sent_at and older is not self._timeline and lt(record.end, older.end):
            older = older.older
            assert older is not None
        self._insert(record, older)

    @staticmethod
    def _insert(record: SentRecord, older: SentRecord) -> None:
        newer = older.newer
        assert newer is not None
        record.older = older
        record.newer = newer
        older.newer = newer.older = record

    @staticmethod
    def _unlink(record: SentRecord) -> None:
        older, newer = record.older, record.newer
        assert older is not None
        assert newer is not None
        older.newer = newer
        newer.older = older
        record.older = record.newer = None

    def _recount(self) -> None:
        """Sums and timeline anew from the states of the records."""
        timeline = self._timeline
        timeline.older = timeline.newer = timeline
        self.lost_bytes = self.sacked_bytes = self.sacked_segments = 0
        in_flight: list[SentRecord] = []
        for record in self._records:
            record.older = record.newer = None
            if record.lost:
                self.lost_bytes += record.size
            elif record.sacked:
                self.sacked_bytes += record.size
                self.sacked_segments += record.segments
            else:
                in_flight.append(record)
        in_flight.sort(key=lambda record: record.sent_at)
        for record in in_flight:
            self._link(record)
        if self._records:
            self._hint = self._records[0].seq
