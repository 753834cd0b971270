"""struct msghdr: what sendmsg(2) and recvmsg(2) work on."""

from __future__ import annotations

import dataclasses

from tunstack.testing.packetdrill.language.values import (
    Array,
    Field,
    Integer,
    Struct,
    Value,
    Wildcard,
)
from tunstack.testing.packetdrill.system.arguments import (
    SocketAddress,
    address_length,
    address_value,
    content,
    integer,
    is_null,
    number,
    socket_address,
    vector,
)
from tunstack.testing.packetdrill.system.base import Inbox
from tunstack.testing.packetdrill.system.call import Unsupported
from tunstack.testing.packetdrill.system.constants import MESSAGE_FLAGS, flags_value

_MEMBERS = ("msg_name", "msg_namelen", "msg_iov", "msg_iovlen", "msg_control", "msg_controllen", "msg_flags")


@dataclasses.dataclass(slots=True)
class Message:
    """A struct msghdr as a script writes it, and the buffers that it names."""

    struct: Struct
    buffers: list[tuple[Value, int]]

    @property
    def size(self) -> int:
        """Bytes of all buffers."""
        return sum(length for _, length in self.buffers)

    @property
    def data(self) -> bytes:
        """What is in the buffers."""
        return b"".join(content(value, length) for value, length in self.buffers)

    def destination(self, default: SocketAddress) -> SocketAddress | None:
        """msg_name; `...` without a length is none, which is what a connected socket wants."""
        name = _member(self.struct, "msg_name")
        if name is None or is_null(name.value):
            return None
        length = name.count or self.struct.get("msg_namelen") or Wildcard()
        if isinstance(name.value, Wildcard) and isinstance(length, Wildcard):
            return None
        return socket_address(name.value, length, default)

    def received(self, inbox: Inbox) -> Struct:
        """The struct as recvmsg(2) leaves it."""
        fields = []
        source = inbox.source
        for field in self.struct.fields:
            if field.name == "msg_name" and source is not None and not is_null(field.value):
                field = Field(address_value(source), "msg_name", field.count)
            elif field.name == "msg_namelen":
                length = Integer(0) if source is None else _first(address_length(source))
                field = Field(length, "msg_namelen")
            elif field.name == "msg_control":
                field = Field(Array(()), "msg_control", field.count and Integer(0))
            elif field.name == "msg_controllen":
                field = Field(Integer(0), "msg_controllen")
            elif field.name == "msg_flags":
                field = Field(flags_value(inbox.flags, MESSAGE_FLAGS), "msg_flags")
            fields.append(field)
        return Struct(tuple(fields))


def message(value: Value) -> Message:
    """The struct msghdr that `value` is."""
    if not isinstance(value, Struct):
        raise Unsupported(f"{value} as a message")
    for field in value.fields:
        if field.name not in _MEMBERS:
            raise Unsupported(f"{field} in a message")
    buffers: list[tuple[Value, int]] = []
    found = _member(value, "msg_iov")
    if found is not None and not is_null(found.value):
        count = found.count or value.get("msg_iovlen")
        if count is None or isinstance(count, Wildcard):
            count = Integer(len(found.value.items)) if isinstance(found.value, Array) else Integer(1)
        buffers = vector(found.value, integer(count))
    return Message(value, buffers)


def refuse_control(value: Struct) -> None:
    """Ancillary data to be sent is more than the stack can do."""
    control = value.get("msg_control")
    if control is None or control == Array(()) or isinstance(control, Wildcard) or is_null(control):
        return
    raise Unsupported("ancillary data")


def message_flags(value: Value, allowed: int) -> int:
    """The flags of a call; those that are not among `allowed` are `Unsupported`."""
    flags = number(value) & 0xFFFFFFFF
    if flags & ~allowed:
        raise Unsupported(str(flags_value(flags & ~allowed, MESSAGE_FLAGS)))
    return flags


def _member(value: Struct, name: str) -> Field | None:
    for field in value.fields:
        if field.name == name:
            return field
    return None


def _first(value: Value) -> Value:
    assert isinstance(value, Array)
    return value.items[0]
