"""What became of a script, and how that is told."""

from __future__ import annotations

import dataclasses
import enum

from tunstack.testing.packetdrill.language.errors import Position, ScriptError

WHOLE_SCRIPT = Position(0, 0)
"""The place of what is about no line of a script."""


class Verdict(enum.Enum):
    """How a script ended."""

    PASSED = "passed"
    FAILED = "failed"
    """The stack did not do what the script expects."""
    ERROR = "error"
    """The script could not be run: it is not in the language, or asks for what is not supported."""


class Failure(Exception):
    """An event did not go as the script says.

    Attributes:
        kind: "packet", "syscall" or "code", as in `--non_fatal`.
        expected, actual: what was expected and what came, in the words of the language; may be empty.
        hints: what differs, a line each.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        expected: str = "",
        actual: str = "",
        hints: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.expected = expected
        self.actual = actual
        self.hints = hints


@dataclasses.dataclass(slots=True)
class Result:
    """The outcome of one script.

    Attributes:
        position, source: of the event that failed, or where the error is.
        expected, actual, hints: as in `Failure`.
        notes: what was accepted without effect, or failed without being fatal.
        duration: seconds of virtual time.
    """

    path: str
    verdict: Verdict = Verdict.PASSED
    position: Position = WHOLE_SCRIPT
    source: str = ""
    message: str = ""
    expected: str = ""
    actual: str = ""
    hints: tuple[str, ...] = ()
    notes: list[str] = dataclasses.field(default_factory=list)
    duration: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the stack did all that the script expects."""
        return self.verdict is Verdict.PASSED

    def fail(self, failure: Failure, position: Position, source: str) -> None:
        """The event at `position` failed."""
        self.verdict = Verdict.FAILED
        self.position, self.source = position, source
        self.message = failure.message
        self.expected, self.actual, self.hints = failure.expected, failure.actual, failure.hints

    def reject(self, error: ScriptError, source: str = "") -> None:
        """The script cannot be run."""
        self.verdict = Verdict.ERROR
        self.position, self.source = error.position, source
        self.message = error.message


def report(result: Result) -> str:
    """The result in a few lines, of which the first says all that a list of many needs."""
    place = result.path
    if result.position.line:
        # Of a failed event the line is enough; in a text that is no script the column says where.
        column = f":{result.position.column}" if result.verdict is Verdict.ERROR else ""
        place += f":{result.position.line}{column}"
    lines = [f"{place}: {result.verdict.value}" + (f": {result.message}" if result.message else "")]
    if result.source:
        lines.append(f"    {result.source}")
    if result.expected:
        lines.append(f"  expected  {result.expected}")
    if result.actual:
        lines.append(f"  actual    {result.actual}")
    lines += [f"  differs   {hint}" for hint in result.hints]
    lines += [f"  note      {note}" for note in result.notes]
    return "\n".join(lines)


def summary(results: list[Result]) -> str:
    """The closing line: how many passed, failed, and could not be run."""
    counts = {verdict: sum(result.verdict is verdict for result in results) for verdict in Verdict}
    text = f"{counts[Verdict.PASSED]} passed, {counts[Verdict.FAILED]} failed"
    errors = counts[Verdict.ERROR]
    return text + (f", {errors} error{'s' if errors > 1 else ''}" if errors else "")
