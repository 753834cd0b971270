"""The runner against the real stack: what passes, and how each thing that differs fails."""

from __future__ import annotations

import time

import pytest

from tests.testing.packetdrill.play import ACTIVE, LISTEN, PASSIVE, fails, passes, run
from tunstack.testing.packetdrill import Verdict, report
from tunstack.testing.packets import Ipv6, dissect

BOTH = pytest.mark.parametrize("flags", [(), ("--ip_version=ipv6",)], ids=["v4", "v6"])
ISNS = pytest.mark.parametrize(
    "isns",
    [(), ("--local_isn=4294967290", "--remote_isn=4294967200"), ("--local_isn=0", "--remote_isn=2147483600")],
    ids=["seed", "wrap", "half"],
)


@BOTH
@ISNS
def test_a_transfer_both_ways(flags, isns) -> None:
    passes(
        PASSIVE
        + """\
+0 write(4, ..., 1000) = 1000
+0 > P. 1:1001(1000) ack 1
+.05 < P. 1:101(100) ack 1001 win 257
+0 read(4, ..., 1000) = 100
+.04 > . 1001:1001(0) ack 101
+0 < F. 101:101(0) ack 1001 win 257
+0~+.04 > . 1001:1001(0) ack 102
+0 read(4, ..., 1000) = 0
+0 close(4) = 0
+0 > F. 1001:1001(0) ack 102
+0 < . 102:102(0) ack 1002 win 257
""",
        *flags,
        *isns,
    )


@BOTH
@ISNS
def test_an_active_open_with_timestamps_and_sack(flags, isns) -> None:
    mss = ("1460", "1440") if flags else ("1460", "1460")
    passes(
        ACTIVE.replace("> S 0:0(0) <mss 1460", f"> S 0:0(0) <mss {mss[1]}")
        + """\
+0 getsockopt(3, SOL_SOCKET, SO_ERROR, [0], [4]) = 0
+.01 < . 101:201(100) ack 1 win 257 <nop,nop,TS val 710 ecr 200>
+0 > . 1:1(0) ack 1 <nop,nop,TS val 210 ecr 700,nop,nop,sack 101:201>
+.01 < P. 1:101(100) ack 1 win 257 <nop,nop,TS val 720 ecr 210>
+0 > . 1:1(0) ack 201 <nop,nop,TS val 220 ecr 720>
+0 read(3, ..., 1000) = 200
""",
        *flags,
        *isns,
        "--tcp_ts_tick_usecs=1000",
    )


@ISNS
def test_sack_from_the_peer_and_what_it_causes(isns) -> None:
    passes(
        PASSIVE
        + """\
+0 write(4, ..., 5000) = 5000
+0 > . 1:1001(1000) ack 1
+0 > . 1001:2001(1000) ack 1
+0 > . 2001:3001(1000) ack 1
+0 > . 3001:4001(1000) ack 1
+0 > P. 4001:5001(1000) ack 1
+.1 < . 1:1(0) ack 1 win 257 <nop,nop,sack 1001:5001>
+0~+.1 > . 1:1001(1000) ack 1
+.1 < . 1:1(0) ack 5001 win 257
""",
        *isns,
    )


@BOTH
def test_datagrams_and_the_error_for_a_closed_port(flags) -> None:
    passes(
        """\
0 socket(..., SOCK_DGRAM, IPPROTO_UDP) = 3
+0 bind(3, ..., ...) = 0
+0 < udp (100)
+0 recvfrom(3, ..., 1000, 0, ..., ...) = 100
+0 sendto(3, ..., 50, 0, ..., ...) = 50
+0 > udp (50)
+0...1 poll([{fd=3, events=POLLIN, revents=0}], 1, 1000) = 0
+1 < 5 > 9999 udp (10)
+0 > icmp unreachable port_unreachable [udp (10)]
+1 < 5 > 9999 udp (10)
"""
        + f"+0 > icmp {'type 1 code 4' if flags else 'type 3 code 3'}\n",
        *flags,
    )


