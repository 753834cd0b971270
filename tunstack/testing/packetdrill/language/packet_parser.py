"""Productions of packets: TCP, UDP and ICMP, their IP header and TCP options."""

from __future__ import annotations

import re
from collections.abc import Callable

from tunstack.testing.packetdrill.language.cursor import Cursor
from tunstack.testing.packetdrill.language.lexer import Kind, Token
from tunstack.testing.packetdrill.language.syntax import (
    AccurateEcn,
    Direction,
    Ecn,
    EndOfOptions,
    FastOpen,
    IcmpPacket,
    IpInfo,
    Mss,
    Nop,
    PacketAction,
    Ports,
    Range,
    Sack,
    SackPermitted,
    TcpOption,
    TcpPacket,
    Timestamps,
    UdpPacket,
    UnknownOption,
    WindowScale,
)

FLAGS = "FSRPEWUA."
"""Letters of TCP flags: FIN SYN RST PSH ECE CWR URG AE, and `.` for ACK; in the syntax tree in this order."""
_WHAT_FLAGS = f"TCP flags (letters of {FLAGS}, or -), 'udp' or 'icmp'"
_ACE = {"A": 4, "W": 2, "E": 1}
"""The bits of the ACE field."""
ENCAPSULATIONS = {
    "ipv4": "encapsulation in IPv4",
    "ipv6": "encapsulation in IPv6",
    "gre": "encapsulation in GRE",
    "mpls": "MPLS",
}
ICMP_WORDS = ("icmp", "icmpv4", "icmpv6")
ECN_ORDER = ("e0b", "ceb", "e1b")
"""Counters of the AccECN option of kind 172; kind 174 has them the other way round."""
_ECN = {ecn.value: ecn for ecn in Ecn}
_BYTES = re.compile(r"(?:[0-9a-f]{2})+\Z", re.I)
_LONGEST_COOKIE = 16
_LONGEST_OPTION = 38
"""Bytes behind kind and length, of the 40 that all options have."""
_NUMBERS = (Kind.INTEGER, Kind.HEX)


def parse_packet(cursor: Cursor) -> PacketAction:
    """packet_spec: tcp_packet_spec | udp_packet_spec | icmp_packet_spec"""
    direction = Direction(cursor.take().text)
    if cursor.token.kind is Kind.WORD and cursor.token.text in ENCAPSULATIONS:
        cursor.unsupported(ENCAPSULATIONS[cursor.token.text], cursor.token.position)
    ip = _ip_info(cursor)
    quote = _quote(cursor)
    if quote is not None or cursor.at_word(*ICMP_WORDS):
        return _icmp(cursor, direction, ip, quote)
    ports = _ports(cursor)
    if cursor.at_word("udp"):
        return _udp(cursor, direction, ip, ports)
    return _tcp(cursor, direction, ip, ports)


# the IP header


def _ip_info(cursor: Cursor) -> IpInfo:
    """opt_ip_info: '[' ip_info ']' | '(' ip_info ')', several items separated by ','"""
    if cursor.at_mark("["):
        if _begins_quote(cursor):
            return IpInfo()
        close = "]"
    elif cursor.at_mark("("):
        close = ")"
    else:
        return IpInfo()
    cursor.take()
    ecn: Ecn | None = None
    found: dict[str, int] = {}
    while True:
        position = cursor.token.position
        name = cursor.token.text.lower() if cursor.token.kind is Kind.WORD else ""
        if name in found or (name in _ECN and ecn is not None):
            cursor.wrong(f"{name} is said twice", position)
        if name in _ECN:
            cursor.take()
            ecn = _ECN[name]
        elif name in ("tos", "ttl", "flowlabel"):
            cursor.take()
            found[name] = cursor.number(name, most=0xFFFFF if name == "flowlabel" else 0xFF)
        else:
            cursor.fail("noecn, ect0, ect1, ect01, ce, tos, ttl or flowlabel")
        if not cursor.skip_mark(","):
            break
    cursor.mark(close, otherwise="','")
    if ecn is not None and "tos" in found:
        cursor.wrong("tos says what the ECN bits are already", cursor.last.position)
    return IpInfo(ecn, found.get("tos"), found.get("ttl"), found.get("flowlabel"))


def _ports(cursor: Cursor) -> Ports | None:
    """opt_port_info: INTEGER '>' INTEGER"""
    if cursor.token.kind is not Kind.INTEGER:
        return None
    src = cursor.number("a port", most=0xFFFF)
    cursor.mark(">")
    return Ports(src, cursor.number("a port", most=0xFFFF))


# UDP and ICMP


def _udp(cursor: Cursor, direction: Direction, ip: IpInfo, ports: Ports | None) -> UdpPacket:
    """udp_packet_spec: UDP opt_port_info '(' INTEGER ')', or with the ports before as in TCP"""
    cursor.word("udp")
    if ports is None:
        ports = _ports(cursor)
    return UdpPacket(direction, _udp_length(cursor), ip, ports)


