"""A scripted peer of a TCP: of a `Stack` of this project in virtual time, or of a Linux kernel in real time.

    peer = Starters(StackPeer).established(mss=536)
    peer.write(b"hello")
    peer.expect("A", seq=1, ack=1, data=b"hello")

See `Peer` for what a script can do. Both devices take the same scripts as far as these need no inside view.
"""

from tunstack.testing.peer.conversation import PEER_PORT, STACK_PORT, Peer, ramp
from tunstack.testing.peer.on_linux import LinuxPeer
from tunstack.testing.peer.on_stack import StackPeer
from tunstack.testing.peer.starters import RCV_NXT, SND_NXT, Starters
from tunstack.testing.peer.wire import Numbers, Wire

__all__ = [
    "PEER_PORT",
    "RCV_NXT",
    "SND_NXT",
    "STACK_PORT",
    "LinuxPeer",
    "Numbers",
    "Peer",
    "StackPeer",
    "Starters",
    "Wire",
    "ramp",
]
