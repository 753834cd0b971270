"""The simulator under trio: tasks use streams on simulated hosts, and the clock is trio's.

    async with running(network) as driver:
        listener = await driver.sockets(server).open_tcp_listener(80)
        stream = await driver.sockets(client).open_tcp_stream("10.0.0.2", 80)

With `trio.testing.MockClock(autojump_threshold=0)` the time in which nothing happens takes no time, so a
transfer over a slow link is over at once. With a real clock the network runs in real time. What is random
in the network still comes from its seed; the order of tasks that can run at the same instant is trio's, so
for runs that are equal to the byte use the applications of the simulator.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import trio

from tunstack.background import beside
from tunstack.gateway.host import HostSockets
from tunstack.testing.simulator.host import Host
from tunstack.testing.simulator.network import Network
from tunstack.testing.simulator.station import Station


class Driver:
    """Keeps the clock of `network` at trio's time. Made by `running`."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._sockets: dict[str, HostSockets] = {}
        self._scope: trio.CancelScope | None = None
        self._woken = False

    def sockets(self, host: Host) -> HostSockets:
        """The streams, listeners and UDP sockets of `host`, with the methods of a gateway's."""
        if host.name not in self._sockets:
            self._sockets[host.name] = HostSockets(
                host.stack,
                lambda: self._wake(host),
                host.services,
                addresses=host.addresses,
                peers=host.addresses,
                rng=self._network.rng(f"{host.name} sockets"),
            )
        return self._sockets[host.name]

    def wake(self, *stations: Station) -> None:
        """A task uses `stations`, all if none is named, beside the sockets: the clock is set, and what they
        have to send is seen to soon."""
        for station in stations:
            station.touch()
        if not stations:
            self._network.touch()
        self._interrupt()

    def close(self) -> None:
        """Break what tasks still hold: nobody drives it any more."""
        for sockets in self._sockets.values():
            sockets.close_sockets()

    async def run(self) -> None:
        """Let the network live until cancelled."""
        clock = self._network.clock
        while True:
            self._woken = False
            clock.run(trio.current_time())
            if self._woken:
                await trio.lowlevel.checkpoint()
                continue
            deadline = clock.next_time()
            with trio.CancelScope(deadline=float("inf") if deadline is None else deadline) as scope:
                self._scope = scope
                try:
                    await trio.sleep_forever()
                finally:
                    self._scope = None

    def _wake(self, host: Host) -> None:
        host.touch()
        self._interrupt()

    def _interrupt(self) -> None:
        # What a task has done was done now, and not when the network last had something to do.
        clock = self._network.clock
        clock.now = max(clock.now, trio.current_time())
        self._woken = True
        if self._scope is not None:
            self._scope.cancel()


@contextlib.asynccontextmanager
async def running(network: Network) -> AsyncIterator[Driver]:
    """Let `network` live as long as the block; its clock must not be ahead of trio's.

    Raises:
        ValueError: it is.
    """
    if network.now > trio.current_time():
        raise ValueError(f"the network is at {network.now} s, trio's clock at {trio.current_time()} s")
    driver = Driver(network)
    network.clock.now = trio.current_time()
    try:
        async with beside(driver.run):
            yield driver
    finally:
        driver.close()
