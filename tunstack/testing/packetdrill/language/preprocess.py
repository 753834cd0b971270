"""`#define`, `#ifdef`, `#ifndef`, `#else`, `#endif`, `#undef` and comments that begin with `#`.

Lines that are left out become empty ones, so that positions stay those of the file. A definition holds for
the whole script; those of the command line (`-D NAME=value`) win over `#define` in the script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tunstack.testing.packetdrill.language.errors import Position, ScriptError, UnsupportedSyntax

_DIRECTIVE = re.compile(
    r"[ \t]*#[ \t]*(define|undef|ifdef|ifndef|else|endif|include|if|elif)\b[ \t]*(.*)", re.S
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_COMMENT = re.compile(r"[ \t]*(?://.*)?\Z", re.S)
_OPENERS = re.compile(
    r'^[ \t]*#[^\n]*|//[^\n]*|/\*.*?\*/|%\{.*?\}%|"(?:\\.|[^"\\])*"|`(?:\\.|[^`\\])*`', re.S | re.M
)


def parse_definition(text: str) -> tuple[str, str]:
    """`NAME=value`, or `NAME` alone for 1, as after `-D`. Raises ValueError with a sentence."""
    name, separator, value = text.partition("=")
    if not _NAME.match(name):
        raise ValueError(f"{name!r} is no name for a definition")
    return name, value if separator else "1"


def preprocess(
    text: str, definitions: Mapping[str, str] | None = None, path: str = ""
) -> tuple[str, dict[str, str]]:
    """`text` without directives and what they left out, and all definitions.

    Raises:
        ScriptError: a directive is malformed, or an `#ifdef` is not closed.
    """
    given = dict(definitions or {})
    return _Preprocessor(given, path).run(text)


class _Preprocessor:
    def __init__(self, given: dict[str, str], path: str) -> None:
        self._given = given
        self._defined = dict(given)
        self._path = path
        self._open: list[tuple[Position, bool, bool]] = []
        """For each `#ifdef` that is open: where, whether its lines count, whether `#else` was seen."""

    def run(self, text: str) -> tuple[str, dict[str, str]]:
        quoted = _quoted_lines(text)
        kept = []
        for number, line in enumerate(text.split("\n"), 1):
            stripped = line.lstrip()
            if stripped.startswith("#") and number not in quoted:
                self._hash_line(line, Position(number, len(line) - len(stripped) + 1))
                kept.append("")
            else:
                kept.append(line if self._active() else "")
        if self._open:
            raise ScriptError("this condition has no #endif", self._open[-1][0], self._path)
        return "\n".join(kept), self._defined

    def _active(self) -> bool:
        return all(active for _, active, _ in self._open)

    def _hash_line(self, line: str, position: Position) -> None:
        match = _DIRECTIVE.match(line)
        if match is None:
            return  # a comment
        name, rest = match.group(1), match.group(2).strip()
        if name in ("ifdef", "ifndef"):
            symbol = self._symbol(rest, position)
            self._open.append((position, (symbol in self._defined) is (name == "ifdef"), False))
        elif name in ("else", "endif"):
            self._close(name, rest, position)
        elif not self._active():
            return
        elif name == "define":
            symbol, _, value = rest.partition(" ")
            symbol = self._symbol(symbol, position)
            if symbol not in self._given:
                self._defined[symbol] = value.strip()
        elif name == "undef":
            self._defined.pop(self._symbol(rest, position), None)
        else:
            raise UnsupportedSyntax(f"#{name} is not supported", position, self._path)

    def _close(self, name: str, rest: str, position: Position) -> None:
        if not _COMMENT.match(rest):
            raise ScriptError(f"nothing may follow #{name}", position, self._path)
        if not self._open:
            raise ScriptError(f"#{name} without #ifdef", position, self._path)
        opened, active, had_else = self._open.pop()
        if name == "endif":
            return
        if had_else:
            raise ScriptError("a second #else for one #ifdef", position, self._path)
        self._open.append((opened, not active, True))

    def _symbol(self, text: str, position: Position) -> str:
        name = text.split("//")[0].strip()
        if not _NAME.match(name):
            raise ScriptError(f"expected a name, not {name!r}", position, self._path)
        return name


def _quoted_lines(text: str) -> set[int]:
    """Lines that begin within a comment, a string, a command or code, where `#` is text."""
    inside: set[int] = set()
    line, offset = 1, 0
    for match in _OPENERS.finditer(text):
        line += text.count("\n", offset, match.start())
        breaks = text.count("\n", match.start(), match.end())
        inside.update(range(line + 1, line + breaks + 1))
        line += breaks
        offset = match.end()
    return inside
