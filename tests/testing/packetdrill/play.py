"""Beginnings of scripts, and runs of a whole one that must pass or fail."""

from __future__ import annotations

from tunstack.testing.packetdrill import Result, Verdict, parse_option, report, run_text

LISTEN = """\
0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
+0 setsockopt(3, SOL_SOCKET, SO_RCVBUF, [32768], 4) = 0
+0 bind(3, ..., ...) = 0
+0 listen(3, 1) = 0
"""
PASSIVE = (
    LISTEN
    + """\
+.1 < S 0:0(0) win 32792 <mss 1000,sackOK,nop,nop,nop,wscale 7>
+0 > S. 0:0(0) ack 1 <...>
+.1 < . 1:1(0) ack 1 win 257
+0 accept(3, ..., ...) = 4
"""
)
ACTIVE = """\
0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
+0 setsockopt(3, SOL_SOCKET, SO_RCVBUF, [32768], 4) = 0
+0 fcntl(3, F_SETFL, O_RDWR|O_NONBLOCK) = 0
+0 connect(3, ..., ...) = -1 EINPROGRESS (Operation now in progress)
+0 > S 0:0(0) <mss 1460,sackOK,TS val 100 ecr 0,nop,wscale 7>
+.1 < S. 0:0(0) ack 1 win 65535 <mss 1460,sackOK,TS val 700 ecr 100,nop,wscale 8>
+0 > . 1:1(0) ack 1 <nop,nop,TS val 200 ecr 700>
"""


def run(text: str, *flags: str, **more) -> Result:
    return run_text(text, "x.pkt", options=[parse_option(flag) for flag in flags], **more)


def passes(text: str, *flags: str, **more) -> Result:
    result = run(text, *flags, **more)
    assert result.passed, report(result)
    return result


def fails(text: str, *flags: str) -> Result:
    """The result of a script that must fail, at its last line."""
    result = run(text, *flags)
    assert result.verdict is Verdict.FAILED, report(result)
    assert result.position.line == len(text.rstrip("\n").split("\n")), report(result)
    return result
