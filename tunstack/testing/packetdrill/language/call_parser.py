"""Productions of system calls and of the values in them."""

from __future__ import annotations

from typing import NoReturn

from tunstack.testing.packetdrill.language.cursor import Cursor, integer
from tunstack.testing.packetdrill.language.lexer import Kind
from tunstack.testing.packetdrill.language.syntax import SystemCall
from tunstack.testing.packetdrill.language.values import (
    ANY,
    Array,
    Field,
    Function,
    Integer,
    Or,
    String,
    Struct,
    Symbol,
    Value,
)

DEEPEST = 16
"""Structs and arrays within each other; no system call needs more."""
FUNCTIONS = frozenset({"htons", "htonl", "ntohs", "ntohl", "inet_addr", "inet6_addr", "inet_pton"})
"""Conversions within a value; any other word before a parenthesis has a note or a count behind it."""
_NUMBERS = (Kind.INTEGER, Kind.HEX)
_NOTE_KINDS = (Kind.WORD, Kind.INTEGER, Kind.HEX, Kind.FLOAT)


def parse_call(cursor: Cursor, end: int | None) -> SystemCall:
    """syscall_spec, from the name on: function_name function_arguments '=' expression opt_errno opt_note"""
    name = cursor.word(what="the name of a system call")
    arguments = _arguments(cursor, DEEPEST)
    cursor.mark("=")
    result = parse_value(cursor)
    errno = cursor.take().text if cursor.token.kind is Kind.WORD else None
    note = _note(cursor) if cursor.at_mark("(") else None
    return SystemCall(name, arguments, result, errno, note, end)


def parse_value(cursor: Cursor, depth: int = DEEPEST) -> Value:
    """expression: one value, or several joined by '|'"""
    if depth == 0:
        cursor.wrong(f"values nest deeper than {DEEPEST}", cursor.token.position)
    terms = [_term(cursor, depth)]
    while cursor.skip_mark("|"):
        terms.append(_term(cursor, depth))
    return terms[0] if len(terms) == 1 else Or(tuple(terms))


def _term(cursor: Cursor, depth: int) -> Value:
    token = cursor.token
    if token.kind in _NUMBERS:
        cursor.take()
        return Integer(integer(token), token.kind is Kind.HEX)
    if token.kind is Kind.ELLIPSIS:
        cursor.take()
        return ANY
    if token.kind is Kind.STRING:
        cursor.take()
        more = cursor.token.kind is Kind.ELLIPSIS
        if more:
            cursor.take()
        return String(token.text, more)
    if token.kind is Kind.WORD:
        cursor.take()
        if token.text in FUNCTIONS and cursor.at_mark("("):
            return Function(token.text, _arguments(cursor, depth))
        return Symbol(token.text)
    if cursor.at_mark("["):
        return _array(cursor, depth)
    if cursor.at_mark("{"):
        return _struct(cursor, depth)
    return _no_value(cursor)


def _no_value(cursor: Cursor) -> NoReturn:
    if cursor.token.kind is Kind.COMMAND:
        cursor.unsupported("a command as a value", cursor.token.position)
    cursor.fail("a value (number, name, string, '...', '[' or '{')")


def _arguments(cursor: Cursor, depth: int) -> tuple[Value, ...]:
    """function_arguments: '(' ')' | '(' expression_list ')'"""
    cursor.mark("(")
    return _values(cursor, ")", depth)


def _array(cursor: Cursor, depth: int) -> Array:
    """array: '[' ']' | '[' expression_list ']'"""
    cursor.mark("[")
    return Array(_values(cursor, "]", depth))


def _values(cursor: Cursor, close: str, depth: int) -> tuple[Value, ...]:
    values: list[Value] = []
    if cursor.skip_mark(close):
        return ()
    while True:
        values.append(parse_value(cursor, depth - 1))
        if not cursor.skip_mark(","):
            break
    cursor.mark(close, otherwise="','")
    return tuple(values)


def _struct(cursor: Cursor, depth: int) -> Struct:
    """sockaddr, msghdr, iovec, pollfd, linger and the like: '{' member (',' member)* '}'"""
    cursor.mark("{")
    fields = []
    while True:
        fields.append(_field(cursor, depth))
        if not cursor.skip_mark(","):
            break
    cursor.mark("}", otherwise="','")
    return Struct(tuple(fields))


def _field(cursor: Cursor, depth: int) -> Field:
    """A value, or one behind `name=` or `name(count)=`"""
    token, behind = cursor.token, cursor.ahead(1)
    if token.kind is Kind.WORD and token.text not in FUNCTIONS and behind.text in ("=", "("):
        name = cursor.take().text
        count = None
        if cursor.skip_mark("("):
            count = parse_value(cursor, depth - 1)
            cursor.mark(")")
        cursor.mark("=")
        return Field(parse_value(cursor, depth - 1), name, count)
    value = parse_value(cursor, depth - 1)
    if cursor.at_mark("="):
        cursor.wrong("expected the name of a member before '='", token.position)
    return Field(value)


def _note(cursor: Cursor) -> str:
    """note: '(' word_list ')'"""
    cursor.mark("(")
    words = []
    while cursor.token.kind in _NOTE_KINDS or (
        cursor.token.kind is Kind.MARK and cursor.token.text not in "()"
    ):
        words.append(cursor.take().text)
    if not words:
        cursor.fail("the words of a note")
    cursor.mark(")", otherwise="more words")
    return " ".join(words)
