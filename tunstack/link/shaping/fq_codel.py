"""FQ-CoDel (RFC 8290): a queue for each flow, served in turns by bytes, and CoDel in each of them.

Theory of operation. Flows are told apart by addresses, protocol and ports - or guests by their MACs, which is
what flow means below then - hashed into `BUCKETS` queues. A
flow that had nothing waiting is *new*: new flows are served before the *old* ones, but only once, so that who
sends little never stands behind who sends much, and who sends much does not gain by pausing. Each turn
allows a flow `QUANTUM` bytes. When all queues together are full, the oldest packets of the longest are
dropped, many at once, so that a flood pays for itself.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable

from tunstack.errors import DropReason
from tunstack.link.shaping.codel import INTERVAL, TARGET, CoDel
from tunstack.link.shaping.headers import find
from tunstack.native.fastpath import lib
from tunstack.native.pipeline import NativePipeline
from tunstack.packet import Packet

BUCKETS = 1024
"""Queues (RFC 8290 5.2.5)."""
QUANTUM = 1514
"""Bytes of a turn (RFC 8290 5.2.4)."""
BATCH = 64
"""Packets that are dropped at once at the most, when all is full (RFC 8290 4.1.2)."""

_NOT_IP = b"not IP"


class _Flow:
    """One of the queues, and what it may still send in this turn."""

    __slots__ = ("credit", "queue")

    def __init__(self, queue: CoDel) -> None:
        self.queue = queue
        self.credit = QUANTUM


class FqCoDel:
    """A `Queue`; see `CoDel` for the parameters. `seed`: of the hash, so that nobody can aim at a bucket.

    Attributes:
        by_guest: each guest has a queue, and not each flow.
        l2: packets begin with an Ethernet header.
    """

    __slots__ = (
        "_bytes",
        "_count",
        "_ecn",
        "_flows",
        "_interval",
        "_new",
        "_old",
        "_packets",
        "_seed",
        "_target",
        "by_guest",
        "drop",
        "l2",
        "size",
    )

    def __init__(
        self,
        *,
        packets: int | None = 10240,
        size: int | None = None,
        target: float = TARGET,
        interval: float = INTERVAL,
        ecn: bool = True,
        by_guest: bool = False,
        seed: int = 0,
    ) -> None:
        self._packets = packets
        self._bytes = size
        self._target = target
        self._interval = interval
        self._ecn = ecn
        self._seed = seed & 0xFFFFFFFF
        self.by_guest = by_guest
        self._flows: dict[int, _Flow] = {}
        self._new: OrderedDict[int, _Flow] = OrderedDict()
        self._old: OrderedDict[int, _Flow] = OrderedDict()
        self._count = 0
        self.size = 0
        self.l2 = False
        self.drop: Callable[[Packet, DropReason], None]

    def __len__(self) -> int:
        return self._count

    @property
    def marked(self) -> int:
        """See `Queue`."""
        return sum(flow.queue.marked for flow in self._flows.values())

    def push(self, packet: Packet, at: float) -> None:
        """Take `packet`; if all is full, drop some of the longest queue."""
        bucket = self.bucket(packet)
        flow = self._flows.get(bucket)
        if flow is None:
            flow = self._flows[bucket] = _Flow(self._make_queue())
        if bucket not in self._new and bucket not in self._old:
            flow.credit = QUANTUM
            self._new[bucket] = flow
        self._count += 1
        self.size += len(packet)
        flow.queue.push(packet, at)
        while self._is_full():
            self._make_room()

    def pop(self, at: float) -> tuple[float, Packet] | None:
        """See `Queue`."""
        while turn := self._new or self._old:
            bucket, flow = next(iter(turn.items()))
            if flow.credit <= 0:
                flow.credit += QUANTUM
                del turn[bucket]
                self._old[bucket] = flow
                continue
            entry = flow.queue.pop(at)
            if entry is None:
                del turn[bucket]
                if turn is self._new and self._old:  # lest it is new again at once
                    self._old[bucket] = flow
                continue
            size = len(entry[1])
            flow.credit -= size
            self._count -= 1
            self.size -= size
            return entry
        return None

    def hand_over(self) -> list[tuple[float, Packet]]:
        """See `Queue`."""
        packets = [entry for flow in self._flows.values() for entry in flow.queue.hand_over()]
        self._new.clear()
        self._old.clear()
        self._count = self.size = 0
        return sorted(packets, key=lambda entry: entry[0])

    def lend(self, native: NativePipeline) -> None:
        """See `Stage`."""
        native.set_queue(lib.TS_FQ_CODEL, self._packets, self._bytes)
        native.c.hash_seed = self._seed
        native.c.by_guest = self.by_guest
        self._make_queue().lend_rules(native.c)
        turns = {lib.TS_NEW_FLOWS: self._new, lib.TS_OLD_FLOWS: self._old}
        for bucket, flow in self._flows.items():
            c = native.add_bucket(bucket)
            c.credit = flow.credit
            flow.queue.lend_state(c.codel)
            flow.queue.lend_packets(native)
        for turn, flows in turns.items():
            for bucket in flows:
                native.add_bucket(bucket, turn)

    def restore(self, native: NativePipeline) -> None:
        """See `Stage`."""
        c = native.c
        self._flows.clear()
        for bucket in c.made[0 : c.made_count]:
            flow = self._flows[bucket] = _Flow(self._make_queue())
            flow.credit = c.buckets[bucket].credit
            flow.queue.restore_state(c.buckets[bucket].codel)
        for turn, flows in ((lib.TS_NEW_FLOWS, self._new), (lib.TS_OLD_FLOWS, self._old)):
            flows.clear()
            bucket = c.first_turn[turn]
            while bucket != lib.TS_NO_BUCKET:
                flows[bucket] = self._flows[bucket]
                bucket = c.buckets[bucket].next
        self._count = self.size = 0
        for since, _, data in native.take(lib.TS_AT_QUEUE):
            packet = Packet(data)
            self._flows[self.bucket(packet)].queue.put(since, packet)
            self._count += 1
            self.size += len(packet)

    def bucket(self, packet: Packet) -> int:
        """The number of the queue of `packet`."""
        key = guest_key(packet, self.l2) if self.by_guest else flow_key(packet, self.l2)
        return zlib.crc32(key, self._seed) % BUCKETS

    def _is_full(self) -> bool:
        return (self._packets is not None and self._count > self._packets) or (
            self._bytes is not None and self.size > self._bytes
        )

    def _make_room(self) -> None:
        longest = max(self._flows.values(), key=lambda flow: flow.queue.size)
        for _ in range(min(BATCH, (len(longest.queue) + 1) // 2)):
            longest.queue.drop_oldest()

    def _make_queue(self) -> CoDel:
        queue = CoDel(packets=None, target=self._target, interval=self._interval, ecn=self._ecn, l2=self.l2)
        queue.drop = self._dropped
        return queue

    def _dropped(self, packet: Packet, reason: DropReason) -> None:
        self._count -= 1
        self.size -= len(packet)
        self.drop(packet, reason)


def guest_key(packet: Packet, l2: bool) -> bytes:
    """What tells the guest of `packet` from others: the MACs, one of which is the gateway's.

    Behind a link without MACs there is one guest.
    """
    return bytes(packet.head[:12]) if l2 else b""


def flow_key(packet: Packet, l2: bool) -> bytes:
    """What tells the flow of `packet` from others: addresses, protocol and, if it shows them, ports."""
    data = packet.tobytes()
    headers = find(data, l2)
    if headers is None:
        return _NOT_IP
    addresses = (12, 20) if headers.version == 4 else (8, 40)
    key = bytes((headers.protocol,)) + data[headers.ip + addresses[0] : headers.ip + addresses[1]]
    if headers.has_ports and not headers.fragment:  # all fragments of a datagram stay together
        key += data[headers.transport : headers.transport + 4]
    return key
