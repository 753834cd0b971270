"""A connection that an accelerator carries for a while: what goes out to it, and what comes back.

Theory of operation. `is_common` says whether a connection is in a state in which nothing but data in order,
acknowledgements of new data and window updates is expected: established, nothing lost, sacked, probed for or
sent twice, no FIN, no ECN echo. `fill` copies it into a `struct ts_flow`; from then on only the accelerator
writes these fields, and `Connection` is not to be used. `restore` copies everything back, so that the
connection is what it would have been had it done the work itself: tests hold the two together to the bit.

Congestion control stays here. The accelerator sends within the `cwnd` that it was given, and says once for a
batch what was acknowledged while the window was what held the flow back (`tell_congestion`); the other
acknowledgements change nothing but the time that congestion control takes for idle, and are told of later.
"""

from __future__ import annotations

from typing import Any

from tunstack.native.fastpath import FastPath, lib
from tunstack.tcp.congestion.base import AckBatch
from tunstack.tcp.connection import Connection
from tunstack.tcp.hot import NEVER
from tunstack.tcp.send import Timer
from tunstack.tcp.seq import add, diff, lt
from tunstack.tcp.states import State

_TIMERS = (Timer.IDLE, Timer.RTO, Timer.TLP)
"""In the order of `enum ts_timer`."""

_SAME = (
    "snd_una",
    "snd_nxt",
    "snd_wnd",
    "snd_max_wnd",
    "snd_wl1",
    "snd_wl2",
    "rcv_nxt",
    "rcv_adv",
    "rcv_buf",
    "last_ack_sent",
    "cwnd",
    "mss",
    "ack_pending",
    "ts_recent",
    "ts_echo",
    "ts_offset",
    "rack_end",
    "snd_shift",
    "rcv_shift",
    "ts_recent_age",
    "rack_sent_at",
    "rack_rtt",
    "bytes_in",
    "bytes_out",
    "segments_in",
    "segments_out",
    "rto_at",
    "ack_deadline",
)
"""Fields of `HotState` that have the same name and meaning in `struct ts_flow`."""


def is_common(connection: Connection) -> bool:
    """Whether an accelerator may carry `connection` now; it must have been flushed and settled."""
    if connection.state is not State.ESTABLISHED or connection.released or connection.lease is not None:
        return False
    if connection.traffic_class:
        return False
    hot = connection.hot
    sender = connection.sender
    receiver = connection.receiver
    ecn = connection.ecn
    if not (hot.timestamps and hot.sack and hot.snd_wnd) or ecn.echo or ecn.reduced:
        return False
    if (
        connection.is_busy
        or receiver.fin_position is not None
        or receiver.duplicates_owed
        or receiver.ack_now
    ):
        return False
    if len(receiver.ooo) or receiver.sacks.duplicates:
        return False
    if sender.timer not in _TIMERS or sender.fin_queued or not sender.nodelay or sender.is_repairing:
        return False
    records = sender.records
    if records.lost_bytes or records.sacked_bytes or sender.path.end is not None or sender.path.due != NEVER:
        return False
    return all(record.transmissions == 1 and record.mss == hot.mss for record in records)


