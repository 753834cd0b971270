"""The framed link, which has no offload: one flow of a guest made of frames, beside TAPs of the same MTU.

The guest is the load generator (`load_link.c`): no kernel, no copy but the socket's. The TAPs are served and
measured as in `throughput`. "Across" is a flow to another such guest at the same gateway, beside what goes
up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench import throughput
from bench.load import Load, wait_ready
from bench.peers import Peer, Program, start
from bench.sample import Case
from bench.sandbox import SERVER_ADDRESS, BenchError, cpu_seconds, wait_until
from bench.session import Plan, Session, fast_path_share

MTU = 1500
DIRECTIONS = ("up", "down", "across")
TAP = "tunstack at a TAP"
"""What the link is compared with, in the place of a peer's name."""
UP = "tunstack, up"
"""And what a flow from guest to guest is compared with."""
_PEER_ADDRESS = "192.168.127.3"
_PORT = 7008
_Turn = Callable[[str], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FramedPlan(Plan):
    """And: directions."""

    directions: tuple[str, ...]

    @property
    def estimate(self) -> float:
        """Seconds that it takes."""
        across = "across" in self.directions
        turns = self.rounds * ((len(self.directions) - across) * (1 + len(_taps(self.peers))) + 2 * across)
        return turns * (throughput.whole(self.seconds) + 0.3) + 3


def _taps(peers: tuple[str, ...]) -> dict[str, str]:
    """Peers at a TAP, by the name in the tables."""
    return {TAP: "tunstack", **{name: name for name in ("slirp4netns",) if name in peers}}


def measure(plan: FramedPlan, session: Session) -> None:
    """Carry out `plan`."""
    if "tunstack" not in plan.peers:
        return
    with contextlib.ExitStack() as stack:
        turns: dict[str, _Turn] = {}
        link = stack.enter_context(_link(session))
        turns["tunstack"] = lambda way: _transfer(session.load, link, plan.seconds, way)
        for name, peer in _taps(plan.peers).items():
            try:
                turns[name] = _at_tap(plan.seconds, stack.enter_context(_started(peer)))
            except BenchError as error:
                session.failed(f"framed, {name}", error)
        for direction in plan.directions:
            case: Case = (("mtu", MTU), ("direction", direction))
            for number in range(1, plan.rounds + 1):
                for name, turn in _turns(turns, direction).items():
                    session.turn("framed", case, name, number, lambda: turn(direction))  # noqa: B023  called at once


def _turns(turns: Mapping[str, _Turn], direction: str) -> Mapping[str, _Turn]:
    """What is measured in `direction`, by name."""
    if direction != "across":
        return turns
    own = turns["tunstack"]
    return {"tunstack": own, UP: lambda way: own("up")}


@contextlib.contextmanager
def _started(name: str) -> Iterator[Peer]:
    peer = start(name, MTU)
    try:
        yield peer
    finally:
        peer.close()


def _at_tap(seconds: float, peer: Peer) -> _Turn:
    return lambda way: throughput.transfer(seconds, peer, 4, 1, way)


class _Link(Program):
    """A gateway that listens for a machine at `path`."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        options = ("-v", "--allow-host", "--mtu", str(MTU), "--listen", f"qemu+unix://{path}")
        self._process = self.spawn([sys.executable, "-m", "tunstack", "gateway", *options])
        self.pid = self._process.pid

    def is_ready(self) -> bool:
        """Whether it listens; `BenchError` if it has ended."""
        self.check_alive()
        return os.path.exists(self.path)


@contextlib.contextmanager
def _link(session: Session) -> Iterator[_Link]:
    """A gateway that listens for a machine, and the server that its guest speaks with."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-framed-") as folder,
        session.load.running(None, "link-serve", SERVER_ADDRESS, _PORT) as server,
    ):
        link = _Link(str(Path(folder, "link.sock")))
        try:
            wait_ready(server)
            wait_until(link.is_ready, 20, "no socket of the link")
            yield link
        finally:
            said = link.close()
        if (share := fast_path_share(said)) is not None:
            session.add("share", (("of", "framed"), ("mtu", MTU)), "tunstack", 1, {"share": share})


def _transfer(load: Load, link: _Link, seconds: float, direction: str) -> Mapping[str, float]:
    before = cpu_seconds(link.pid)
    with contextlib.ExitStack() as stack:
        address, way = SERVER_ADDRESS, direction
        if direction == "across":
            wait_ready(stack.enter_context(load.running(None, "link-peer", link.path)))
            address, way = _PEER_ADDRESS, "up"
        found = load.run(None, "link-guest", address, _PORT, link.path, way, seconds, seconds=seconds)
    used = cpu_seconds(link.pid) - before
    if not found["bytes"]:
        raise BenchError("the generator moved no byte")
    return {
        "bits_per_second": found["bytes"] * 8 / found["seconds"],
        "cpu_per_gb": used * 1e9 / found["bytes"],
    }