@pytest.mark.parametrize(
    ("expected", "hint"),
    [
        ("unreachable host_unreachable", "code: expected host_unreachable, got port_unreachable"),
        ("time_exceeded", "type: expected time_exceeded, got unreachable"),
        ("unreachable port_unreachable [udp (11)]", "quote: expected [udp (11)], got [udp (10)]"),
        ("unreachable port_unreachable [1:11(10)]", "quote: expected [1:11(10)], got [udp (10)]"),
        ("unreachable port_unreachable mtu 7", "mtu: expected 7, got None"),
    ],
)
def test_each_field_of_an_icmp_message_that_differs_fails(expected, hint) -> None:
    assert fails(f"0 < udp 5 > 9999 (10)\n+0 > icmp {expected}\n").hints == (hint,)


@pytest.mark.parametrize(
    ("flags", "error", "length"),
    [
        ((), "unreachable frag_needed mtu 1200", 1160),
        (("--ip_version=ipv6",), "packet_too_big mtu 1300", 1240),
    ],
    ids=["v4", "v6"],
)
def test_an_icmp_error_about_a_segment(flags, error, length) -> None:
    size = 1440 if flags else 1460
    start = PASSIVE.replace("<mss 1000", "<mss 1460")
    passes(
        start
        + f"""\
+0 write(4, ..., {size}) = {size}
+0 > P. 1:{size + 1}({size}) ack 1
+.01 < icmp {error} [1:{size + 1}({size})]
+0 > . 1:{length + 1}({length}) ack 1
+0 > P. {length + 1}:{size + 1}({size - length}) ack 1
""",
        *flags,
    )


def test_an_icmp_error_about_numbers_never_sent_changes_nothing() -> None:
    passes(
        PASSIVE.replace("<mss 1000", "<mss 1460")
        + """\
+0 write(4, ..., 1460) = 1460
+0 > P. 1:1461(1460) ack 1
+.01 < icmp unreachable frag_needed mtu 1200 [100001:101461(1460)]
+.01 < . 1:1(0) ack 1461 win 257
+0 write(4, ..., 1460) = 1460
+0 > P. 1461:2921(1460) ack 1
"""
    )


@BOTH
def test_an_echo_is_answered(flags) -> None:
    passes("0 < icmp echo_request id 7\n+0 > icmp echo_reply id 7\n", *flags)
    wrong = fails("0 < icmp echo_request id 7\n+0 > icmp echo_reply id 8\n")
    assert wrong.hints == ("id: expected 8, got 7",)


@BOTH
def test_two_connections_and_packets_of_the_older_one(flags) -> None:
    second = PASSIVE[len(LISTEN) :].replace("= 4", "= 5")
    both = PASSIVE + second
    passes(
        both
        + """\
+0 write(5, ..., 10) = 10
+0 > P. 1:11(10) ack 1
+0 write(4, ..., 20) = 20
+0 > 8080 > 40000 P. 1:21(20) ack 1
+.01 < 40000 > 8080 . 1:1(0) ack 21 win 257
+0 < . 1:1(0) ack 11 win 257
""",
        *flags,
    )
    result = fails(both + "+0 write(4, ..., 20) = 20\n+0 > P. 1:21(20) ack 1\n", *flags)
    assert result.hints == ("flow: the packet is of another one, 8080 > 40000; write its ports to expect it",)
    result = fails(both + "+0 write(4, ..., 20) = 20\n+0 > 8080 > 40001 P. 1:21(20) ack 1\n", *flags)
    assert result.hints == ("ports: expected 8080 > 40001, got 8080 > 40000",)


def test_a_stray_segment_is_no_connection() -> None:
    passes(
        PASSIVE
        + """\
+0 < 4711 > 9999 . 5:5(0) ack 77 win 100
+0 > 9999 > 4711 R 77:77(0)
+0 write(4, ..., 10) = 10
+0 > P. 1:11(10) ack 1
"""
    )


def test_a_failure_names_what_the_stack_dropped() -> None:
    result = fails(PASSIVE + "+0 < . 9:9(0) ack 100000 win 5\n+.1 > . 1:1(0) ack 7\n")
    assert result.notes == ["the stack dropped: tcp-bad-ack 1"]
    assert "  note      the stack dropped: tcp-bad-ack 1" in report(result)


def test_a_syn_that_is_repeated_and_one_within_a_connection() -> None:
    passes(
        LISTEN
        + """\
+.1 < S 0:0(0) win 32792 <mss 1000>
+0 > S. 0:0(0) ack 1 <...>
+.1 < S 0:0(0) win 32792 <mss 1000>
+0 > S. 0:0(0) ack 1 <...>
+.1 < . 1:1(0) ack 1 win 257
+1 < S 1:1(0) win 32792 <mss 1000>
+0 > . 1:1(0) ack 1
"""
    )


