"""DHCP messages: any bytes are a message or a named drop, and what is written is read again."""

from __future__ import annotations

import contextlib

import construct as c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import BadPacket
from tunstack.services.dhcp_wire import (
    LEAST_ROOM,
    SMALLEST,
    DhcpMessage,
    MessageType,
    Option,
    _collect,
    emit,
    emit_option,
    emit_routes,
    emit_search,
    parse,
)

ENVELOPE = c.Struct(
    "op" / c.Int8ub,
    "htype" / c.Int8ub,
    "hlen" / c.Int8ub,
    "hops" / c.Int8ub,
    "xid" / c.Int32ub,
    "secs" / c.Int16ub,
    "flags" / c.Int16ub,
    "ciaddr" / c.Bytes(4),
    "yiaddr" / c.Bytes(4),
    "siaddr" / c.Bytes(4),
    "giaddr" / c.Bytes(4),
    "chaddr" / c.Bytes(16),
    "sname" / c.Bytes(64),
    "file" / c.Bytes(128),
    "cookie" / c.Const(bytes((99, 130, 83, 99))),
    "options" / c.GreedyBytes,
)
"""RFC 2131 figure 1 once more, to be held against."""

MESSAGES = st.builds(
    DhcpMessage,
    op=st.integers(0, 255),
    htype=st.integers(0, 255),
    hops=st.integers(0, 255),
    xid=st.integers(0, 2**32 - 1),
    secs=st.integers(0, 65535),
    flags=st.integers(0, 65535),
    **{name: st.binary(min_size=4, max_size=4) for name in ("ciaddr", "yiaddr", "siaddr", "giaddr")},
    chaddr=st.binary(max_size=16),
    options=st.dictionaries(
        st.integers(1, 254).filter(lambda code: code != Option.OVERLOAD), st.binary(max_size=600), max_size=6
    ),
)


@given(MESSAGES)
def test_what_is_written_is_read_again(message: DhcpMessage) -> None:
    data = emit(message, 2048)
    assert SMALLEST <= len(data) <= 2048
    again = parse(data)
    missing = [code for code in message.options if code not in again.options]
    for code in missing:
        del message.options[code]
    assert again == message
    size = sum(len(value) + 2 + len(value) // 255 * 2 for value in message.options.values())
    if size < 1500:
        assert len(missing) <= 1
    if size > 2048:
        assert missing
    envelope = ENVELOPE.parse(data)
    for name in ("op", "htype", "hops", "xid", "secs", "flags", "ciaddr", "yiaddr", "siaddr", "giaddr"):
        assert getattr(envelope, name) == getattr(message, name)
    assert envelope.chaddr == message.chaddr.ljust(16, b"\0") and envelope.hlen == len(message.chaddr)


@given(st.binary(max_size=3000) | st.binary(max_size=700).map(lambda tail: emit(DhcpMessage())[:240] + tail))
def test_any_bytes_are_a_message_or_a_drop(data: bytes) -> None:
    with contextlib.suppress(BadPacket):
        message = parse(data)
        assert len(message.chaddr) <= 16
        assert sum(map(len, message.options.values())) <= len(data)
        assert message.kind is None or isinstance(message.kind, MessageType)


def build(options: bytes, *, sname: bytes = b"", file: bytes = b"") -> bytes:
    fields = dict.fromkeys(("op", "htype", "hops", "xid", "secs", "flags"), 1)
    return ENVELOPE.build(
        {
            **fields,
            **dict.fromkeys(("ciaddr", "yiaddr", "siaddr", "giaddr"), bytes(4)),
            "hlen": 6,
            "chaddr": bytes(16),
            "sname": sname.ljust(64, b"\0"),
            "file": file.ljust(128, b"\0"),
            "options": options,
        }
    )


def test_options_in_parts_and_in_other_fields_are_one_in_the_order_of_rfc_3396() -> None:
    data = build(
        emit_option(Option.OVERLOAD, b"\x03") + b"\x0c\x02ab\x00\x0c\x01c\xff\x0c\x01z",
        file=b"\x0c\x01d\xff\x0c\x01z",
        sname=b"\x00\x0c\x01e",
    )
    assert parse(data).options == {Option.HOST_NAME: b"abcde"}


@pytest.mark.parametrize("overload", [0, 1, 2])
def test_fields_that_are_not_said_to_hold_options_hold_none(overload: int) -> None:
    data = build(
        emit_option(Option.OVERLOAD, bytes((overload,))) + b"\xff", file=b"\x0c\x01f", sname=b"\x0c\x01s"
    )
    assert parse(data).options == {0: {}, 1: {12: b"f"}, 2: {12: b"s"}}[overload]


@pytest.mark.parametrize("options", [b"\x0c", b"\x0c\x05abc", b"\x35\x01\x01\x0c\xff"])
def test_an_option_that_ends_behind_the_message_is_an_error(options: bytes) -> None:
    with pytest.raises(BadPacket):
        parse(build(options))


def test_what_does_not_fit_behind_the_header_goes_into_its_fields() -> None:
    options = {53: b"\x02", 54: bytes(4), 43: bytes(280), 119: b"s" * 100, 121: b"r" * 40, 3: bytes(4)}
    data = emit(DhcpMessage(options=options))
    assert len(data) <= LEAST_ROOM
    envelope = ENVELOPE.parse(data)
    assert envelope.file.startswith(b"\x77\x64s") and envelope.sname.startswith(b"\x79\x28r")
    assert b"\x34\x01\x03\xff" in envelope.options
    assert parse(data).options == options

    # With room for all nothing is said of it.
    data = emit(DhcpMessage(options=options), 1000)
    assert ENVELOPE.parse(data).file == bytes(128) and parse(data).options == options


@given(st.dictionaries(st.integers(60, 70), st.binary(max_size=150), max_size=8), st.integers(300, 700))
def test_no_more_is_left_out_than_has_to_be(options: dict[int, bytes], room: int) -> None:
    data = emit(DhcpMessage(options=options), room)
    assert len(data) <= max(room, SMALLEST)
    again = parse(data).options
    left_out = options.items() - again.items()
    assert again.items() <= options.items()
    envelope = ENVELOPE.parse(data)
    used = []
    for field in (envelope.options, envelope.file, envelope.sname):
        parts: dict[int, list[bytes]] = {}
        _collect(field, parts)
        parts.pop(Option.OVERLOAD, None)
        used.append(sum(2 + len(value) for values in parts.values() for value in values))
    free = [room - 240 - 1 - 3 - used[0], 127 - used[1], 63 - used[2]]
    assert all(len(emit_option(*one)) > max(free) for one in left_out)


def test_what_does_not_fit_is_left_out_and_the_rest_is_whole() -> None:
    message = DhcpMessage(options={53: b"\x02", 54: bytes(4), 43: bytes(500), 3: bytes(4)})
    data = emit(message)
    assert len(data) <= LEAST_ROOM
    assert parse(data).options == {53: b"\x02", 54: bytes(4), 3: bytes(4)}


def test_search_and_routes_are_written_as_their_rfcs_show() -> None:
    assert emit_search(["eng.apple.com", "a..b", ""]) == b"\x03eng\x05apple\x03com\x00"
    router = bytes((10, 0, 2, 2))
    routes = {
        (bytes(4), 0): router,
        (bytes((10, 17, 0, 0)), 16): router,
        (bytes((10, 27, 129, 0)), 24): router,
    }
    assert emit_routes(routes) == b"\0" + router + b"\x10\x0a\x11" + router + b"\x18\x0a\x1b\x81" + router
