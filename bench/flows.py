"""Idle flows: the memory of each, and how much longer a request takes beside them (tunstack only).

Each round has a gateway of its own, with more room than the command has: `crowd.py`. The client opens
the connections, makes one request on each, and is silent.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

from bench.load import PORT, wait_ready
from bench.peers import Crowd
from bench.requests import MTU
from bench.sample import Case
from bench.sandbox import SERVER_ADDRESS, resident
from bench.session import Plan, Session

PEER = "tunstack"
_PAUSE = 1.0
"""Seconds in which a gateway that has become idle comes to rest."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CrowdPlan(Plan):
    """And: idle flows."""

    idle: tuple[int, ...]

    @property
    def estimate(self) -> float:
        """Seconds that it takes."""
        turns = self.rounds * sum(2 * self.seconds * 1.1 + 2 * _PAUSE + 1.5 + n / 1500 for n in self.idle)
        return turns if PEER in self.peers else 0


def measure(plan: CrowdPlan, session: Session) -> None:
    """Carry out `plan`."""
    if PEER not in plan.peers:
        session.progress("flows: tunstack is not among the peers")
        return
    with session.load.serving(SERVER_ADDRESS):
        for number in range(1, plan.rounds + 1):
            for idle in plan.idle:
                case: Case = (("idle flows", idle),)

                def turn(idle: int = idle) -> Mapping[str, float]:
                    return _turn(plan, session, idle)

                session.turn("flows", case, PEER, number, turn)


def _turn(plan: CrowdPlan, session: Session, idle: int) -> dict[str, float]:
    load = session.load
    gateway = Crowd(MTU)
    try:
        assert gateway.pid is not None

        def request_time() -> float:
            words = ("requests", SERVER_ADDRESS, PORT, 1, plan.seconds)
            return load.run(gateway.guest, *words, seconds=plan.seconds * 1.1)["p50"]

        alone = request_time()
        time.sleep(_PAUSE)
        before = resident(gateway.pid)
        with load.running(gateway.guest, "hold", SERVER_ADDRESS, PORT, idle) as crowd:
            wait_ready(crowd)
            time.sleep(_PAUSE)
            after = resident(gateway.pid)
            beside = request_time()
    finally:
        gateway.close()
    return {"bytes_per_flow": max(0, after - before) / idle, "slowdown": beside / alone, "p50": beside}