def test_a_new_connection_from_the_same_port_in_time_wait() -> None:
    passes(
        PASSIVE
        + """\
+0 close(4) = 0
+0 > F. 1:1(0) ack 1
+0 < F. 1:1(0) ack 2 win 257
+0 > . 2:2(0) ack 2
+1 < S 5000:5000(0) win 32792 <mss 1000>
+0 > S. 0:0(0) ack 5001 <...>
+0 < . 5001:5001(0) ack 1 win 257
"""
    )


def test_the_script_may_name_the_isn() -> None:
    passes(
        LISTEN
        + """\
+.1 < S 1000:1000(0) win 32792 <mss 1000>
+0 > S. 5000:5000(0) ack 1001 <...>
+0 < . 1001:1001(0) ack 5001 win 257
+0 accept(3, ..., ...) = 4
+0 write(4, ..., 10) = 10
+0 > P. 5001:5011(10) ack 1001
"""
    )


NODELAY = PASSIVE + "+0 setsockopt(4, SOL_TCP, TCP_NODELAY, [1], 4) = 0\n"
SENDS_FIVE = NODELAY + "+0 write(4, ..., 4500) = 4500\n"


def test_a_train_is_taken_as_one() -> None:
    passes(SENDS_FIVE + "+0 > P. 1:4501(4500) ack 1\n")
    passes(SENDS_FIVE + "+0 > . 1:3001(3000) ack 1\n+0 > P. 3001:4501(1500) ack 1\n")
    passes(SENDS_FIVE + "+0 > . 1:1001(1000) ack 1\n+0 > P. 1001:4501(3500) ack 1\n")
    seen = []
    passes(SENDS_FIVE + "+0 > P. 1:4501(4500) ack 1\n", trace=seen.append)
    assert seen[-1].endswith("> P. 1:4501(4500) ack 1 win 256  // 5 segments")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("+0 > . 1:4501(4500) ack 1", "flags: expected ., got P."),
        ("+0 > P. 1:4001(4000) ack 1", "flags: expected P., got ."),
        ("+0 > P. 1:4500(4499) ack 1", "payload length: expected 4499, got 4000"),
        ("+0 > P. 1:4502(4501) ack 1", "payload length: expected 4501, got 4500"),
        ("+0 > . 1:1501(1500) ack 1", "payload length: expected 1500, got 1000"),
        ("+0 > . 1:501(500) ack 1", "payload length: expected 500, got 1000"),
    ],
)
def test_a_train_that_differs(line, hint) -> None:
    assert hint in fails(SENDS_FIVE + line).hints


def test_segments_that_are_too_small_are_no_train() -> None:
    small = NODELAY + "+0 write(4, ..., 500) = 500\n+0 write(4, ..., 500) = 500\n"
    passes(small + "+0 > P. 1:501(500) ack 1\n+0 > P. 501:1001(500) ack 1\n")
    assert "payload length: expected 1000, got 500" in fails(small + "+0 > P. 1:1001(1000) ack 1\n").hints


