"""The hot fields of a connection, in one object that can be handed to an accelerator.

`HotState` is all that a fast path needs in order to carry an established flow; whatever is not in it
(congestion control, the state machine, recovery) stays with `Connection`. While an accelerator holds a
connection, only the accelerator writes these fields.
"""

from __future__ import annotations

NEVER = float("inf")


class HotState:
    """Sequence variables, windows, timestamps, timers and counters of one connection.

    Names are those of RFC 9293 and RFC 7323. Sequence numbers are modulo 2**32, windows in bytes
    (already scaled), deadlines in seconds, `NEVER` when not armed.
    """

    __slots__ = (
        "ack_deadline",
        "ack_pending",
        "bytes_in",
        "bytes_out",
        "cwnd",
        "last_ack_sent",
        "mss",
        "rack_end",
        "rack_rtt",
        "rack_sent_at",
        "rcv_adv",
        "rcv_buf",
        "rcv_nxt",
        "rcv_shift",
        "retransmits",
        "rto_at",
        "rto_deadline",
        "sack",
        "segments_in",
        "segments_out",
        "snd_max_wnd",
        "snd_nxt",
        "snd_shift",
        "snd_una",
        "snd_wl1",
        "snd_wl2",
        "snd_wnd",
        "timestamps",
        "ts_echo",
        "ts_offset",
        "ts_recent",
        "ts_recent_age",
    )

    def __init__(self, iss: int, mss: int) -> None:
        self.snd_una = iss
        self.snd_nxt = iss
        self.snd_wnd = 0
        self.snd_max_wnd = 0
        """The largest window that the peer ever offered."""
        self.snd_wl1 = 0
        self.snd_wl2 = 0
        self.snd_shift = 0
        self.cwnd = 0
        self.mss = mss
        """Payload bytes of a full segment, options already taken off (MUST-16)."""
        self.rcv_nxt = 0
        self.rcv_adv = 0
        """The right edge of the window that was advertised; it never moves left."""
        self.rcv_buf = 0
        """The receive buffer in bytes: the window is this less what waits for the reader, if `rcv_adv` lets
        it. `right_sizing.py` sets it between batches, whoever carries the flow; an accelerator reads it."""
        self.rcv_shift = 0
        self.last_ack_sent = 0
        self.timestamps = False
        self.ts_recent = 0
        self.ts_recent_age = 0.0
        self.ts_echo = 0
        """TSecr of the segment that `ts_recent` came from, at `ts_recent_age`; 0: none."""
        self.ts_offset = 0
        self.sack = False
        """SACK was negotiated (RFC 2018)."""
        self.rack_sent_at = -1.0
        self.rack_end = 0
        """When the most recently sent of the segments that have arrived was sent, and where it ends (RFC 8985
        5.2: RACK.xmit_ts, RACK.end_seq)."""
        self.rack_rtt = 0.0
        self.rto_at = NEVER
        """When the RTO expires; `rto_deadline` is earlier while the timer stands for something else."""
        self.rto_deadline = NEVER
        """When the exclusive timer expires, whatever it is armed for."""
        self.ack_deadline = NEVER
        self.ack_pending = 0
        """Full-sized segments received since the last ACK went out."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.segments_in = 0
        self.segments_out = 0
        self.retransmits = 0

    def timestamp(self, now: float) -> int:
        """TSval at `now`: milliseconds and this connection's offset (RFC 7323 5.4)."""
        return (int(now * 1000) + self.ts_offset) & 0xFFFFFFFF
