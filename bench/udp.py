"""Datagrams: the highest rate of which the receiver gets all but one in a thousand."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

from bench.load import Load, result, wait_ready
from bench.peers import Peer
from bench.requests import server
from bench.sample import Case
from bench.search import highest
from bench.session import Field, Plan, Session

MTU = 1500
DIRECTIONS = ("up", "down")
LOSS = 0.001
"""Share of the datagrams that may be lost."""
TRIES = 2
"""A rate fails if it does so often in succession: one hiccup of the machine is none of the peer's."""
STEPS = 10
"""A search takes about so many steps, which share the seconds of a turn."""
CEILING = 4e6
"""Packets a second; beyond what the generator can do."""
_START = 20_000.0
_PORTS = itertools.cycle(range(20_000, 30_000))
"""A new one each time: nothing that is late gets into the next step."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UdpPlan(Plan):
    """And: payload sizes in bytes, directions; `seconds` are those of one search."""

    sizes: tuple[int, ...]
    directions: tuple[str, ...]

    @property
    def estimate(self) -> float:
        """Seconds that it takes."""
        turns = len(self.sizes) * len(self.directions) * len(self.families) * self.rounds * len(self.peers)
        return turns * (self.seconds * 1.3 + STEPS * 0.15) + 3

    @property
    def step(self) -> float:
        """Seconds of one step."""
        return max(0.02, self.seconds / STEPS)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What one step found: datagrams, and the seconds in which they were sent."""

    sent: float
    received: float
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether few enough were lost."""
        return self.sent > 0 and self.received >= (1 - LOSS) * self.sent


def measure(plan: UdpPlan, session: Session) -> None:
    """Carry out `plan`."""
    known: dict[tuple[str, Case], float] = {}
    with Field(session, "udp", plan.peers, MTU) as field:
        for family, size, direction in itertools.product(plan.families, plan.sizes, plan.directions):
            case: Case = (("size", size), ("direction", direction), ("IPv", family))

            def turn(
                name: str,
                peer: Peer,
                family: int = family,
                size: int = size,
                direction: str = direction,
                case: Case = case,
            ) -> Mapping[str, float]:
                def attempt(rate: float) -> float | None:
                    for _ in range(TRIES):
                        step = _step(session.load, peer, server(family), direction, size, rate, plan.step)
                        if step.passed:
                            return step.sent / step.seconds
                    return None

                last = known.get((name, case), 0.0)
                found = highest(
                    attempt, start=last or _START, growth=1.4 if last else 4.0, ceiling=ceiling(plan.step)
                )
                known[name, case] = found
                return {"packets_per_second": found}

            field.rounds(case, plan.rounds, family, turn)


def ceiling(step: float) -> float:
    """Packets a second at the most: the receiver tells so many apart in one step of `step` seconds."""
    return min(CEILING, (1 << 24) / step - 1)


def _step(
    load: Load, peer: Peer, address: str, direction: str, size: int, rate: float, seconds: float
) -> Step:
    port = next(_PORTS)
    sends = ("udp-send", ("to" if direction == "up" else "at"), address, port, size, f"{rate:.0f}", seconds)
    receives = ("udp-receive", ("at" if direction == "up" else "to"), address, port, size)
    guest_side, host_side = (sends, receives) if direction == "up" else (receives, sends)
    with load.running(None, *host_side) as host:
        wait_ready(host)
        with load.running(peer.guest, *guest_side) as guest:
            inside, outside = result(guest, seconds + 10), result(host, seconds + 10)
    sent, received = (inside, outside) if direction == "up" else (outside, inside)
    return Step(sent["sent"], received["received"], max(sent["seconds"], 1e-6))