# what differs


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("+0 > . 1:1001(1000) ack 1", "flags: expected ., got P."),
        ("+0 > PE. 1:1001(1000) ack 1", "flags: expected PE., got P."),
        ("+0 > P. 2:1002(1000) ack 1", "sequence number: expected 2, got 1"),
        ("+0 > P. 1:1000(999) ack 1", "payload length: expected 999, got 1000"),
        ("+0 > P. 1:1001(1000) ack 2", "ack: expected 2, got 1"),
        ("+0 > P. 1:1001(1000)", "ack: expected 0, got 1"),
        ("+0 > P. 1:1001(1000) ack 1 win 1", "win: expected 1, got 256"),
        ("+0 > P. 1:1001(1000) ack 1 urg 1", "urg: expected 1, got 0"),
        ("+0 > P. 1:1001(1000) ack 1 <nop>", "options: expected <nop>, got none"),
        ("+0 > [ect0] P. 1:1001(1000) ack 1", "ECN: expected ect0, got noecn"),
        ("+0 > [ect01] P. 1:1001(1000) ack 1", "ECN: expected ect0 or ect1, got noecn"),
        ("+0 > [tos 4] P. 1:1001(1000) ack 1", "tos: expected 4, got 0"),
        ("+0 > [ttl 1] P. 1:1001(1000) ack 1", "ttl: expected 1, got 64"),
        ("+0 > udp (1000)", "protocol: expected UDP, got TCP"),
        ("+0 > icmp unreachable", "protocol: expected ICMP, got TCP"),
        ("+.1 > P. 1:1001(1000) ack 1", "time: expected 0.300000 s, got 0.200000 s"),
        ("+.1~+.2 > P. 1:1001(1000) ack 1", "time: expected 0.300000~0.400000 s, got 0.200000 s"),
        ("1.1 > P. 1:1001(1000) ack 1", "time: expected 1.100000 s, got 0.200000 s"),
    ],
)
def test_each_field_that_differs_fails(line, hint) -> None:
    result = fails(PASSIVE + "+0 write(4, ..., 1000) = 1000\n" + line)
    assert result.hints == (hint,)
    assert result.source == line
    assert result.actual.startswith("0.200000 > ")
    assert "P. 1:1001(1000) ack 1 win 256" in result.actual
    assert f"x.pkt:{result.position.line}: failed: " in report(result)
    assert f"  differs   {hint}" in report(result)


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("mss 1460", "mss 1461", "option: expected mss 1461, got mss 1460"),
        ("wscale 7", "wscale 8", "option: expected wscale 8, got wscale 7"),
        ("sackOK", "nop", "option: expected nop, got sackOK"),
        ("ecr 0", "ecr 1", "option: expected TS val 100 ecr 1, got TS val 100 ecr 0"),
        (
            ",nop,wscale 7",
            "",
            "options: expected <mss 1460,sackOK,TS val 100 ecr 0>, got <mss 1460,sackOK,TS val ",
        ),
    ],
)
def test_each_option_that_differs_fails(old, new, hint) -> None:
    syn = ACTIVE[: ACTIVE.index("+.1")].replace("> S 0:0(0) <", "> S 0:0(0) <", 1)
    before, _, options = syn.partition("<")
    result = fails(before + "<" + options.replace(old, new))
    assert len(result.hints) == 1
    assert result.hints[0].startswith(hint)


def test_timestamps_are_verified_if_their_tick_is_known() -> None:
    late = ACTIVE.replace("TS val 200 ecr 700", "TS val 205 ecr 700")
    passes(late)
    result = fails(late, "--tcp_ts_tick_usecs=1000")
    assert result.hints == ("option: expected TS val 205 ecr 700, got TS val 200 ecr 700",)


def test_syn_options_in_any_order() -> None:
    shuffled = ACTIVE.replace(
        "<mss 1460,sackOK,TS val 100 ecr 0,nop,wscale 7>",
        "<nop,nop,wscale 7,TS val 100 ecr 0,sackOK,mss 1460>",
    )
    assert run(shuffled).verdict is Verdict.FAILED
    passes(shuffled, "--syn_options=any")
    for old, new, hint in [
        ("wscale 7", "wscale 6", "option: expected wscale 6, which is not there"),
        ("sackOK,", "", "option: sackOK is not expected"),
    ]:
        assert hint in run(shuffled.replace(old, new), "--syn_options=any").hints


def test_windows_can_be_ignored() -> None:
    script = PASSIVE + "+0 write(4, ..., 10) = 10\n+0 > P. 1:11(10) ack 1 win 7\n"
    fails(script)
    passes(script, "--ignore_window=1")
    passes("--ignore_window=1\n" + script)


def test_a_packet_that_does_not_come() -> None:
    result = fails(PASSIVE + "+0 > P. 1:1001(1000) ack 1\n")
    assert result.message == "no packet came until 0.204000 s"
    assert result.expected == "0.200000 > P. 1:1001(1000) ack 1"
    result = fails(PASSIVE + "* > P. 1:1001(1000) ack 1\n")
    assert result.expected.startswith("* > P.")


def test_a_packet_that_comes_unexpected() -> None:
    script = PASSIVE + "+0 write(4, ..., 1000) = 1000\n+.1 < . 1:1(0) ack 1001 win 257\n"
    result = run(script)
    assert result.verdict is Verdict.FAILED
    assert result.message == "the stack sent a packet that no event expects"
    assert result.actual == "0.200000 > P. 1:1001(1000) ack 1 win 256"
    assert report(result).startswith("x.pkt: failed: ")
    # One that follows from the last event is nobody's business, but shown.
    seen = []
    passes(PASSIVE + "+0 write(4, ..., 1000) = 1000\n", trace=seen.append)
    assert seen[-1] == "0.200000 > P. 1:1001(1000) ack 1 win 256  // no event took it"


