"""A guest behind `tunstack agent`, with frames of the MTU and with whole trains, beside a TAP and gvproxy.

One flow of iperf3 as in `throughput`. The CPU is the gateway's alone, as it is gvproxy's without gvforwarder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import throughput
from bench.framed import MTU, TAP
from bench.peers import Gateway, Peer, missing, start
from bench.sample import Case
from bench.sandbox import BenchError, wait_until
from bench.session import Plan, Session

DIRECTIONS = ("up", "down")
LINKS = ("plain", "headers")
"""Frames without headers, as gvproxy has them, and with."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlan(Plan):
    """And: directions, links."""

    directions: tuple[str, ...]
    links: tuple[str, ...]

    @property
    def estimate(self) -> float:
        """Seconds that it takes."""
        turns = self.rounds * len(self.directions) * len(self.links) * (1 + len(_others(self.peers)))
        return turns * (throughput.whole(self.seconds) + 0.5) + 4


class AgentGateway(Gateway):
    """`tunstack gateway` at a UNIX socket, and an agent in the guest, which is left out of the CPU time."""

    def __init__(self, mtu: int, link: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-agent-")
        self._url = f"unix://{self._folder.name}/link"
        self._options = ("--plain",) if link == "plain" else ()
        super().__init__(mtu)

    def command(self, mtu: int, pid: int) -> list[str]:
        """See `Gateway`."""
        options = ("--allow-host", "--mtu", str(mtu), "--listen", self._url)
        return [sys.executable, "-m", "tunstack", "gateway", *options]

    def spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        """The gateway, and the agent once it listens."""
        process = super().spawn(command)
        try:
            listens = Path(self._folder.name, "link")
            wait_until(lambda: listens.exists() or process.poll() is not None, 20, "no socket of the link")
            words = ("-m", "tunstack", "agent", "--connect", self._url, "--resolv-conf", "none")
            self.spawn_beside(self.guest.command(sys.executable, *words, *self._options))
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    def close(self) -> str:
        """See `Gateway`."""
        said = super().close()
        self._folder.cleanup()
        return said


def _others(peers: tuple[str, ...]) -> dict[str, str]:
    """What the agent is compared with, by the name in the tables."""
    return {TAP: "tunstack", **({"gvproxy": "gvproxy"} if "gvproxy" in peers else {})}


def measure(plan: AgentPlan, session: Session) -> None:
    """Carry out `plan`."""
    if "tunstack" not in plan.peers:
        return
    with contextlib.ExitStack() as stack:
        others: dict[str, Peer] = {}
        for name, peer in _others(plan.peers).items():
            if missing(peer) is None:
                others[name] = started = start(peer, MTU)
                stack.callback(started.close)
        for link in plan.links:
            try:
                agent = AgentGateway(MTU, link)
            except BenchError as error:
                session.failed(f"agent, {link}", error)
                continue
            stack.callback(agent.close)
            for direction in plan.directions:
                _rounds(plan, session, link, direction, {"tunstack": agent, **others})


def _rounds(plan: AgentPlan, session: Session, link: str, direction: str, peers: dict[str, Peer]) -> None:
    case: Case = (("mtu", MTU), ("link", link), ("direction", direction))
    for number in range(1, plan.rounds + 1):
        for name, peer in peers.items():
            session.turn(
                "agent",
                case,
                name,
                number,
                lambda: throughput.transfer(plan.seconds, peer, 4, 1, direction),  # noqa: B023  called at once
            )