def _udp_length(cursor: Cursor) -> int:
    cursor.mark("(")
    length = cursor.number("the length of the payload", most=65507)
    cursor.mark(")")
    return length


def _begins_quote(cursor: Cursor) -> bool:
    inside = cursor.ahead(1)
    return inside.kind in _NUMBERS or (inside.kind is Kind.WORD and inside.text == "udp")


def _quote(cursor: Cursor) -> Range | int | None:
    """opt_icmp_echoed: '[' UDP '(' INTEGER ')' ']' | '[' seq ']'"""
    if not cursor.at_mark("[") or not _begins_quote(cursor):
        return None
    cursor.take()
    quote = _udp_length(cursor) if cursor.skip_word("udp") else _range(cursor)
    cursor.mark("]")
    return quote


def _icmp(cursor: Cursor, direction: Direction, ip: IpInfo, quote: Range | int | None) -> IcmpPacket:
    """icmp_packet_spec: ICMP type opt_code opt_mtu opt_echo_id opt_echoed; the last one may come first"""
    cursor.word(*ICMP_WORDS)
    kind = _icmp_name(cursor, "type", "the type of an ICMP message")
    code = None
    if cursor.token.kind is Kind.WORD and not cursor.at_word("mtu", "id"):
        code = _icmp_name(cursor, "code", "the code of an ICMP message")
    mtu = cursor.number("an MTU") if cursor.skip_word("mtu") else None
    echo_id = cursor.number("an identifier", most=0xFFFF) if cursor.skip_word("id") else None
    if cursor.at_mark("["):
        if quote is not None:
            cursor.wrong("what the message quotes is said twice", cursor.token.position)
        quote = _quote(cursor)
        if quote is None:
            cursor.take()
            if cursor.at_word("raw"):
                cursor.unsupported("an ICMP error about a raw socket", cursor.token.position)
            cursor.fail("start:end(length) or udp (length)")
    return IcmpPacket(direction, kind, code, mtu, quote, ip, echo_id)


def _icmp_name(cursor: Cursor, numeric: str, what: str) -> str:
    """A name, or `type 3`, `code 4` by number."""
    if cursor.skip_word(numeric):
        return f"{numeric} {cursor.number(what, most=255)}"
    return cursor.word(what=what)


# TCP


def _tcp(cursor: Cursor, direction: Direction, ip: IpInfo, ports: Ports | None) -> TcpPacket:
    """tcp_packet_spec: flags seq opt_ack opt_window opt_urg_ptr opt_tcp_options"""
    position = cursor.token.position
    flags = _flags(cursor)
    numbers = _range(cursor)
    ack = cursor.number("an acknowledgement number") if cursor.skip_word("ack") else None
    window = cursor.number("a window", most=0xFFFF) if cursor.skip_word("win") else None
    urgent = cursor.number("an urgent pointer", most=0xFFFF) if cursor.skip_word("urg") else None
    if direction is Direction.INBOUND and window is None:
        cursor.wrong("an inbound segment must say its window ('win N')", position)
    options = _options(cursor, direction)
    return TcpPacket(direction, flags, numbers, ack, window, urgent, options, ip, ports)


def _flags(cursor: Cursor) -> str:
    """flags: WORD | '.' | WORD '.' | '-', and behind the '.' the digit of ACE (RFC 9768)"""
    token = cursor.token
    if cursor.skip_mark("-"):
        return ""
    letters = ""
    if token.kind is Kind.WORD:
        letters = token.text
        if set(letters) - set(FLAGS):
            cursor.fail(_WHAT_FLAGS)
        if len(set(letters)) != len(letters):
            cursor.wrong("a TCP flag is said twice", token.position)
        cursor.take()
    elif not cursor.at_mark(".") and not _is_ace(cursor.token):
        cursor.fail(_WHAT_FLAGS)
    if cursor.skip_mark("."):
        letters += "."
    elif _is_ace(cursor.token):
        # `.6` is what the lexer takes for a time.
        ace = int(cursor.token.text[1:])
        if set(letters) & set(_ACE):
            cursor.wrong("the digit says what the flags A, W and E are already", cursor.token.position)
        cursor.take()
        letters += "." + "".join(letter for letter, bit in _ACE.items() if ace & bit)
    return "".join(letter for letter in FLAGS if letter in letters)


def _is_ace(token: Token) -> bool:
    return token.kind is Kind.FLOAT and len(token.text) == 2 and token.text[1] in "01234567"


def _range(cursor: Cursor) -> Range:
    """seq: INTEGER ':' INTEGER '(' INTEGER ')'"""
    start = cursor.number("a sequence number")
    cursor.mark(":")
    position = cursor.token.position
    end = cursor.number("the sequence number behind the last byte")
    cursor.mark("(")
    numbers = Range(start, cursor.number("the length of the payload", most=0xFFFF))
    cursor.mark(")")
    if numbers.end != end:
        cursor.wrong(f"{start} and {numbers.length} bytes end at {numbers.end}, not at {end}", position)
    return numbers


