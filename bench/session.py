"""What the benchmarks share while they measure: samples, failures, and the turns of the peers.

In a round every peer has its turn before any has its next, so that what slows the machine for a while slows
all of them alike. All gateways of one MTU are up at once; those that have no turn are idle.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from bench.load import Load
from bench.peers import Peer, speaks, start
from bench.sample import METRICS, Case, Sample
from bench.sandbox import BenchError

LAST_WORDS = 2000
"""Characters of what a gateway that ended by itself has said."""
PATIENCE = 3
"""Failures in succession after which a peer is left out until its next start."""
SETTLE = 0.05
"""Seconds between two turns, in which the last packets of the one drain."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan(abc.ABC):
    """What all benchmarks have in common: `seconds` of one turn, peers by name, IP versions."""

    rounds: int
    seconds: float
    peers: tuple[str, ...]
    families: tuple[int, ...]

    @property
    @abc.abstractmethod
    def estimate(self) -> float:
        """Seconds that it takes."""


class Session:
    """One run: where samples and failures go.

    Attributes:
        samples, errors: what was measured, and a sentence for each turn or peer that failed.
        notes: a sentence for each peer that cannot do something.
        load: the load generator.
    """

    def __init__(self, load: Load, progress: Callable[[str], None]) -> None:
        self.load = load
        self.progress = progress
        self.samples: list[Sample] = []
        self.errors: list[str] = []
        self.notes: list[str] = []

    def failed(self, what: str, error: BenchError) -> None:
        """Note a failure."""
        self.errors.append(f"{what}: {error}")
        self.progress(f"failed: {self.errors[-1]}")

    def note(self, sentence: str) -> None:
        """Note what a peer cannot do, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            self.progress(sentence)

    def add(self, benchmark: str, case: Case, peer: str, number: int, values: Mapping[str, float]) -> None:
        """Note a turn."""
        self.samples.append(
            Sample(benchmark=benchmark, case=case, peer=peer, round=number, values=dict(values))
        )
        self.progress(f"{benchmark} {words(case)} round {number} {peer:<12} {figures(values)}")

    def turn(
        self, benchmark: str, case: Case, peer: str, number: int, measure: Callable[[], Mapping[str, float]]
    ) -> bool:
        """Measure and note; whether it worked."""
        try:
            self.add(benchmark, case, peer, number, measure())
        except BenchError as error:
            self.failed(f"{benchmark} {words(case)}, {peer}, round {number}", error)
            return False
        return True


class Field:
    """The peers of one benchmark at one MTU, all of them up; a context manager."""

    def __init__(self, session: Session, benchmark: str, names: tuple[str, ...], mtu: int) -> None:
        self._session = session
        self._benchmark = benchmark
        self._names = names
        self._mtu = mtu
        self._peers: dict[str, Peer] = {}
        self._failures: dict[str, int] = {}
        self._speaks: dict[tuple[str, int], bool] = {}

    def __enter__(self) -> Field:
        for name in self._names:
            self._session.progress(f"{self._benchmark}: MTU {self._mtu}: starting {name}")
            self._start(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._peers):
            said = self._stop(name)
            if (share := fast_path_share(said)) is not None:
                case: Case = (("of", self._benchmark), ("mtu", self._mtu))
                self._session.add("share", case, name, 1, {"share": share})

    def rounds(
        self, case: Case, rounds: int, family: int, measure: Callable[[str, Peer], Mapping[str, float]]
    ) -> None:
        """The turns of one case: `measure` is called with a name and a peer that speaks IP `family`."""
        for number in range(1, rounds + 1):
            for name in self._names:
                peer = self._ready(name, family)
                if peer is not None:
                    self._turn(case, number, name, peer, measure)

    def _turn(
        self,
        case: Case,
        number: int,
        name: str,
        peer: Peer,
        measure: Callable[[str, Peer], Mapping[str, float]],
    ) -> None:
        worked = self._session.turn(self._benchmark, case, name, number, lambda: measure(name, peer))
        time.sleep(SETTLE)
        self._failures[name] = 0 if worked else self._failures.get(name, 0) + 1
        if self._failures[name] >= PATIENCE:
            self._session.failed(
                name, BenchError(f"left out of {self._benchmark} at MTU {self._mtu} from here")
            )
            self._stop(name)

    def _ready(self, name: str, family: int) -> Peer | None:
        peer = self._peers.get(name)
        if peer is not None and not peer.alive:
            said = self._stop(name)[-LAST_WORDS:] or "nothing"
            self._session.failed(
                name, BenchError(f"ended by itself and is started again; it said last: {said}")
            )
            peer = self._start(name)
        if peer is None or not self._can(name, peer, family):
            return None
        return peer

    def _can(self, name: str, peer: Peer, family: int) -> bool:
        key = (name, family)
        if key not in self._speaks:
            self._speaks[key] = speaks(peer, family)
            if not self._speaks[key]:
                self._session.note(
                    f"{name} is left out of {self._benchmark} by IPv{family}: it gave no route"
                )
        return self._speaks[key]

    def _start(self, name: str) -> Peer | None:
        try:
            self._peers[name] = start(name, self._mtu)
        except BenchError as error:
            self._session.failed(f"{name}, MTU {self._mtu}", error)
            return None
        return self._peers[name]

    def _stop(self, name: str) -> str:
        with contextlib.suppress(BenchError):
            return self._peers.pop(name).close()
        return ""


_TCP = re.compile(r"(\d+) segments in, (\d+) out,.* (\d+) by the fast path")


def fast_path_share(said: str) -> float | None:
    """The share of segments that the fast path carried, from what `tunstack -v` says in the end."""
    found = _TCP.findall(said)
    if not found:
        return None
    segments_in, segments_out, fast = map(int, found[-1])
    return fast / (segments_in + segments_out) if segments_in + segments_out else None


def words(case: Case) -> str:
    """A case in words: "mtu 1500, up, 8 flows"."""
    return ", ".join(value if isinstance(value, str) else f"{name} {value}" for name, value in case)


def figures(values: Mapping[str, float]) -> str:
    """Values as the tables show them, on one line."""
    return ", ".join(
        f"{value * METRICS[name].scale:.4g} {METRICS[name].unit}" for name, value in values.items()
    )
