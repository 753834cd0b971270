"""One flow of iperf3 over a TUN, which has no Ethernet, beside the same flow over a TAP."""

from __future__ import annotations

import contextlib
import dataclasses

from bench import throughput
from bench.framed import TAP
from bench.peers import Peer, Tunstack, start
from bench.sample import Case
from bench.session import Plan, Session

DIRECTIONS = ("up", "down")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TunPlan(Plan):
    """And: MTUs in bytes, directions."""

    mtus: tuple[int, ...]
    directions: tuple[str, ...]

    @property
    def estimate(self) -> float:
        """Seconds that it takes."""
        turns = self.rounds * len(self.mtus) * len(self.directions) * len(self.families) * 2
        return turns * (throughput.whole(self.seconds) + 0.5) + 3 * len(self.mtus)


class AtTun(Tunstack):
    """tunstack with a layer-3 device."""

    def command(self, mtu: int, pid: int) -> list[str]:
        """See `Gateway`."""
        command = super().command(mtu, pid)
        return [*command[:-1], "--tun", command[-1]]


def measure(plan: TunPlan, session: Session) -> None:
    """Carry out `plan`."""
    if "tunstack" not in plan.peers:
        return
    for mtu in plan.mtus:
        with contextlib.ExitStack() as stack:
            peers: dict[str, Peer] = {"tunstack": AtTun(mtu), TAP: start("tunstack", mtu)}
            for peer in peers.values():
                stack.callback(peer.close)
            for family in plan.families:
                for direction in plan.directions:
                    case: Case = (("mtu", mtu), ("IPv", family), ("direction", direction))
                    for number in range(1, plan.rounds + 1):
                        for name, peer in peers.items():
                            session.turn(
                                "tun",
                                case,
                                name,
                                number,
                                lambda: throughput.transfer(plan.seconds, peer, family, 1, direction),  # noqa: B023  called at once
                            )
