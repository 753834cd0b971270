"""The lexer: text to tokens, each with its position. Total: any text gives tokens or a `ScriptError`.

The longest token wins, as in the published lexer, so `5e1f` (a cookie) is a word though it begins like a
number. Symbols that were defined (`-D NAME=value`, `#define`) are replaced by the tokens of their value,
which take the position of the name.
"""

from __future__ import annotations

import bisect
import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tunstack.testing.packetdrill.language.errors import Position, ScriptError


class Kind(enum.Enum):
    """What a token is; the value is how a message calls it."""

    OPTION = "an option (--name=value)"
    INTEGER = "a number"
    HEX = "a hexadecimal number"
    FLOAT = "a time"
    WORD = "a word"
    STRING = "a string"
    COMMAND = "a command in back-quotes"
    CODE = "%{ code }%"
    ELLIPSIS = "'...'"
    ADDRESS = "an IP address"
    MARK = "a mark"
    END = "the end of the script"


@dataclass(frozen=True, slots=True)
class Token:
    """`text` is what was written, without the quotes of strings, commands and code (escapes resolved)."""

    kind: Kind
    text: str
    position: Position
    spaced: bool = False
    """White space stands before it."""

    def __str__(self) -> str:
        if self.kind is Kind.END:
            return str(self.kind.value)
        if self.kind in (Kind.STRING, Kind.COMMAND, Kind.CODE):
            return str(self.kind.value)
        return f"'{self.text}'"


_SPACE = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)+", re.S)
_RULE = re.compile(
    r"""
      %\{(?P<CODE>.*?)\}%
    | "(?P<STRING>(?:\\.|[^"\\])*)"
    | `(?P<COMMAND>(?:\\.|[^`\\])*)`
    | (?P<OPTION>--[A-Za-z0-9_]+)
    | (?P<ELLIPSIS>\.\.\.)
    | (?P<ADDRESS>[0-9]+(?:\.[0-9]+){3}(?![0-9]))
    | (?P<FLOAT>-?[0-9]*\.[0-9]+)
    | (?P<HEX>0[xX][0-9a-fA-F]+(?![A-Za-z0-9_]))
    | (?P<INTEGER>-[0-9]+|[0-9]+(?![A-Za-z0-9_]))
    | (?P<WORD>[A-Za-z0-9_]+)
    | (?P<MARK>[-+*~<>.,:;()\[\]{}=|/&!])
    """,
    re.S | re.X | re.A,
)
_OPTION_VALUE = re.compile(r'[ \t]*=[ \t]*((?:[A-Za-z0-9_]+=)?"(?:\\.|[^"\\\n])*"|[^\s"]+)')
_UNTERMINATED = {'"': "string", "`": "command", "%": "code"}
_LONGEST_NUMBER = 40
"""Digits: no number of the language has more, and Python's limit on conversions is far away."""


class Lines:
    """Offsets in a text to positions."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def position(self, offset: int) -> Position:
        """The line and column of `offset`."""
        line = bisect.bisect_right(self._starts, offset)
        return Position(line, offset - self._starts[line - 1] + 1)


def tokenize(text: str, definitions: Mapping[str, str] | None = None, path: str = "") -> list[Token]:
    """The tokens of `text`, closed by one of kind END.

    Raises:
        ScriptError: at the first character that no token begins with, or a quote that is not closed.
    """
    values = {name: _definition(name, value, path) for name, value in (definitions or {}).items()}
    tokens: list[Token] = []
    for token in _scan(text, path):
        if token.kind is Kind.WORD and token.text in values:
            tokens.extend(
                Token(part.kind, part.text, token.position, part.spaced or (index == 0 and token.spaced))
                for index, part in enumerate(values[token.text])
            )
        else:
            tokens.append(token)
    return tokens


def _definition(name: str, value: str, path: str) -> list[Token]:
    try:
        return [token for token in _scan(value, path) if token.kind is not Kind.END]
    except ScriptError as error:
        raise ScriptError(f"in the definition of {name}: {error.message}", Position(1, 1), path) from None


def _scan(text: str, path: str) -> Iterator[Token]:
    lines = Lines(text)
    offset = 0
    while True:
        space = _SPACE.match(text, offset)
        spaced = space is not None
        if space is not None:
            offset = space.end()
        if offset >= len(text):
            yield Token(Kind.END, "", lines.position(len(text)), spaced)
            return
        position = lines.position(offset)
        match = _RULE.match(text, offset)
        if match is None or match.lastgroup is None or text.startswith("/*", offset):
            raise _bad_character(text, offset, position, path)
        offset = match.end()
        kind = Kind[match.lastgroup]
        content = match.group(kind.name)
        if kind is Kind.OPTION:
            value = _OPTION_VALUE.match(text, offset)
            if value is not None:
                offset = value.end()
                content = f"{content}={value.group(1)}"
        elif kind is Kind.STRING:
            content = unescape(content, position, path)
        elif kind in (Kind.INTEGER, Kind.HEX, Kind.FLOAT) and len(content) > _LONGEST_NUMBER:
            raise ScriptError("the number is too long", position, path)
        yield Token(kind, content, position, spaced)


def _bad_character(text: str, offset: int, position: Position, path: str) -> ScriptError:
    what = _UNTERMINATED.get(text[offset])
    if text.startswith("/*", offset):
        what = "comment"
    if what is not None and (what != "code" or text.startswith("%{", offset)):
        return ScriptError(f"the {what} that begins here is not closed", position, path)
    return ScriptError(f"no token begins with {text[offset]!r}", position, path)


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.)", re.S)


def unescape(text: str, position: Position, path: str = "") -> str:
    """`text` between quotes as the bytes that it stands for, one character (below 256) a byte."""

    def one(match: re.Match[str]) -> str:
        code = match.group(1)
        if len(code) == 3:
            return chr(int(code[1:], 16))
        return _ESCAPES.get(code, code)

    plain = _ESCAPE.sub(one, text)
    if any(ord(c) > 255 for c in plain):
        # A script is UTF-8; its strings are bytes.
        plain = "".join(c if ord(c) < 256 else c.encode("utf-8", "replace").decode("latin-1") for c in plain)
    return plain