def test_tolerance() -> None:
    script = PASSIVE + "+0 write(4, ..., 10) = 10\n+0 > P. 1:11(10) ack 1\n+{} > P. 1:11(10) ack 1\n"
    at = next(
        ms / 1000 for ms in range(1, 2000) if run(script.format(ms / 1000), "--tolerance_usecs=500").passed
    )
    for off, passed in [(0.0035, True), (-0.0035, True), (0.0055, False), (-0.0055, False)]:
        assert run(script.format(at + off)).passed is passed
    passes(script.format(at + 0.02), "--tolerance_usecs=30000")
    passes(script.format(at + 0.02), "--tolerance_percent=30")
    passes(script.format("0~+3"))
    passes(script.replace("+{}", "*"))


# system calls


@pytest.mark.parametrize(
    ("line", "hints"),
    [
        ("+0 read(4, ..., 10) = 5", ("result: expected 5, got -1", "errno: EAGAIN")),
        ("+0 read(4, ..., 10) = -1 EINVAL (no)", ("errno: expected EINVAL, got EAGAIN",)),
        ("+0 write(4, ..., 10) = 11", ("result: expected 11, got 10",)),
        ("+0 write(4, ..., 10) = 10 EINVAL (no)", ("errno: expected EINVAL, got none",)),
        ("+0 write(4, ..., 10) = -1 EFOO (no)", ()),
        ("+0 socket(..., SOCK_STREAM, IPPROTO_TCP) = -1", ("result: expected -1, got 5",)),
        ("+0 getsockopt(4, SOL_SOCKET, SO_TYPE, [7], [4]) = 0", ("argument 4: expected [7], got [1]",)),
        (
            "+0 poll([{fd=4, events=POLLOUT, revents=POLLIN}], 1, 0) = 1",
            None,
        ),
    ],
)
def test_each_result_that_differs_fails(line, hints) -> None:
    result = fails(PASSIVE + "+0 fcntl(4, F_SETFL, O_RDWR|O_NONBLOCK) = 0\n" + line)
    if hints is None:
        assert result.hints[0].startswith(
            "argument 1: expected [{fd=4, events=POLLOUT, revents=POLLIN}], got "
        )
    else:
        assert result.hints == hints


def test_results_by_name_and_wildcards() -> None:
    passes(
        PASSIVE
        + """\
+0 fcntl(4, F_SETFL, O_RDWR|O_NONBLOCK) = 0
+0 read(4, ..., 10) = -1 EWOULDBLOCK (another name of EAGAIN)
+0 read(4, ..., 10) = ...
+0 read(4, ..., 10) = -1
+0 getsockopt(4, SOL_SOCKET, SO_TYPE, [SOCK_STREAM], [4]) = 0
+0 poll([{fd=4, events=POLLOUT, revents=POLLOUT}], 1, 0) = 1
"""
    )


def test_the_script_may_number_descriptors_as_it_likes() -> None:
    passes(
        PASSIVE.replace("(3,", "(7,").replace("= 3\n", "= 7\n").replace("= 4\n", "= 3\n")
        + """\
+0 write(3, ..., 10) = 10
+0 > P. 1:11(10) ack 1
+0 poll([{fd=3, events=POLLOUT, revents=POLLOUT}], 1, 0) = 1
"""
    )


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("0.3", None),
        ("0.303", None),
        ("0.2", "read has not returned, at 0.300000 s"),
        ("0.4", "read did not return when it should"),
    ],
)
def test_a_call_that_blocks(end, message) -> None:
    script = (
        PASSIVE + f"0.2...{end} read(4, ..., 100) = 10\n0.3 < P. 1:11(10) ack 1 win 257\n0.5 close(3) = 0\n"
    )
    if message is None:
        passes(script.replace("0.5 close", "0.34 > . 1:1(0) ack 11\n0.5 close"))
        return
    result = run(script)
    assert result.verdict is Verdict.FAILED
    assert result.message == message
    assert "read(4" in result.source
    if end == "0.4":
        assert result.hints == ("time: expected 0.400000 s, got 0.300000 s",)


