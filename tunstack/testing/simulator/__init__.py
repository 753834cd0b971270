"""A network simulator on a virtual clock: hosts, routers and links, seeded, traced, without privileges.

`network` is where to begin, `applications` has something to run on it, `schedule` impairs chosen packets,
`trace` shows what happened, and `driver` runs it all under trio.
"""

from tunstack.testing.simulator.applications import Client, Crowd, Server, Transfer, ramp
from tunstack.testing.simulator.host import Host
from tunstack.testing.simulator.link import Direction, Link, What
from tunstack.testing.simulator.network import Network
from tunstack.testing.simulator.router import Router
from tunstack.testing.simulator.schedule import Impairment, Schedule
from tunstack.testing.simulator.station import Node, Station
from tunstack.testing.simulator.trace import Capture, Digest, TextTrace

__all__ = [
    "Capture",
    "Client",
    "Crowd",
    "Digest",
    "Direction",
    "Host",
    "Impairment",
    "Link",
    "Network",
    "Node",
    "Router",
    "Schedule",
    "Server",
    "Station",
    "TextTrace",
    "Transfer",
    "What",
    "ramp",
]