def fill(fast: FastPath, connection: Connection, flow: Any, head: bytes, link_length: int) -> None:
    """Copy `connection`, which is common, into `flow`.

    `head`: link and IP header of what is sent, for a packet without payload; the first `link_length` bytes
    are the link's, and begin with the MAC of the guest.
    """
    hot = connection.hot
    sender = connection.sender
    receiver = connection.receiver
    rtt = sender.rtt
    key = connection.key
    for name in _SAME:
        setattr(flow, name, getattr(hot, name))
    flow.family = 4 if len(connection.local) == 4 else 6
    flow.address[0 : len(key) - 4] = list(key[:-4])
    flow.ports = key[-4:]
    flow.head[0 : len(head)] = list(head)
    flow.head_length = len(head)
    flow.link_length = link_length
    if link_length:
        flow.mac = head[:6]
    flow.pseudo_sum = connection.pseudo_sum
    flow.local_port = connection.local_port
    flow.remote_port = connection.remote_port
    flow.rcv_initial = receiver.sizing.initial
    flow.rcv_mss = receiver.mss
    flow.sizing_due = receiver.sizing.due
    flow.ecn = connection.ecn.marks
    flow.heard_at = sender.heard_at
    flow.last_sent_at = sender.last_sent_at
    flow.srtt = -1.0 if rtt.srtt is None else rtt.srtt
    flow.rttvar = rtt.rttvar
    flow.rto = rtt.rto
    flow.min_rtt = rtt.min_rtt
    flow.smallest_at = rtt.smallest_at
    flow.backoff = rtt.backoff
    flow.deadline = hot.rto_deadline
    flow.probe_deadline = sender.probe.deadline
    flow.timer = _TIMERS.index(sender.timer)
    flow.was_limited = sender.was_limited
    flow.rtt_sample = -1.0
    flow.unlimited_at = -1.0
    flow.train = sender.train_limit
    limits = sender.limits
    flow.send_floor = limits.send_buffer_floor
    flow.send_most = limits.send_buffer
    for record in sender.records:
        fast.add_sent(flow, record.seq, record.end, record.sent_at)
    for view in sender.chain.views(0, sender.chain.length):
        fast.fill(flow, view, readable=False)
    for view in receiver.queue.peek():
        fast.fill(flow, view, readable=True)


def adopt(
    connection: Connection,
    brief: Any,
    queued: bytes,
    readable: bytes,
    sent: list[tuple[int, int, float]],
    now: float,
) -> None:
    """Make `connection`, which is in SYN-RECEIVED, what the `struct ts_brief` that has opened it is.

    The rest is as for `restore`.
    """
    flow = brief.flow
    phase = flow.phase
    if brief.established_at < 0:
        return
    connection.adopt_established()
    sizing = brief.sizing
    if sizing.start >= 0:
        connection.receiver.sizing.resume(
            sizing.start,
            sizing.received,
            sizing.consumed,
            sizing.rate,
            sizing.rtt,
            sizing.rtt_at,
            flow.sizing_due,
        )
    is_batch = bool(flow.is_marked) or flow.reason not in (lib.TS_KEPT, lib.TS_AGE, lib.TS_TIMER)
    restore(connection, flow, queued, readable, sent, now, is_batch=is_batch)
    connection.adopt_ends(
        received=phase in (lib.TS_CLOSE_WAIT, lib.TS_LAST_ACK),
        queued=bool(flow.fin_queued),
        sent=phase == lib.TS_LAST_ACK,
    )


def hand_over(connection: Connection) -> None:
    """Forget what `fill` has copied and the accelerator holds now."""
    connection.sender.chain.clear()
    connection.sender.records.clear()
    connection.receiver.queue.hand_over()


