"""What the stack tells its driver: `Stack.poll_events` returns these in the order in which they happened."""

from __future__ import annotations

from tunstack.ip.icmp import EchoRequest, IcmpError
from tunstack.ip.udp import UdpDatagram
from tunstack.tcp.connection import Connection
from tunstack.tcp.listener import TcpRequest

Event = TcpRequest | Connection | UdpDatagram | EchoRequest | IcmpError
"""A `Connection` among them has made progress of any kind and stands there at most once."""
