"""Each production of the grammar by example: what it means, and what its errors say."""

from __future__ import annotations

import pytest

from tunstack.testing.packetdrill import ScriptError, UnsupportedSyntax, parse
from tunstack.testing.packetdrill.language import syntax
from tunstack.testing.packetdrill.language.syntax import (
    Code,
    Command,
    Direction,
    Ecn,
    EventTime,
    IcmpPacket,
    IpInfo,
    Option,
    Ports,
    Range,
    SystemCall,
    TcpPacket,
    TimeKind,
    UdpPacket,
)
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
)

IN, OUT = Direction.INBOUND, Direction.OUTBOUND


def action(text: str):
    """The action of the one event `+0 text`."""
    (event,) = parse(f"+0 {text}").events
    return event.action


def value(text: str):
    """The value that a call returns as `text`."""
    return action(f"f() = {text}").result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5 > - 0:0(0)", EventTime(TimeKind.ABSOLUTE, 500_000)),
        ("1 > - 0:0(0)", EventTime(TimeKind.ABSOLUTE, 1_000_000)),
        (".000001 > - 0:0(0)", EventTime(TimeKind.ABSOLUTE, 1)),
        ("+.1 > - 0:0(0)", EventTime(TimeKind.RELATIVE, 100_000)),
        ("+ 2 > - 0:0(0)", EventTime(TimeKind.RELATIVE, 2_000_000)),
        ("* > - 0:0(0)", EventTime(TimeKind.ANY)),
        ("1.0~1.2 > - 0:0(0)", EventTime(TimeKind.ABSOLUTE_RANGE, 1_000_000, 1_200_000)),
        ("+0~+.5 > - 0:0(0)", EventTime(TimeKind.RELATIVE_RANGE, 0, 500_000)),
    ],
)
def test_times(text, expected) -> None:
    (event,) = parse(text).events
    assert event.time == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("> . 1:1(0)", TcpPacket(OUT, ".", Range(1, 0))),
        ("> - 1:1(0)", TcpPacket(OUT, "", Range(1, 0))),
        ("> P. 1:1001(1000) ack 1", TcpPacket(OUT, "P.", Range(1, 1000), 1)),
        ("> .P 1:1(0)", None),
        ("> WES 0:0(0)", TcpPacket(OUT, "SEW", Range(0, 0))),
        ("> SEWA 0:0(0)", TcpPacket(OUT, "SEWA", Range(0, 0))),
        ("> .6 1:1(0) ack 1", TcpPacket(OUT, "WA.", Range(1, 0), 1)),
        ("> P.1 1:1(0)", TcpPacket(OUT, "PE.", Range(1, 0))),
        ("> P.0 1:1(0)", TcpPacket(OUT, "P.", Range(1, 0))),
        ("> R 4294967295:0(1)", TcpPacket(OUT, "R", Range(4294967295, 1))),
        ("> U. 1:2(1) ack 1 win 0x10 urg 1", TcpPacket(OUT, "U.", Range(1, 1), 1, 16, 1)),
        ("< S 0:0(0) win 5", TcpPacket(IN, "S", Range(0, 0), window=5)),
        ("> S 0:0(0) <...>", TcpPacket(OUT, "S", Range(0, 0), options=None)),
        ("> 80 > 90 S 0:0(0)", TcpPacket(OUT, "S", Range(0, 0), ports=Ports(80, 90))),
        ("< 80 > 90 udp (3)", UdpPacket(IN, 3, ports=Ports(80, 90))),
        ("< udp 80 > 90 (3)", UdpPacket(IN, 3, ports=Ports(80, 90))),
        ("< udp (1000)", UdpPacket(IN, 1000)),
        ("> [ect0] udp (0)", UdpPacket(OUT, 0, IpInfo(Ecn.ECT0))),
        ("> [ECT0] . 1:1(0)", TcpPacket(OUT, ".", Range(1, 0), ip=IpInfo(Ecn.ECT0))),
        ("> [ect1] . 1:1(0)", TcpPacket(OUT, ".", Range(1, 0), ip=IpInfo(Ecn.ECT1))),
        ("> [ect01] . 1:1(0)", TcpPacket(OUT, ".", Range(1, 0), ip=IpInfo(Ecn.ECT01))),
        ("> [noecn] . 1:1(0)", TcpPacket(OUT, ".", Range(1, 0), ip=IpInfo(Ecn.NONE))),
        ("> [CE, ttl 9] . 1:1(0)", TcpPacket(OUT, ".", Range(1, 0), ip=IpInfo(Ecn.CE, ttl=9))),
        ("> (tos 0x4, ttl 255) . 1:1(0)", TcpPacket(OUT, ".", Range(1, 0), ip=IpInfo(tos=4, ttl=255))),
        ("> [flowlabel 0x12] . 1:1(0)", TcpPacket(OUT, ".", Range(1, 0), ip=IpInfo(flow_label=18))),
        (
            "< icmp unreachable frag_needed mtu 1200 [1:1461(1460)]",
            IcmpPacket(IN, "unreachable", "frag_needed", 1200, Range(1, 1460)),
        ),
        (
            "< [1:1461(1460)] icmp unreachable frag_needed mtu 1200",
            IcmpPacket(IN, "unreachable", "frag_needed", 1200, Range(1, 1460)),
        ),
        ("< icmpv6 packet_too_big mtu 1280", IcmpPacket(IN, "packet_too_big", None, 1280)),
        ("< icmp echo_request id 7", IcmpPacket(IN, "echo_request", echo_id=7)),
        ("> [udp (4)] icmp type 3 code 13", IcmpPacket(OUT, "type 3", "code 13", None, 4)),
        ("< [ce] [udp (4)] icmp unreachable", IcmpPacket(IN, "unreachable", quote=4, ip=IpInfo(Ecn.CE))),
    ],
)
def test_packets(text, expected) -> None:
    if expected is None:
        with pytest.raises(ScriptError):
            action(text)
    else:
        assert action(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mss 1460", syntax.Mss(1460)),
        ("wscale 14", syntax.WindowScale(14)),
        ("sackOK", syntax.SackPermitted()),
        ("sack 1:2", syntax.Sack(((1, 2),))),
        ("sack 1:2 3:4 5:6 7:8", syntax.Sack(((1, 2), (3, 4), (5, 6), (7, 8)))),
        ("TS val 1 ecr 2", syntax.Timestamps(1, 2)),
        ("TS val ... ecr 2", syntax.Timestamps(None, 2)),
        ("TS val ... ecr ...", syntax.Timestamps(None, None)),
        ("nop", syntax.Nop()),
        ("eol", syntax.EndOfOptions()),
        ("FO", syntax.FastOpen()),
        ("FO 0123456789abcdef", syntax.FastOpen(bytes.fromhex("0123456789abcdef"))),
        ("FO 12345678", syntax.FastOpen(bytes.fromhex("12345678"))),
        ("FOEXP a1b2", syntax.FastOpen(b"\xa1\xb2", True)),
        ("ECN", syntax.AccurateEcn()),
        ("ECN e1b 1 ceb 2", syntax.AccurateEcn((("e1b", 1), ("ceb", 2)))),
        ("unknown 253 0a0b", syntax.UnknownOption(253, b"\x0a\x0b")),
        ("unknown 30", syntax.UnknownOption(30)),
    ],
)
def test_tcp_options(text, expected) -> None:
    assert action(f"> . 1:1(0) <nop,{text}>").options == (syntax.Nop(), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1", Integer(-1)),
        ("0x1F", Integer(31, hexadecimal=True)),
        ("SO_ERROR", Symbol("SO_ERROR")),
        ("O_RDWR|O_NONBLOCK | 4", Or((Symbol("O_RDWR"), Symbol("O_NONBLOCK"), Integer(4)))),
        (r'"a\"b\n\x00"', String('a"b\n\0')),
        ('"abc"...', String("abc", more=True)),
        ("...", ANY),
        ("[]", Array(())),
        ("[1, [2]]", Array((Integer(1), Array((Integer(2),))))),
        ("{onoff=1, linger=0}", Struct((Field(Integer(1), "onoff"), Field(Integer(0), "linger")))),
        ("{..., 1000}", Struct((Field(ANY), Field(Integer(1000))))),
        ("htons(8080)", Function("htons", (Integer(8080),))),
        (
            '{sa_family = AF_INET, sin_port = htons(80), sin_addr = inet_addr("192.0.2.1")}',
            Struct(
                (
                    Field(Symbol("AF_INET"), "sa_family"),
                    Field(Function("htons", (Integer(80),)), "sin_port"),
                    Field(Function("inet_addr", (String("192.0.2.1"),)), "sin_addr"),
                )
            ),
        ),
        (
            "{msg_name(...)=..., msg_iov(1)=[{..., 4}], msg_flags=0}",
            Struct(
                (
                    Field(ANY, "msg_name", ANY),
                    Field(Array((Struct((Field(ANY), Field(Integer(4)))),)), "msg_iov", Integer(1)),
                    Field(Integer(0), "msg_flags"),
                )
            ),
        ),
    ],
)
def test_values(text, expected) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("+0 f() = 0", SystemCall("f", (), Integer(0))),
        (
            "+0 connect(3, ..., ...) = -1 EINPROGRESS (Operation now in progress)",
            SystemCall(
                "connect", (Integer(3), ANY, ANY), Integer(-1), "EINPROGRESS", "Operation now in progress"
            ),
        ),
        ("+0 fcntl(3, F_GETFL) = 0x2 (flags O_RDWR)", None),
        ("+0 f() = A (b)", SystemCall("f", (), Symbol("A"), note="b")),
        ("0.1...0.3 f() = 1", SystemCall("f", (), Integer(1), end=300_000)),
        ("+0...1 f() = 1", SystemCall("f", (), Integer(1), end=1_000_000)),
        ("+0 `ip route show`", Command("ip route show")),
        ("+0 %{ assert 1 }%", Code(" assert 1 ")),
    ],
)
def test_other_actions(text, expected) -> None:
    (event,) = parse(text).events
    if expected is None:
        assert event.action.note == "flags O_RDWR"
    else:
        assert event.action == expected


