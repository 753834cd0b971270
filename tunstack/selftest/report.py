"""What was tried, and how it went."""

from __future__ import annotations

import dataclasses
import enum
import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterator

import tunstack
from tunstack import native

WIDTH = 26


class State(enum.Enum):
    """How a check went."""

    OK = "ok"
    ABSENT = "not there"
    """The machine does not have it, and what needs it cannot be used; nothing is broken."""
    FAILED = "FAILED"


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried.

    Attributes:
        what: a few words.
        state: how it went.
        detail: what was found, or what to do about it; one sentence.
    """

    what: str
    state: State
    detail: str

    def __str__(self) -> str:
        return f"  {self.state.value:<10} {self.what:<{WIDTH}} {self.detail}".rstrip()


class Report:
    """All checks, each told as soon as it is known."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.checks: list[Check] = []
        self._tell = tell

    def add(self, what: str, state: State, detail: str = "") -> None:
        """Note a check."""
        check = Check(what, state, detail)
        self.checks.append(check)
        self._tell(str(check))

    def attempt(self, what: str, function: Callable[[], str], absent: State = State.ABSENT) -> bool:
        """Note what `function` finds; an OSError of it is the state `absent`."""
        try:
            detail = function()
        except OSError as error:
            self.add(what, absent, error.strerror or str(error))
            return False
        self.add(what, State.OK, detail)
        return True

    def count(self, state: State) -> int:
        """How many went so."""
        return sum(check.state is state for check in self.checks)

    def summary(self) -> str:
        """The last line."""
        return ", ".join(f"{self.count(state)} {state.value}" for state in State)


def heading() -> Iterator[str]:
    """What runs here, in lines."""
    yield f"tunstack {tunstack.__version__} ({native.describe_build()})"
    names = ("trio", "cffi", "click")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    yield f"{platform.python_implementation()} {platform.python_version()}, {versions}"
    yield f"{platform.platform()}, {platform.machine()}, {sys.maxsize.bit_length() + 1} bits"
