"""Values: the arguments and results of system calls, as a script writes them.

A value is text with structure, not yet a number: what `SO_REUSEADDR` stands for is the system's business
(`system/constants.py`). All values are immutable and equal by content, and `str` gives the text that parses
to the same value again.

| script | value |
| --- | --- |
| `8`, `-1`, `0x10` | `Integer(8)`, `Integer(-1)`, `Integer(16, hexadecimal=True)` |
| `SO_REUSEADDR` | `Symbol("SO_REUSEADDR")` |
| `O_RDWR\\|O_NONBLOCK` | `Or((Symbol("O_RDWR"), Symbol("O_NONBLOCK")))` |
| `"abc"`, `"abc"...` | `String("abc")`, `String("abc", more=True)` |
| `...` | `ANY`, the one `Wildcard` |
| `[1]`, `[]` | `Array((Integer(1),))`, `Array(())` |
| `{fd=4, events=POLLIN}` | `Struct((Field(Integer(4), "fd"), Field(Symbol("POLLIN"), "events")))` |
| `{..., 1000}` | `Struct((Field(ANY), Field(Integer(1000))))` |
| `msg_name(...)=...` in a struct | `Field(ANY, "msg_name", count=ANY)` |
| `htons(8080)` | `Function("htons", (Integer(8080),))` |

In the other direction a system call writes `Call.outputs`: as many values as it got arguments, each either
what it wrote into that place or None. `matches` compares one with what the script says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Integer:
    """A number, signed; `hexadecimal` is how it was written, which `matches` ignores."""

    value: int
    hexadecimal: bool = False

    def __str__(self) -> str:
        return f"{self.value:#x}" if self.hexadecimal else str(self.value)


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name that the system knows, such as `AF_INET`."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class String:
    """Bytes as text, one character a byte (Latin-1); `more`: it was followed by `...`, and may go on."""

    text: str
    more: bool = False

    def __str__(self) -> str:
        return f'"{escape(self.text)}"' + ("..." if self.more else "")


@dataclass(frozen=True, slots=True)
class Wildcard:
    """`...`: any value, or one that the system chooses."""

    def __str__(self) -> str:
        return "..."


ANY = Wildcard()


@dataclass(frozen=True, slots=True)
class Or:
    """Two or more terms, bitwise or."""

    terms: tuple[Value, ...]

    def __str__(self) -> str:
        return "|".join(map(str, self.terms))


@dataclass(frozen=True, slots=True)
class Array:
    """`[a, b]`: elements, or what a pointer points to."""

    items: tuple[Value, ...]

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.items))}]"


@dataclass(frozen=True, slots=True)
class Field:
    """One member of a struct; `name` is None where the language has none, `count` is what follows the name in
    parentheses (`msg_iov(1)=`)."""

    value: Value
    name: str | None = None
    count: Value | None = None

    def __str__(self) -> str:
        if self.name is None:
            return str(self.value)
        count = f"({self.count})" if self.count is not None else ""
        return f"{self.name}{count}={self.value}"


@dataclass(frozen=True, slots=True)
class Struct:
    """`{a=1, b=2}`: members in the order in which they were written."""

    fields: tuple[Field, ...]

    def __str__(self) -> str:
        return f"{{{', '.join(map(str, self.fields))}}}"

    def get(self, name: str) -> Value | None:
        """The value of the member `name`, or None."""
        for field in self.fields:
            if field.name == name:
                return field.value
        return None


@dataclass(frozen=True, slots=True)
class Function:
    """`htons(8080)`, `inet_addr("192.0.2.1")`: a conversion within a value."""

    name: str
    arguments: tuple[Value, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.arguments))})"


Value: TypeAlias = Integer | Symbol | String | Wildcard | Or | Array | Struct | Function

_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def escape(text: str) -> str:
    """`text` as it stands between double quotes in a script."""
    return "".join(_ESCAPES.get(c) or (c if " " <= c < "\x7f" else f"\\x{ord(c) & 0xFF:02x}") for c in text)


def matches(expected: Value, actual: Value, number: Callable[[Value], int | None]) -> bool:
    """Whether `actual` is what the script expects: `...` is anything, numbers are equal by value.

    `number` evaluates symbols and functions; None where a value is no number. Members of a struct that the
    script does not name are not compared.
    """
    if isinstance(expected, Wildcard):
        return True
    if isinstance(expected, String) and isinstance(actual, String):
        return actual.text.startswith(expected.text) if expected.more else actual.text == expected.text
    if isinstance(expected, Array) and isinstance(actual, Array):
        return len(expected.items) == len(actual.items) and all(
            matches(one, other, number) for one, other in zip(expected.items, actual.items, strict=True)
        )
    if isinstance(expected, Struct) and isinstance(actual, Struct):
        return _struct_matches(expected, actual, number)
    if expected == actual:
        return True
    wanted = number(expected)
    return wanted is not None and wanted == number(actual)


def _struct_matches(expected: Struct, actual: Struct, number: Callable[[Value], int | None]) -> bool:
    for index, field in enumerate(expected.fields):
        if field.name is not None:
            value = actual.get(field.name)
        else:
            value = actual.fields[index].value if index < len(actual.fields) else None
        if value is None:
            if not isinstance(field.value, Wildcard):
                return False
        elif not matches(field.value, value, number):
            return False
    return True