def test_a_call_that_blocks_at_the_end_and_one_that_was_not_said_to() -> None:
    passes(PASSIVE + "+0...0.5 poll([{fd=4, events=POLLIN, revents=0}], 1, 500) = 0\n")
    result = fails(PASSIVE + "+0...0.4 poll([{fd=4, events=POLLIN, revents=0}], 1, 500) = 0\n")
    assert result.message == "poll has not returned, at 0.604001 s"
    result = fails(PASSIVE + "+0 poll([{fd=4, events=POLLIN, revents=0}], 1, 500) = 0\n")
    assert result.message == "poll returned at 0.700000 s, and the script says at once (write 0...TIME)"
    result = fails(PASSIVE + "+0 read(4, ..., 10) = 0\n")
    assert result.message == "read blocks for ever, and the script says it does not"


def test_what_is_not_supported_is_an_error_with_its_line() -> None:
    for line, name in [("+0 epoll_create(1) = 5", "epoll_create"), ("+0 bind(3, FOO, 1) = 0", "FOO")]:
        result = run(LISTEN + line)
        assert result.verdict is Verdict.ERROR
        assert result.position.line == 5
        assert name in result.message
        assert "is not supported" in result.message
    result = run("\n0 < icmp packet_too_big mtu 1300\n")
    assert report(result).startswith("x.pkt:2:1: error: ICMP over IPv4 with packet_too_big is not supported")
    assert run("0 > [flowlabel 1] . 1:1(0)").message == "IPv4 has no flow label"
    assert run("0 =").verdict is Verdict.ERROR


@pytest.mark.parametrize(
    "packet",
    [
        "< . 1:65536(65535) ack 1 win 1",
        "< . 1:1(0) ack 1 win 1 <sack 1:2 3:4 5:6 7:8,TS val 1 ecr 1>",
    ],
)
def test_a_packet_that_cannot_be_is_an_error_before_anything_runs(packet) -> None:
    result = run(f"0 socket(..., SOCK_STREAM, IPPROTO_TCP) = -7\n+0 {packet}\n")
    assert result.verdict is Verdict.ERROR
    assert result.position.line == 2
    assert result.message == "the packet is too long for the headers of IP and TCP"


# the rest


def test_code_sees_tcp_info_and_keeps_its_names() -> None:
    seen = []
    passes(
        PASSIVE
        + """\
+0 %{
x = tcpi_snd_cwnd
assert tcpi_state == TCP_ESTABLISHED
print("cwnd", x)
}%
+0 %{ assert x == tcpi_snd_cwnd }%
""",
        trace=seen.append,
    )
    assert any(line.strip().startswith("cwnd ") for line in seen)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("assert tcpi_snd_cwnd == 999, tcpi_snd_cwnd", "AssertionError: 10 in `assert tcpi_snd_cwnd == 999"),
        ("assert 1 +", "the code is not Python: "),
        ("foo", "NameError: name 'foo' is not defined in `foo`"),
    ],
)
def test_code_that_fails(code, message) -> None:
    result = fails(PASSIVE + f"+0 %{{ {code} }}%")
    assert result.message.startswith(message)


def test_commands_are_not_run_and_noted(tmp_path) -> None:
    result = passes(f"`touch {tmp_path}/a`\n0 `touch {tmp_path}/b`\n")
    assert result.notes == [
        f"the command `touch {tmp_path}/a` at the head is not run",
        f"the command `touch {tmp_path}/b` in line 2 is not run",
    ]
    assert not list(tmp_path.iterdir())