def restore(
    connection: Connection,
    flow: Any,
    queued: bytes,
    readable: bytes,
    sent: list[tuple[int, int, float]],
    now: float,
    *,
    is_batch: bool,
) -> None:
    """Copy `flow` back into `connection`; the three before `now` are what `FastPath.drain` gave.

    If it is in the middle of a batch (`is_batch`) it is marked, so that what is due is sent at the end.
    """
    hot = connection.hot
    sender = connection.sender
    receiver = connection.receiver
    rtt = sender.rtt
    acked = diff(flow.snd_una, hot.snd_una)
    receiver.position += flow.bytes_in - hot.bytes_in
    for name in _SAME:
        setattr(hot, name, getattr(flow, name))
    hot.rto_deadline = flow.deadline
    sender.timer = _TIMERS[flow.timer]
    sender.probe.deadline = flow.probe_deadline
    sender.heard_at = flow.heard_at
    sender.last_sent_at = flow.last_sent_at
    rtt.srtt = None if flow.srtt < 0 else flow.srtt
    rtt.rttvar = flow.rttvar
    rtt.rto = flow.rto
    rtt.min_rtt = flow.min_rtt
    rtt.smallest_at = flow.smallest_at
    rtt.backoff = flow.backoff
    for seq, end, at in sent:
        sender.records.sent(seq, end, at, hot.mss)
    if sender.chain.append(queued) != len(queued):
        raise MemoryError("the page pool has no room for what came back")
    receiver.mss = flow.rcv_mss
    receiver.ack_now = bool(flow.ack_now)
    receiver.queue.take_over(readable)
    if acked:
        if connection.ecn.active:
            connection.ecn.must_reduce(0, hot.snd_una, hot.snd_nxt)
        sender.stalled_since = None
        if diff(hot.snd_una, sender.episode.recover) > 0:
            sender.episode.recover = add(hot.snd_una, -1)
        if sender.rack.fack is None or lt(sender.rack.fack, hot.snd_una):
            sender.rack.fack = hot.snd_una
    tell_congestion(connection, flow, now, report=False)
    hot.cwnd = sender.congestion.cwnd
    sender.resume(
        acked=flow.acked,
        advanced=flow.advanced,
        delivered=flow.delivered,
        rtt_sample=None if flow.rtt_sample < 0 else flow.rtt_sample,
        was_limited=bool(flow.was_limited),
        probe_due=bool(flow.probe_due),
    )
    if is_batch:
        connection.resume(progress=bool(flow.is_notified))


def tell_congestion(connection: Connection, flow: Any, now: float, *, report: bool) -> None:
    """Tell congestion control of the acknowledgements that it has not heard of; with `report` those of the
    batch too, and `flow` gets the new `cwnd`.
    """
    sender = connection.sender
    control = sender.congestion
    delivered = flow.bytes_out
    rtt = None if flow.rtt_sample < 0 else flow.rtt_sample
    if flow.unlimited_at >= 0:
        batch = AckBatch(acked=0, segments=0, rtt=None, cwnd_limited=False, flight=0, delivered=delivered)
        control.on_acks(batch, flow.unlimited_at)
        flow.unlimited_at = -1.0
    if not report:
        return
    acked = flow.acked
    batch = AckBatch(
        acked=acked,
        segments=-(-acked // flow.mss),
        rtt=rtt,
        cwnd_limited=True,
        flight=((flow.snd_nxt - flow.snd_una) & 0xFFFFFFFF) + flow.advanced,
        delivered=delivered,
        smoothed_rtt=None if flow.srtt < 0 else flow.srtt,
    )
    control.on_acks(batch, now)
    flow.cwnd = control.cwnd


def restart_idle(connection: Connection, flow: Any, now: float) -> None:
    """Nothing was sent for longer than an RTO (RFC 5681 4.1)."""
    control = connection.sender.congestion
    control.on_idle_restart(now)
    flow.cwnd = control.cwnd
    flow.idle_told = 1


def refresh(connection: Connection, flow: Any) -> None:
    """Bring the counters of `connection` up to date."""
    hot = connection.hot
    connection.receiver.position += flow.bytes_in - hot.bytes_in
    for name in ("bytes_in", "bytes_out", "segments_in", "segments_out"):
        setattr(hot, name, getattr(flow, name))


def resize(connection: Connection, flow: Any, readable: int, now: float) -> None:
    """The round of the receive buffer's size is over. `readable`: bytes that the socket has not taken."""
    hot = connection.hot
    receiver = connection.receiver
    refresh(connection, flow)
    for name in ("rcv_buf", "ts_echo", "ts_recent_age"):
        setattr(hot, name, getattr(flow, name))
    connection.sender.rtt.min_rtt = flow.min_rtt
    connection.sender.rtt.smallest_at = flow.smallest_at
    receiver.sizing.look(now, readable, connection.round_trip())
    flow.rcv_buf = hot.rcv_buf
    flow.sizing_due = receiver.sizing.due
