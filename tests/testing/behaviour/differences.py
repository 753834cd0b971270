"""Where tunstack and Linux are known to behave differently, and why: the one place where that is declared.

A test that finds one asks `dut.differs(name)` for what its device does. So a difference that is not declared
fails, and so does one that is declared and no longer there: the device does something else than the table
says, and once the table is mended, `test_differences.py` refuses an entry whose two sides are equal.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tunstack.tcp.endpoint import CloseReason
from tunstack.tcp.states import State


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What each does, and the reason. `known`: False where this machine's Linux is too old to differ."""

    tunstack: Any
    linux: Any
    reason: str
    known: bool = True


DIFFERENCES: dict[str, Difference] = {
    "SYN retransmission": Difference(
        tunstack=(1, 2, 4),
        linux=(1, 1, 1),
        reason="Linux repeats the first four SYNs at the same interval; RFC 6298 5.5 doubles it",
        known=Path("/proc/sys/net/ipv4/tcp_syn_linear_timeouts").exists(),
    ),
    "SYN again after a wrong ACK": Difference(
        tunstack=False,
        linux=True,
        reason="Linux repeats its SYN two ticks after an answer with a wrong ACK, in case it was an old "
        "connection's; the RFC leaves it to the timer",
    ),
    "RST in TIME-WAIT": Difference(
        tunstack=State.TIME_WAIT,
        linux=State.CLOSED,
        reason="RFC 1337: a reset must not cut TIME-WAIT short; Linux follows it only with tcp_rfc1337=1",
    ),
    "RST for data after close": Difference(
        tunstack="RA",
        linux="R",
        reason="tunstack still knows the connection and aborts it, with the ACK of an abort; Linux answers "
        "as CLOSED does, with the number that was acknowledged",
    ),
    "segments without the timestamp": Difference(
        tunstack=False,
        linux=True,
        reason="RFC 7323 3.2 says that such a segment should be dropped; Linux takes it",
    ),
    "urgent data": Difference(
        tunstack=b"abcdef",
        linux=b"abdef",
        reason="the last urgent byte is out of band for users of Linux sockets; in tunstack it stays inline",
    ),
    "zero window probe": Difference(
        tunstack=(0, b"w"),
        linux=(-1, b""),
        reason="Linux probes with an old number and no data, which a peer must answer as well",
    ),
    "port unreachable": Difference(
        tunstack=CloseReason.UNREACHABLE,
        linux=CloseReason.REFUSED,
        reason="Linux tells a user ECONNREFUSED for it; tunstack has a word of its own for what ICMP said",
    ),
}
