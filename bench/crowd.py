"""A gateway as a program of the library makes it, with room for a crowd: `crowd.py MTU PID [PROFILE]`.

A process of its own, so that its memory is that of a gateway. Ends with SIGTERM, and leaves in the file
PROFILE, if that is given, what cProfile saw from the moment the guest was attached.
"""

from __future__ import annotations

import cProfile
import resource
import signal
import sys

import trio

import tunstack
from tunstack.gateway.plan import AddressPlan
from tunstack.limits import Limits

ROOM = 11_000
"""Flows; a descriptor each."""


async def main(mtu: int, pid: int, profile: str | None) -> None:
    """Serve the namespace of process `pid`."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    limits = Limits(flows=ROOM, connections=ROOM)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        plan = AddressPlan.from_subnet(mtu=mtu)
        async with tunstack.open_gateway(plan, limits=limits, allow_host=True) as gateway:
            await gateway.attach_namespace(pid)
            profiler = cProfile.Profile()
            if profile is not None:
                profiler.enable()
            async for _ in signals:
                break
            if profile is not None:
                profiler.disable()
                profiler.dump_stats(profile)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if sys.argv[3:] else None)