def test_failures_that_are_not_fatal_are_noted() -> None:
    script = PASSIVE + "+0 write(4, ..., 10) = 11\n+0 > P. 1:12(11) ack 1\n"
    assert run(script, "--non_fatal=packet").verdict is Verdict.FAILED
    result = passes(script, "--non_fatal=packet,syscall")
    assert len(result.notes) == 2
    assert all("(not fatal)" in note for note in result.notes)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--foo=1", "there is no option --foo"),
        ("--so_filename=x.so", "--so_filename is not supported: the stack is no shared library"),
        ("--ip_version=ipv4-mapped-ipv6", "--ip_version should be ipv4 or ipv6"),
        ("--mtu=10", "--mtu should be a number from 68 to 65535"),
        ("--local_ip=::1", "--local_ip should be an IPv4 address (--ip_version)"),
        ("--local_ip=x", "--local_ip should be an IP address"),
        ("--netmask_ip=255.0.255.0", "--netmask_ip should be a netmask whose ones come first"),
        ("--bind_port=0", "--bind_port should be a number from 1 to 65535"),
        ("--tolerance_percent=x", "--tolerance_percent should be a number"),
        ("--non_fatal=foo", "--non_fatal should be a list of packet, syscall"),
        ("--tcp_ecn=7", "--tcp_ecn should be 0 (off), 1 (on) or 2 (passive)"),
        ("--congestion=foo", "--congestion should be one of "),
        ("--syn_options=foo", "--syn_options should be any or exact"),
        ("--ignore_window=foo", "--ignore_window should be 0 or 1"),
    ],
)
def test_options_that_are_wrong(flag, message) -> None:
    result = run(f"{flag}\n{LISTEN}")
    assert result.verdict is Verdict.ERROR
    assert result.position.line == 1
    assert result.message.startswith(message)
    assert run(LISTEN, flag).message.startswith(message)
    assert report(run(LISTEN, flag)).startswith("x.pkt: error: ")


def test_options_change_what_they_say() -> None:
    script = "--ip_version=ipv6\n--local_ip=fd00::1\n--remote_ip=fd00::2\n--netmask_ip=/64\n--mtu=1300\n"
    packets = []
    passes(
        script + "--bind_port=81\n" + PASSIVE.replace("<...>", "<mss 1240,nop,nop,sackOK,nop,wscale 7>"),
        tap=lambda time, data, outbound: packets.append((dissect(data), outbound)),
    )
    frame = next(frame for frame, outbound in packets if outbound)
    assert isinstance(frame.ip, Ipv6)
    assert frame.ip.src[-1] == 1
    assert frame.ip.dst[-1] == 2
    assert frame.tcp.src_port == 81
    result = passes("--speed=1\n--gateway_ip=10.0.0.1\n" + PASSIVE)
    assert len(result.notes) == 2


def test_the_command_line_wins() -> None:
    passes("--mtu=70\n" + PASSIVE.replace("<...>", "<mss 1360,nop,nop,sackOK,nop,wscale 7>"), "--mtu=1400")


def test_ecn_is_agreed_to_and_asked_for_as_told() -> None:
    asked = LISTEN + "+.1 < SEW 0:0(0) win 32792 <mss 1000>\n+0 > S{}. 0:0(0) ack 1 <...>\n"
    passes(asked.format("E"))
    passes(asked.format(""), "--tcp_ecn=0")
    opened = ACTIVE[: ACTIVE.index("+.1")]
    passes(opened)
    passes(opened.replace("> S 0", "> SEW 0"), "--tcp_ecn=1")
    passes(
        asked.format("E")
        + """\
+.1 < . 1:1(0) ack 1 win 32792
+0 accept(3, ..., ...) = 4
+0 write(4, ..., 100) = 100
+0 > [ect0] P. 1:101(100) ack 1
+.01 < [ce] P. 1:11(10) ack 101 win 32792
+0~+.04 > [noecn] E. 101:101(0) ack 11
"""
    )


def test_an_unknown_option_from_the_peer_is_sent_as_written() -> None:
    packets = []
    passes(
        LISTEN
        + "+0 < S 0:0(0) win 1 <mss 1000,unknown 253 0a0b,FOEXP a1b2>\n+0 > S. 0:0(0) ack 1 <mss 1460>\n",
        tap=lambda time, data, outbound: packets.append(dissect(data)),
    )
    assert [(option.kind, option.data.hex()) for option in packets[0].tcp.options[1:]] == [
        (253, "0a0b"),
        (254, "f989a1b2"),
    ]


def test_thirty_seconds_take_less_than_one() -> None:
    lines = [PASSIVE]
    for count in range(300):
        seq, ack = 1 + 100 * count, 1 + 100 * count
        lines.append(f"+.1 < P. {seq}:{seq + 100}(100) ack {ack} win 257\n")
        lines.append("+0 read(4, ..., 1000) = 100\n+0 write(4, ..., 100) = 100\n")
        lines.append(f"+0 > P. {ack}:{ack + 100}(100) ack {seq + 100}\n")
    before = time.process_time()
    result = passes("".join(lines))
    assert result.duration >= 30
    assert time.process_time() - before < 1
