"""Explicit congestion notification of one connection (RFC 3168 section 6.1).

Theory of operation. Both sides agree in the handshake: the SYN carries ECE and CWR, the SYN-ACK ECE alone.
From then on new data is sent with ECT(0) in the IP header, but no SYN, pure ACK, retransmission or window
probe is. A receiver that sees CE sets ECE in everything it sends until a segment with CWR says that the
sender has heard. A sender that gets ECE reduces its window as for a loss, at most once in a window of data,
and says so by CWR on the next new data. A SYN that has to be repeated asks for no ECN, lest somebody on the
path drops such SYNs.
"""

from __future__ import annotations

from tunstack.tcp.header import ACK, CWR, ECE, SYN
from tunstack.tcp.seq import add, lt

CONGESTION_EXPERIENCED = 3
ECT_0 = 2
"""Codepoints of the two low bits of the traffic class (RFC 3168 section 5)."""


class Ecn:
    """Whether ECN is on, and what is owed to the peer.

    Attributes:
        active: both sides agreed; CE is echoed.
        marks: new data is sent as ECN-capable. It must not be if a SYN of ours went without asking for ECN,
            even though the answer agrees to one that did (6.1.1).
        echo: CE arrived, and the peer has not answered by CWR yet.
        reduced: the window was reduced; the next new data says so by CWR.
    """

    __slots__ = ("_offers", "_plain", "_recover", "active", "echo", "marks", "reduced")

    def __init__(self, iss: int, offers: bool) -> None:
        self.active = False
        self.marks = False
        self.echo = False
        self.reduced = False
        self._offers = offers
        self._plain = False
        """A SYN was sent that does not ask for ECN."""
        self._recover = iss

    def accept(self, asked: bool) -> None:
        """The peer's SYN came; `asked`: it was an ECN-setup SYN."""
        self.active = asked and self._offers
        self.marks = self.active

    def syn_flags(self, flags: int, first: bool) -> int:
        """`flags` of a SYN or SYN-ACK with what ECN adds; `first`: it is not a repetition."""
        if flags & ACK:
            return flags | ECE if self.active else flags
        if not first:
            self._plain = True
        return flags | ECE | CWR if self._offers and first else flags

    def syn_ack_received(self, flags: int) -> None:
        """The answer to our SYN, which may not have been the first."""
        self.active = self._offers and flags & (SYN | ECE | CWR) == SYN | ECE
        self.marks = self.active and not self._plain

    def receive(self, flags: int, marked: bool) -> bool:
        """A segment with data arrived, `marked` by CE or not; True if the peer should hear of it at once."""
        before = self.echo
        if flags & CWR:
            self.echo = False
        if marked:
            self.echo = True
        return self.echo and not before

    def must_reduce(self, flags: int, ack: int, snd_nxt: int) -> bool:
        """Whether the ECE of an acceptable ACK is news: the first of this window of data."""
        if not lt(self._recover, ack):
            return False
        if not flags & ECE:
            self._recover = add(ack, -1)  # kept close: numbers 2**31 apart cannot be compared
            return False
        self._recover = snd_nxt
        self.reduced = True
        return True

    def data_flags(self) -> int:
        """What ECN adds to the next new data."""
        if self.reduced:
            self.reduced = False
            return CWR
        return 0


def asks(flags: int) -> bool:
    """Whether a SYN with these flags is an ECN-setup SYN."""
    return flags & (ECE | CWR) == ECE | CWR
