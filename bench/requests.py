"""Small requests and responses: on connections that stay open, and on a new connection each.

128 bytes there, 1024 back, closed loop: each connection asks again when it has its answer. In `connects` the
client closes. Whether connections were really opened is checked against the counters of both kernels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path

from bench.load import PORT, Load
from bench.peers import Peer
from bench.sample import Case
from bench.sandbox import SERVER_ADDRESS, SERVER_ADDRESS6, BenchError, cpu_seconds
from bench.session import Field, Plan, Session

KINDS = ("requests", "connects")
MTU = 1500
TOLERATED = 0.01
"""Share of connections that may fail in a turn which still counts."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestPlan(Plan):
    """And: connections at once, and which of `KINDS`."""

    kind: str
    connections: tuple[int, ...]

    @property
    def estimate(self) -> float:
        """Seconds that it takes."""
        turns = len(self.families) * len(self.connections) * self.rounds * len(self.peers)
        return turns * (self.seconds * 1.1 + 0.35) + 3


def measure(plan: RequestPlan, session: Session) -> None:
    """Carry out `plan`."""
    load = session.load
    with contextlib.ExitStack() as stack:
        for family in plan.families:
            stack.enter_context(load.serving(server(family)))
        field = stack.enter_context(Field(session, plan.kind, plan.peers, MTU))
        for family, connections in itertools.product(plan.families, plan.connections):
            case: Case = (("connections", connections), ("IPv", family))

            def turn(
                _name: str, peer: Peer, family: int = family, connections: int = connections
            ) -> Mapping[str, float]:
                return _turn(load, plan, peer, family, connections)

            field.rounds(case, plan.rounds, family, turn)


def server(family: int) -> str:
    """The server's address of IP version `family`."""
    return SERVER_ADDRESS if family == 4 else SERVER_ADDRESS6


def _turn(load: Load, plan: RequestPlan, peer: Peer, family: int, connections: int) -> dict[str, float]:
    opened, accepted = _opens(peer.guest.pid, "ActiveOpens"), _opens(None, "PassiveOpens")
    before = cpu_seconds(peer.pid) if peer.pid is not None else 0.0
    found = load.run(
        peer.guest, plan.kind, server(family), PORT, connections, plan.seconds, seconds=plan.seconds * 1.1
    )
    used = cpu_seconds(peer.pid) - before if peer.pid is not None else None
    if not found["count"]:
        raise BenchError("no request was answered")
    if plan.kind == "connects":
        check_opens(
            found,
            _opens(peer.guest.pid, "ActiveOpens") - opened,
            _opens(None, "PassiveOpens") - accepted,
        )
    values = {
        "rate": found["count"] / found["seconds"],
        "p50": found["p50"],
        "p99": found["p99"],
        "p999": found["p999"],
    }
    if used is not None:
        # Of the whole run: the tenth before the counting is in `used`, too.
        all_of_it = found["count"] * (1.1 if plan.kind == "requests" else 1)
        values["cpu_each"] = used / all_of_it
    return values


def check_opens(found: Mapping[str, float], opened: int, accepted: int) -> None:
    """Raise a `BenchError` unless the kernels counted what the generator says that it did.

    Args:
        found: the generator's report: connections begun (`total`), answered (`count`), `failed`.
        opened: connections that the guest's kernel began meanwhile.
        accepted: connections that the server's kernel accepted meanwhile.
    """
    if opened < found["total"]:
        raise BenchError(f"{found['total']} connections begun, but the guest's kernel opened {opened}")
    if accepted < found["count"]:
        raise BenchError(f"{found['count']} requests answered, but the server's kernel accepted {accepted}")
    if found["failed"] > TOLERATED * found["total"]:
        raise BenchError(f"{found['failed']} of {found['total']} connections failed")


def _opens(pid: int | None, counter: str) -> int:
    return tcp_counter(Path(f"/proc/{pid or 'self'}/net/snmp").read_text(), counter)


def tcp_counter(snmp: str, name: str) -> int:
    """A counter of the row `Tcp` of /proc/net/snmp, which counts IPv6 as well."""
    names, values = (line.split() for line in snmp.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index(name)])
