"""A gateway as a program of the library makes it, with room for a crowd of flows: `crowd.py MTU PID`.

A process of its own, so that its memory is that of a gateway. Ends with SIGTERM.
"""

from __future__ import annotations

import resource
import signal
import sys

import trio

import tunstack
from tunstack.gateway.plan import AddressPlan
from tunstack.limits import Limits

ROOM = 11_000
"""Flows; a descriptor each."""


async def main(mtu: int, pid: int) -> None:
    """Serve the namespace of process `pid`."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    limits = Limits(flows=ROOM, connections=ROOM)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        plan = AddressPlan.from_subnet(mtu=mtu)
        async with tunstack.open_gateway(plan, limits=limits, allow_host=True) as gateway:
            await gateway.attach_namespace(pid)
            async for _ in signals:
                break


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