def test_a_script_has_options_a_command_and_events() -> None:
    script = parse(
        "#!/usr/bin/env packetdrill\n// c\n--mtu=1400\n--local_ip = 10.0.0.1 /* c\n c */\n"
        '--x="a b"\n--y\n`setup`\n0 f() = 0 // c\n+0 g() = 0 +0 h() = 0\n`clean\nup`\n'
    )
    assert script.options == (
        Option("mtu", "1400"),
        Option("local_ip", "10.0.0.1"),
        Option("x", "a b"),
        Option("y", "1"),
    )
    assert script.cleanup == Command("clean\nup")
    assert script.setup == Command("setup")
    assert [event.action.name for event in script.events] == ["f", "g", "h"]
    assert [event.position.line for event in script.events] == [9, 10, 10]
    assert script.events[2].source.startswith("+0 h() = 0")


def test_conditions_and_definitions() -> None:
    text = (
        "#define PORT 7\n#ifdef V6\n0 f(6) = 0\n#else\n0 f(4, PORT) = 0\n#ifndef PORT\n$\n#endif\n#endif\n"
        '# a comment with " and `\n#undef PORT\n'
    )

    def first(**definitions):
        return parse(text, definitions=definitions).events[0]

    assert first().action.arguments == (Integer(4), Symbol("PORT"))
    assert first(V6="1").action.arguments == (Integer(6),)
    assert first().position.line == 5
    kept = text.replace("#undef PORT\n", "")
    assert parse(kept).events[0].action.arguments == (Integer(4), Integer(7))
    assert parse(kept, definitions={"PORT": "[8, 9]"}).events[0].action.arguments[1] == Array(
        (Integer(8), Integer(9))
    )


