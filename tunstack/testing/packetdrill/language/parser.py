"""The parser: a script to its syntax tree, by recursive descent over the published grammar.

Written by hand and not with a parser generator, since a message of the form "expected A or B, not C" in the
words of the language is worth more here than the grammar in one place, and the grammar wants context: `.` is
a flag or begins a time, a word is a flag, a call or a symbol.

The productions of this file: script, options, events, times. Packets are in `packet_parser.py`, system
calls and values in `call_parser.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from tunstack.testing.packetdrill.language.call_parser import parse_call
from tunstack.testing.packetdrill.language.cursor import Cursor
from tunstack.testing.packetdrill.language.errors import Position, ScriptError, UnsupportedSyntax
from tunstack.testing.packetdrill.language.lexer import Kind, Token, tokenize
from tunstack.testing.packetdrill.language.packet_parser import parse_packet
from tunstack.testing.packetdrill.language.preprocess import parse_definition, preprocess
from tunstack.testing.packetdrill.language.syntax import (
    Action,
    Code,
    Command,
    Event,
    EventTime,
    Option,
    Script,
    TimeKind,
)

LATEST = 10**12
"""Microseconds, more than eleven days: no event is later."""


def parse(text: str, *, path: str = "", definitions: Mapping[str, str] | None = None) -> Script:
    """The script in `text`; `definitions` are those of the command line (`-D NAME=value`).

    Raises:
        ScriptError: it is not in the language; the message says where, and what was expected there.
    """
    plain, defined = preprocess(text, definitions, path)
    tokens = tokenize(plain, defined, path)
    own = _own_definitions(tokens, path)
    if own:
        tokens = tokenize(plain, {**own, **defined}, path)
    return _Parser(Cursor(tokens, path), plain).script()


def _own_definitions(tokens: list[Token], path: str) -> dict[str, str]:
    """What `--define=NAME=value` at the head of the script defines."""
    found = {}
    for token in tokens:
        if token.kind is not Kind.OPTION:
            break
        option, _, text = token.text.partition("=")
        if option == "--define":
            if "`" in text:
                raise UnsupportedSyntax("a command as a value is not supported", token.position, path)
            try:
                name, value = parse_definition(text)
            except ValueError as error:
                raise ScriptError(str(error), token.position, path) from None
            found[name] = value
    return found


class _Parser:
    def __init__(self, cursor: Cursor, text: str) -> None:
        self._cursor = cursor
        self._lines = text.split("\n")

    def script(self) -> Script:
        """script: opt_options opt_init_command events opt_cleanup_command"""
        cursor = self._cursor
        options = []
        while cursor.token.kind is Kind.OPTION:
            token = cursor.take()
            name, given, value = token.text[2:].partition("=")
            if name != "define":
                options.append(Option(name, _without_quotes(value) if given else "1", token.position))
        setup = Command(cursor.take().text) if cursor.token.kind is Kind.COMMAND else None
        events = [self.event()]
        cleanup = None
        while cursor.token.kind is not Kind.END:
            if cursor.token.kind is Kind.COMMAND and cursor.ahead(1).kind is Kind.END:
                cleanup = Command(cursor.take().text)
            else:
                events.append(self.event())
        return Script(tuple(options), setup, tuple(events), cleanup)

    def event(self) -> Event:
        """event: event_time action"""
        cursor = self._cursor
        position = cursor.token.position
        if cursor.token.kind is Kind.OPTION:
            cursor.wrong("options stand before the first event", position)
        time = self.time()
        action = self.action(time)
        return Event(time, action, position, self._source(position, cursor.last.position))

    def time(self) -> EventTime:
        """event_time: '+' time | time | '*' | time '~' time | '+' time '~' '+' time"""
        cursor = self._cursor
        if cursor.skip_mark("*"):
            return EventTime(TimeKind.ANY)
        relative = cursor.skip_mark("+")
        start = self._seconds("the time of an event" if not relative else "a time after '+'")
        if not cursor.skip_mark("~"):
            return EventTime(TimeKind.RELATIVE if relative else TimeKind.ABSOLUTE, start)
        if relative:
            cursor.mark("+")
        position = cursor.token.position
        end = self._seconds("the end of the range of times")
        if end < start:
            cursor.wrong("the range of times ends before it begins", position)
        return EventTime(TimeKind.RELATIVE_RANGE if relative else TimeKind.ABSOLUTE_RANGE, start, end)

    def action(self, time: EventTime) -> Action:
        """action: packet_spec | syscall_spec | command_spec | code_spec"""
        cursor = self._cursor
        token = cursor.token
        if token.kind is Kind.COMMAND:
            self._plain_time(time, token.position)
            return Command(cursor.take().text)
        if token.kind is Kind.CODE:
            self._plain_time(time, token.position)
            return Code(cursor.take().text)
        if cursor.at_mark("<") or cursor.at_mark(">"):
            if cursor.at_mark("<"):
                self._plain_time(time, token.position)
            return parse_packet(cursor)
        end = None
        if token.kind is Kind.ELLIPSIS:
            cursor.take()
            position = cursor.token.position
            end = self._seconds("when the call returns")
            if time.kind not in (TimeKind.ABSOLUTE, TimeKind.RELATIVE):
                cursor.wrong("a call that blocks begins at one time, not in a range", position)
            if end < time.start:
                cursor.wrong("the call returns before it begins", position)
        if cursor.token.kind is not Kind.WORD:
            cursor.fail("a packet ('<' or '>'), a system call, a command in back-quotes or %{ code }%")
        self._plain_time(time, token.position)
        return parse_call(cursor, end)

    def _plain_time(self, time: EventTime, position: Position) -> None:
        """What the script itself does, it does at one time; only packets of the stack have a range or `*`."""
        if time.kind not in (TimeKind.ABSOLUTE, TimeKind.RELATIVE):
            self._cursor.wrong("only an outbound packet may have a range of times or '*'", position)

    def _seconds(self, what: str) -> int:
        cursor = self._cursor
        token = cursor.token
        if token.kind not in (Kind.FLOAT, Kind.INTEGER):
            cursor.fail(what)
        microseconds = int((Decimal(token.text) * 1_000_000).to_integral_value())
        if not 0 <= microseconds <= LATEST:
            cursor.wrong(f"a time is from 0 to {LATEST // 1_000_000} seconds", token.position)
        cursor.take()
        return microseconds

    def _source(self, first: Position, last: Position) -> str:
        lines = self._lines[first.line - 1 : last.line]
        if not lines:
            return ""
        lines[0] = lines[0][first.column - 1 :]
        return " ".join(line.strip() for line in lines).strip()


def _without_quotes(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value
