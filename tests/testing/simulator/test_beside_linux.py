"""Goodput beside that of Linux: CUBIC over the same lossy link in real time, at some points of the grid.

Each point has several links with equal shaping in one simulated network. Over some a Linux kernel sends, over
the others a tunstack does, all at once, so that what the machine does meanwhile meets both; a Linux kernel
receives. Whoever is slower than `LEAST` of the other does not recover from losses as it should.

    make slow PYTEST_ARGS="-s tests/testing/simulator/test_beside_linux.py"    5 minutes
"""

from __future__ import annotations

import contextlib

import pytest
import trio

from tests.testing.simulator.kernel import Kernel
from tunstack.limits import Limits
from tunstack.testing.simulator import Network
from tunstack.testing.simulator.applications import RampWriter
from tunstack.testing.simulator.driver import Driver, running
from tunstack.testing.simulator.station import Station

pytestmark = [pytest.mark.slow, pytest.mark.netns]

LEAST = 0.7
LINKS = 4
"""Links with each sender."""
SETTLING = 5.0
"""Seconds until slow start and the losses that end it are over."""
MEASURED = 25.0
PORT = 5001
ROOMY = Limits(receive_buffer=64 << 20, send_buffer=64 << 20)


class Race:
    """The links of one point, and who sends over them."""

    def __init__(self, words: tuple[str, str], resources: contextlib.ExitStack) -> None:
        self.network = Network(seed=1, start=trio.current_time())
        self.words = words
        self.resources = resources
        self.kernels: list[tuple[Kernel, Station]] = []

    def kernel(self, name: str, address: str, peer: str, *program: str) -> tuple[Kernel, Station]:
        kernel = self.resources.enter_context(Kernel(address, peer, *program))
        self.kernels.append((kernel, self.network.attach(name, kernel, address)))
        return self.kernels[-1]

    def linux(self, number: int) -> Kernel:
        """The sink of a link over which a Linux kernel sends."""
        here, there = f"10.1.{number}.1", f"10.1.{number}.2"
        sink, target = self.kernel(f"sink {number}", there, here, "sink", there, str(PORT))
        source, origin = self.kernel(f"linux {number}", here, there, "source", there, str(PORT))
        self.network.link(origin, target, *self.words)
        source.order()
        return sink

    def tunstack(self, number: int) -> Kernel:
        """The sink of a link over which a tunstack sends."""
        here, there = f"10.2.{number}.1", f"10.2.{number}.2"
        sink, target = self.kernel(f"taker {number}", there, here, "sink", there, str(PORT))
        host = self.network.host(f"tunstack {number}", here, limits=ROOMY, congestion="cubic")
        self.network.link(host, target, *self.words)
        connection = host.connect(sink.address, PORT)
        connection.owner = RampWriter(connection, float("inf"))
        return sink

    async def pump(self, driver: Driver) -> None:
        """Let the kernels' packets in, until cancelled."""
        async with trio.open_nursery() as nursery:
            for kernel, station in self.kernels:
                nursery.start_soon(kernel.pump, driver, station)


@pytest.mark.parametrize("loss", [1e-3, 1e-2, 5e-2])
@pytest.mark.parametrize("rtt", [0.02, 0.05, 0.1])
async def test_no_slower_than_linux(rtt: float, loss: float) -> None:
    with contextlib.ExitStack() as resources:
        race = Race((f"delay {rtt * 500}ms loss {loss * 100}%", f"delay {rtt * 500}ms"), resources)
        linux = [race.linux(number) for number in range(LINKS)]
        ours = [race.tunstack(number) for number in range(LINKS)]
        async with running(race.network) as driver, trio.open_nursery() as nursery:
            nursery.start_soon(race.pump, driver)
            driver.wake()
            await trio.sleep(SETTLING)
            before = [sum(sink.count() for sink in sinks) for sinks in (linux, ours)]
            await trio.sleep(MEASURED)
            after = [sum(sink.count() for sink in sinks) for sinks in (linux, ours)]
            nursery.cancel_scope.cancel()
    theirs, mine = (8 * (b - a) / MEASURED / LINKS for a, b in zip(before, after, strict=True))
    what = (
        f"{rtt * 1e3:.0f} ms, p = {loss:g}: {mine / 1e6:.2f} Mbit/s, Linux {theirs / 1e6:.2f}, "
        f"{mine / theirs:.2f} of it"
    )
    print(what)
    assert mine >= LEAST * theirs, what
