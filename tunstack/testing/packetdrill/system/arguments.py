"""Arguments of system calls: from the values of a script to what the calls work on, and back.

What has no meaning as an argument, or a name that is not known, is `Unsupported`; what the kernel itself
would refuse (a negative length, a pointer to nothing) is the failure that the kernel reports.
"""

from __future__ import annotations

import dataclasses

from tunstack.ip.addresses import format_address, parse_address
from tunstack.testing.packetdrill.language.values import (
    Array,
    Field,
    Function,
    Integer,
    Or,
    String,
    Struct,
    Symbol,
    Value,
    Wildcard,
)
from tunstack.testing.packetdrill.system.call import Failure, Unsupported
from tunstack.testing.packetdrill.system.constants import CONSTANTS, POLL_EVENTS, flags_value

AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10
MAX_BUFFER = 1 << 24
"""Bytes of the largest buffer that one call may have: 16 MiB."""
_SOCKADDR_SIZE = {AF_INET: 16, AF_INET6: 28}
_SMALLEST_SOCKADDR = {AF_INET: 16, AF_INET6: 24}
"""Linux takes a sockaddr_in6 without its scope."""
_INT_MASK = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True, slots=True)
class SocketAddress:
    """A sockaddr_in or sockaddr_in6; `family` may be another, and then the rest means nothing."""

    family: int
    address: bytes
    port: int


def number(value: Value) -> int:
    """The number that `value` stands for. Raises `Unsupported` if that is none."""
    if isinstance(value, Integer):
        return value.value
    if isinstance(value, Symbol):
        found = CONSTANTS.get(value.name)
        if found is None:
            raise Unsupported(f"the name {value.name}")
        return found
    if isinstance(value, Or):
        result = 0
        for term in value.terms:
            result |= number(term)
        return result
    raise Unsupported(f"{value} as a number")


def integer(value: Value) -> int:
    """`value` as a C int: 32 bits, signed."""
    low = number(value) & _INT_MASK
    return low - (1 << 32) if low >> 31 else low


def pointed_integer(value: Value) -> int:
    """The int behind `[1]`; a plain number counts as well."""
    if isinstance(value, Array):
        if len(value.items) != 1:
            raise Unsupported(f"{value} as a pointer to one int")
        return integer(value.items[0])
    return integer(value)


def is_null(value: Value) -> bool:
    """`value` is a null pointer."""
    return isinstance(value, Integer | Symbol) and number(value) == 0


def size(value: Value) -> int:
    """A size_t. Raises `Failure` for a negative one."""
    count = number(value)
    if count < 0:
        raise Failure("EINVAL")
    if count > MAX_BUFFER:
        raise Unsupported(f"a buffer of {count} bytes")
    return count


def content(value: Value, count: int) -> bytes:
    """`count` bytes of the buffer `value`; zeros where the script does not say what they are."""
    if isinstance(value, Wildcard):
        return bytes(count)
    if isinstance(value, String):
        try:
            text = value.text.encode("latin-1")
        except UnicodeEncodeError:
            raise Unsupported(f"{value} as bytes") from None
        return text[:count].ljust(count, b"\0")
    if is_null(value):
        if count:
            raise Failure("EFAULT")
        return b""
    raise Unsupported(f"{value} as a buffer")


def text_value(data: bytes) -> Value:
    """Bytes as a script writes them."""
    return String(data.decode("latin-1"))


def vector(value: Value, count: int) -> list[tuple[Value, int]]:
    """The (buffer, length) pairs of an array of `count` struct iovec."""
    if count < 0 or count > 1024:
        raise Failure("EINVAL")
    if not isinstance(value, Array) or len(value.items) < count:
        raise Unsupported(f"{value} as {count} buffers")
    buffers = []
    total = 0
    for item in value.items[:count]:
        if not isinstance(item, Struct) or len(item.fields) != 2:
            raise Unsupported(f"{item} as a buffer and its length")
        length = size(item.fields[1].value)
        total += length
        if total > MAX_BUFFER:
            raise Unsupported(f"buffers of {total} bytes")
        buffers.append((item.fields[0].value, length))
    return buffers


# addresses


def socket_address(value: Value, length: Value, default: SocketAddress) -> SocketAddress:
    """The address at `value` of `length` bytes; `...` is `default`. Raises `Failure` as the kernel does."""
    if isinstance(value, Wildcard):
        found = default
    elif isinstance(value, Struct):
        found = _parse(value)
    elif is_null(value):
        raise Failure("EFAULT")
    else:
        raise Unsupported(f"{value} as a socket address")
    if not isinstance(length, Wildcard):
        given = integer(length)
        if given < 0 or given > 128:
            raise Failure("EINVAL")
        if given < _SMALLEST_SOCKADDR.get(found.family, 2):
            raise Failure("EINVAL")
    return found