def test_definitions_at_the_head() -> None:
    text = '--define=A=7\n--define=B="x y"\n--mtu=1300\n0 f(A, B) = 0\n'
    script = parse(text)
    assert script.options == (Option("mtu", "1300"),)
    assert script.events[0].action.arguments == (Integer(7), String("x y"))
    assert parse(text, definitions={"A": "8"}).events[0].action.arguments[0] == Integer(8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1:1: expected the time of an event, not the end of the script"),
        ("foo", "1:1: expected the time of an event, not 'foo'"),
        ("+x", "1:2: expected a time after '+', not 'x'"),
        ("-1 f() = 0", "1:1: a time is from 0 to 1000000 seconds"),
        ("1~+2 > . 1:1(0)", "1:3: expected the end of the range of times, not '+'"),
        ("+1~2 > . 1:1(0)", "1:4: expected '+', not '2'"),
        ("2~1 > . 1:1(0)", "1:3: the range of times ends before it begins"),
        ("* f() = 0", "1:3: only an outbound packet may have a range of times or '*'"),
        ("0~1 < . 1:1(0) win 1", "1:5: only an outbound packet may have a range of times or '*'"),
        ("1...0.5 f() = 0", "1:5: the call returns before it begins"),
        ("*...0.5 f() = 0", "1:5: a call that blocks begins at one time, not in a range"),
        ("0 =", "1:3: expected a packet ('<' or '>'), a system call"),
        ("0 < . 1:1(0)", "1:5: an inbound segment must say its window ('win N')"),
        ("0 > X 1:1(0)", "1:5: expected TCP flags (letters of FSRPEWUA., or -), 'udp' or 'icmp', not 'X'"),
        ("0 > SS 1:1(0)", "1:5: a TCP flag is said twice"),
        ("0 > . 1:5(3)", "1:9: 1 and 3 bytes end at 4, not at 5"),
        ("0 > . 1:4(3", "1:12: expected ')', not the end of the script"),
        ("0 > . -1:1(2)", "1:7: a sequence number is from 0 to 4294967295, not -1"),
        ("0 > . 1:1(0) ack", "1:17: expected an acknowledgement number, not the end of the script"),
        ("0 > . 1:1(0) win 65536", "1:18: a window is from 0 to 65535, not 65536"),
        ("0 > . 1:1(0) <foo>", "1:15: expected a TCP option (mss, wscale, sackOK, sack, TS, nop, eol, FO"),
        ("0 > . 1:1(0) <nop nop>", "1:19: expected ',' or '>', not 'nop'"),
        ("0 > . 1:1(0) <FO abc>", "1:18: expected a cookie: up to 16 bytes in hexadecimal, not 'abc'"),
        ("0 > . 1:1(0) <sack>", "1:19: expected the left edge of a SACK block, not '>'"),
        ("0 > . 1:1(0) <sack 1:2 1:2 1:2 1:2 1:2>", "no segment has room for more than 4 SACK blocks"),
        ("0 < . 1:1(0) win 1 <...>", "1:20: only an outbound segment may have any options (<...>)"),
        (
            "0 < . 1:1(0) win 1 <TS val ... ecr 1>",
            "only an outbound segment may have a timestamp that is not",
        ),
        (
            "0 > [foo] . 1:1(0)",
            "1:6: expected noecn, ect0, ect1, ect01, ce, tos, ttl or flowlabel, not 'foo'",
        ),
        ("0 > [ce, ce] . 1:1(0)", "1:10: ce is said twice"),
        ("0 > [tos 1, ce] . 1:1(0)", "tos says what the ECN bits are already"),
        ("0 < [1:2(1)] icmp unreachable [1:2(1)]", "1:31: what the message quotes is said twice"),
        ("0 < icmp unreachable [ce]", "expected start:end(length) or udp (length), not 'ce'"),
        ("0 f(1 = 0", "1:7: expected ',' or ')', not '='"),
        ("0 f() 0", "1:7: expected '=', not '0'"),
        ("0 f() = ", "expected a value (number, name, string, '...', '[' or '{'), not the end"),
        ("0 f() = {1=2}", "1:10: expected the name of a member before '='"),
        ("0 f() = " + "[" * 40 + "]" * 40, "values nest deeper than 16"),
        ("0 f() = 0 ()", "1:12: expected the words of a note, not ')'"),
        ('0 f("abc) = 0', "1:5: the string that begins here is not closed"),
        ("0 `abc", "1:3: the command that begins here is not closed"),
        ("0 %{ abc", "1:3: the code that begins here is not closed"),
        ("/* abc", "1:1: the comment that begins here is not closed"),
        ("0 f(1, €) = 0", "1:8: no token begins with '€'"),
        ("--define=5\n0 f() = 0", "1:1: '5' is no name for a definition"),
        ("0 > W.6 1:1(0)", "1:6: the digit says what the flags A, W and E are already"),
        ("0 > .8 1:1(0)", "1:5: expected TCP flags"),
        ("0 > . 1:1(0) <ECN e0b 1 e1b 2>", "1:25: counters stand in the order e0b ceb e1b or e1b ceb e0b"),
        ("0 f() = 0\n`x`\n`y`", "2:1: expected the time of an event, not a command in back-quotes"),
        ("0 f() = 0\n--mtu=1", "2:1: options stand before the first event"),
        ("#ifdef X\n0 f() = 0", "1:1: this condition has no #endif"),
        ("#endif", "1:1: #endif without #ifdef"),
        ("#ifdef X\n#else\n#else\n#endif", "3:1: a second #else for one #ifdef"),
        ("#ifdef 7\n#endif", "1:1: expected a name, not '7'"),
        ("#ifdef X\n#endif Y", "2:1: nothing may follow #endif"),
        ('#define X "\n0 f(X) = 0', "in the definition of X: the string that begins here is not closed"),
    ],
)
def test_errors_say_where_and_what(text, message) -> None:
    with pytest.raises(ScriptError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert not isinstance(caught.value, UnsupportedSyntax)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 > ipv4 192.0.2.1 > 192.0.2.2: . 1:1(0)", "1:5: encapsulation in IPv4 is not supported"),
        ("0 > ipv6 ::1 > ::2: . 1:1(0)", "1:5: encapsulation in IPv6 is not supported"),
        ("0 > gre: . 1:1(0)", "1:5: encapsulation in GRE is not supported"),
        ("0 > mpls (label 1): . 1:1(0)", "1:5: MPLS is not supported"),
        ("0 > . 1:1(0) <md5 0011>", "1:15: the TCP option md5 is not supported"),
        ("0 < icmp unreachable [raw (1)]", "1:23: an ICMP error about a raw socket is not supported"),
        ("--define=X=`id`\n0 f() = 0", "1:1: a command as a value is not supported"),
        ("0 f(`id`) = 0", "1:5: a command as a value is not supported"),
        ('#include "x"\n', "1:1: #include is not supported"),
        ("#if 1\n", "1:1: #if is not supported"),
    ],
)
def test_what_is_not_supported_is_named(text, message) -> None:
    with pytest.raises(UnsupportedSyntax) as caught:
        parse(text)
    assert message in str(caught.value)


def test_an_error_names_the_file() -> None:
    with pytest.raises(ScriptError, match=r"^dir/x\.pkt:2:3: "):
        parse("\n0 =", path="dir/x.pkt")
