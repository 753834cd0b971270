"""What a script can do wrong, and where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a script; lines and columns count from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


class ScriptError(Exception):
    """The script is not in the language, or asks for what is not supported: `position` says where."""

    def __init__(self, message: str, position: Position, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.position = position
        self.path = path

    def __str__(self) -> str:
        place = f"{self.path}:{self.position}" if self.path else str(self.position)
        return f"{place}: {self.message}"


class UnsupportedSyntax(ScriptError):
    """The construct is in the published grammar, but means nothing here."""