def _parse(value: Struct) -> SocketAddress:
    family: int | None = None
    port = 0
    address = b""
    for field in value.fields:
        name = field.name
        if name is None and isinstance(field.value, Function) and field.value.name == "inet_pton":
            name = "sin6_addr"
        if name in ("sa_family", "sin_family", "sin6_family"):
            family = integer(field.value) & 0xFFFF
        elif name in ("sin_port", "sin6_port"):
            port = _port(field.value)
        elif name in ("sin_addr", "sin6_addr"):
            address = _address(field.value)
        elif name not in ("sin6_flowinfo", "sin6_scope_id"):
            raise Unsupported(f"{field} in a socket address")
    if family is None:
        raise Unsupported(f"{value} as a socket address")
    if family in _SOCKADDR_SIZE:
        width = 4 if family == AF_INET else 16
        address = address or bytes(width)
        if len(address) != width:
            raise Unsupported(f"{value} as a socket address")
    return SocketAddress(family, address, port)


def _port(value: Value) -> int:
    if isinstance(value, Function):
        if value.name == "htons" and len(value.arguments) == 1:
            return number(value.arguments[0]) & 0xFFFF
        raise Unsupported(f"{value} as a port")
    raw = number(value) & 0xFFFF
    return raw >> 8 | (raw & 0xFF) << 8  # it stands in the order of the network


def _address(value: Value) -> bytes:
    if isinstance(value, Function):
        texts = [argument for argument in value.arguments if isinstance(argument, String)]
        if value.name == "htonl" and len(value.arguments) == 1:
            return (number(value.arguments[0]) & _INT_MASK).to_bytes(4, "big")
        if value.name in ("inet_addr", "inet_pton") and len(texts) == 1:
            return _address_of_text(texts[0].text)
        raise Unsupported(f"{value} as an address")
    if isinstance(value, String):
        return _address_of_text(value.text)
    return (number(value) & _INT_MASK).to_bytes(4, "little")


def _address_of_text(text: str) -> bytes:
    try:
        return parse_address(text)
    except ValueError:
        raise Unsupported(f"{text!r} as an address") from None


def address_value(address: SocketAddress) -> Value:
    """A socket address as a script writes it."""
    port = Function("htons", (Integer(address.port),))
    text = String(format_address(address.address))
    if address.family == AF_INET:
        return Struct(
            (
                Field(Symbol("AF_INET"), "sa_family"),
                Field(port, "sin_port"),
                Field(Function("inet_addr", (text,)), "sin_addr"),
            )
        )
    return Struct(
        (
            Field(Symbol("AF_INET6"), "sa_family"),
            Field(port, "sin6_port"),
            Field(Integer(0), "sin6_flowinfo"),
            Field(Function("inet_pton", (Symbol("AF_INET6"), text)), "sin6_addr"),
            Field(Integer(0), "sin6_scope_id"),
        )
    )


def address_length(address: SocketAddress) -> Value:
    """The length of `address`, as it is written behind a pointer."""
    return Array((Integer(_SOCKADDR_SIZE[address.family]),))


# structures


def pair(value: Value, names: tuple[tuple[str, ...], tuple[str, ...]]) -> tuple[int, int]:
    """The two numbers of a struct whose members have one of `names` each, or none."""
    if not isinstance(value, Struct) or len(value.fields) != 2:
        raise Unsupported(f"{value} as a struct of {names[0][0]} and {names[1][0]}")
    for field, known in zip(value.fields, names, strict=True):
        if field.name is not None and field.name not in known:
            raise Unsupported(f"{field} in a struct of {names[0][0]} and {names[1][0]}")
    first, second = value.fields
    return number(first.value), number(second.value)


@dataclasses.dataclass(slots=True)
class PollEntry:
    """A struct pollfd."""

    fd: int
    events: int
    revents: int = 0

    @property
    def value(self) -> Value:
        """As a script writes it."""
        return Struct(
            (
                Field(Integer(self.fd), "fd"),
                Field(flags_value(self.events, POLL_EVENTS), "events"),
                Field(flags_value(self.revents, POLL_EVENTS), "revents"),
            )
        )


def poll_entries(value: Value, count: int) -> list[PollEntry]:
    """The first `count` of an array of struct pollfd."""
    if count < 0 or count > 1024:  # RLIMIT_NOFILE of a process by default
        raise Failure("EINVAL")
    if count == 0:
        return []
    if not isinstance(value, Array) or len(value.items) < count:
        raise Unsupported(f"{value} as {count} descriptors to poll")
    entries = []
    for item in value.items[:count]:
        if not isinstance(item, Struct):
            raise Unsupported(f"{item} as a descriptor to poll")
        fd, events = item.get("fd"), item.get("events")
        if fd is None or events is None:
            raise Unsupported(f"{item} as a descriptor to poll")
        entries.append(PollEntry(integer(fd), number(events) & 0xFFFF))
    return entries
