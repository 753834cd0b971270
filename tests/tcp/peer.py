"""The scripted peer of `tunstack.testing.peer`, by the names that the tests here have for it."""

from __future__ import annotations

from tunstack.testing.packets import Ipv4, Ipv6, checksum
from tunstack.testing.packets.emit import pseudo_header
from tunstack.testing.peer import PEER_PORT, RCV_NXT, SND_NXT, STACK_PORT, StackPeer, Starters, Wire, ramp
from tunstack.testing.peer.conversation import ADDRESSES
from tunstack.testing.peer.on_stack import DEFAULT_ISNS
from tunstack.testing.peer.wire import MOD

Peer = StackPeer
STACK, PEER = ADDRESSES[4]
STACK_6, PEER_6 = ADDRESSES[6]

_starters = Starters(Peer)
STARTERS = _starters.all()
syn_sent = _starters.syn_sent
syn_received = _starters.syn_received
established = _starters.established
fin_wait_1 = _starters.fin_wait_1
fin_wait_2 = _starters.fin_wait_2
close_wait = _starters.close_wait
closing = _starters.closing
last_ack = _starters.last_ack
time_wait = _starters.time_wait

__all__ = [
    "DEFAULT_ISNS",
    "MOD",
    "PEER",
    "PEER_6",
    "PEER_PORT",
    "RCV_NXT",
    "SND_NXT",
    "STACK",
    "STACK_6",
    "STACK_PORT",
    "STARTERS",
    "Peer",
    "Wire",
    "checksum",
    "close_wait",
    "closing",
    "established",
    "fin_wait_1",
    "fin_wait_2",
    "last_ack",
    "pseudo",
    "ramp",
    "syn_received",
    "syn_sent",
    "time_wait",
]


def pseudo(src: bytes, dst: bytes, size: int) -> bytes:
    """The pseudo-header of a segment of `size` bytes."""
    return pseudo_header(Ipv4(src=src, dst=dst) if len(src) == 4 else Ipv6(src=src, dst=dst), 6, size)