def _options(cursor: Cursor, direction: Direction) -> tuple[TcpOption, ...] | None:
    """opt_tcp_options: '<' tcp_option_list '>' | '<' ELLIPSIS '>'"""
    if not cursor.at_mark("<"):
        return ()
    position = cursor.take().position
    if cursor.token.kind is Kind.ELLIPSIS:
        if direction is Direction.INBOUND:
            cursor.wrong("only an outbound segment may have any options (<...>)", position)
        cursor.take()
        cursor.mark(">")
        return None
    options: list[TcpOption] = []
    while True:
        options.append(_option(cursor, direction))
        if not cursor.skip_mark(","):
            break
    cursor.mark(">", otherwise="','")
    return tuple(options)


def _option(cursor: Cursor, direction: Direction) -> TcpOption:
    if cursor.token.kind is not Kind.WORD or cursor.token.text not in TCP_OPTIONS:
        if cursor.at_word("md5", "exp", "mptcp"):
            cursor.unsupported(f"the TCP option {cursor.token.text}", cursor.token.position)
        cursor.fail(f"a TCP option ({', '.join(TCP_OPTIONS)})")
    return TCP_OPTIONS[cursor.take().text](cursor, direction)


def _timestamps(cursor: Cursor, direction: Direction) -> Timestamps:
    """TIMESTAMP VAL INTEGER ECR INTEGER"""

    def value(what: str) -> int | None:
        if cursor.token.kind is not Kind.ELLIPSIS:
            return cursor.number(what)
        if direction is Direction.INBOUND:
            cursor.wrong(f"only an outbound segment may have {what} that is not given", cursor.token.position)
        cursor.take()
        return None

    cursor.word("val")
    val = value("a timestamp")
    cursor.word("ecr")
    return Timestamps(val, value("an echoed timestamp"))


def _sack(cursor: Cursor, direction: Direction) -> Sack:
    """SACK sack_block_list"""
    blocks: list[tuple[int, int]] = []
    while not blocks or cursor.token.kind in _NUMBERS:
        left = cursor.number("the left edge of a SACK block")
        cursor.mark(":")
        blocks.append((left, cursor.number("the right edge of a SACK block")))
    if len(blocks) > 4:
        cursor.wrong("no segment has room for more than 4 SACK blocks", cursor.last.position)
    return Sack(tuple(blocks))


def _fast_open(experimental: bool) -> Callable[[Cursor, Direction], FastOpen]:
    """FAST_OPEN opt_tcp_fast_open_cookie"""

    def parse(cursor: Cursor, direction: Direction) -> FastOpen:
        return FastOpen(_bytes(cursor, "a cookie", _LONGEST_COOKIE), experimental)

    return parse


def _accurate_ecn(cursor: Cursor, direction: Direction) -> AccurateEcn:
    """ECN and up to three counters, in one of two orders"""
    counters: list[tuple[str, int]] = []
    while cursor.at_word("e0b", "ceb", "e1b"):
        position = cursor.token.position
        name = cursor.take().text
        counters.append((name, cursor.number("a counter", most=0xFFFFFF)))
        names = tuple(name for name, _ in counters)
        if names not in (ECN_ORDER[: len(names)], ECN_ORDER[::-1][: len(names)]):
            cursor.wrong("counters stand in the order e0b ceb e1b or e1b ceb e0b", position)
    return AccurateEcn(tuple(counters))


def _unknown(cursor: Cursor, direction: Direction) -> UnknownOption:
    """An extension: UNKNOWN INTEGER opt_bytes"""
    kind = cursor.number("the kind of an option", least=2, most=0xFF)
    return UnknownOption(kind, _bytes(cursor, "the data of an option", _LONGEST_OPTION))


def _bytes(cursor: Cursor, what: str, most: int) -> bytes:
    """Bytes in hexadecimal, if there are any."""
    token = cursor.token
    if token.kind not in (Kind.WORD, Kind.INTEGER):
        return b""
    if not _BYTES.match(token.text) or len(token.text) > 2 * most:
        cursor.fail(f"{what}: up to {most} bytes in hexadecimal")
    return bytes.fromhex(cursor.take().text)


TCP_OPTIONS: dict[str, Callable[[Cursor, Direction], TcpOption]] = {
    "mss": lambda cursor, direction: Mss(cursor.number("an MSS", most=0xFFFF)),
    "wscale": lambda cursor, direction: WindowScale(cursor.number("a window scale", most=0xFF)),
    "sackOK": lambda cursor, direction: SackPermitted(),
    "sack": _sack,
    "TS": _timestamps,
    "nop": lambda cursor, direction: Nop(),
    "eol": lambda cursor, direction: EndOfOptions(),
    "FO": _fast_open(False),
    "FOEXP": _fast_open(True),
    "ECN": _accurate_ecn,
    "unknown": _unknown,
}
"""The TCP options of the language, each with its production."""
