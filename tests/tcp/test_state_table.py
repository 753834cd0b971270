"""Every state against every kind of segment, at both edges of the window and just beyond them.

The grids say what RFC 9293 3.10.7 asks for, with the mitigations of RFC 5961 (3.2, 4.2, 5.2) that it adopts
and RFC 1337 in TIME-WAIT; they were written from those texts. `DIFFERENCES` lists where we do something else,
and why. In the first set of grids the segments carry a right acknowledgement of all that was sent, and the
rows are places of SEG.SEQ: `below` is RCV.NXT - 1, `left` RCV.NXT, `right` the last number inside the window,
`above` the first behind it. In the second set SEG.SEQ is RCV.NXT and the rows are places of SEG.ACK.

    -            nothing happens
    ack          an ACK <SEQ=SND.NXT><ACK=RCV.NXT>, nothing else
    data         the byte is delivered, and acknowledged within half a second
    rst          a reset <SEQ=SEG.ACK>
    rst-ack      a reset <SEQ=0><ACK=SEG.SEQ+SEG.LEN>
    syn-ack      a SYN-ACK for this SYN
    reset        the end, and the user is told that the peer did it
    listen       the end, in silence: the next SYN finds LISTEN
    closed       the orderly end
    what>state   the same, and that state afterwards
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.tcp.peer import MOD, RCV_NXT, SND_NXT, STARTERS, Peer, syn_sent
from tunstack.tcp.connection import CloseReason
from tunstack.tcp.states import State

pytestmark = [pytest.mark.usefixtures("isns"), pytest.mark.rfc("9293", "3.10.7.4")]

FAMILIES: dict[str, dict[str, Any]] = {"v4": {}, "v6": {"family": 6}}
"""Options of the `Peer` for each family."""

SEGMENTS = {
    "SYN": ("S", b""),
    "SYN-ACK": ("SA", b""),
    "SYN-FIN": ("SF", b""),
    "ACK": ("A", b""),
    "FIN": ("F", b""),
    "FIN-ACK": ("FA", b""),
    "RST": ("R", b""),
    "RST-ACK": ("RA", b""),
    "data": ("A", b"x"),
}

GRIDS = {
    "closed": """
            SYN      SYN-ACK  SYN-FIN  ACK  FIN      FIN-ACK  RST  RST-ACK  data
    below   rst-ack  rst      rst-ack  rst  rst-ack  rst      -    -        rst
    left    rst-ack  rst      rst-ack  rst  rst-ack  rst      -    -        rst
    right   rst-ack  rst      rst-ack  rst  rst-ack  rst      -    -        rst
    above   rst-ack  rst      rst-ack  rst  rst-ack  rst      -    -        rst
    """,
    "listen": """
            SYN      SYN-ACK  SYN-FIN  ACK  FIN      FIN-ACK  RST  RST-ACK  data
    below   syn-ack  rst      syn-ack  rst  -        rst      -    -        rst
    left    syn-ack  rst      syn-ack  rst  -        rst      -    -        rst
    right   syn-ack  rst      syn-ack  rst  -        rst      -    -        rst
    above   syn-ack  rst      syn-ack  rst  -        rst      -    -        rst
    """,
    "syn-sent": """
            SYN      SYN-ACK          SYN-FIN  ACK  FIN  FIN-ACK  RST  RST-ACK  data
    below   syn-ack  ack>established  syn-ack  -    -    -        -    refused  -
    left    syn-ack  ack>established  syn-ack  -    -    -        -    refused  -
    right   syn-ack  ack>established  syn-ack  -    -    -        -    refused  -
    above   syn-ack  ack>established  syn-ack  -    -    -        -    refused  -
    """,
    "syn-received": """
            SYN     SYN-ACK  SYN-FIN  ACK            FIN  FIN-ACK          RST    RST-ACK  data
    below   ack     ack      listen   ack            ack  ack              -      -        ack
    left    listen  listen   listen   ->established  -    ack>close-wait   reset  reset    data>established
    right   listen  listen   listen   ->established  -    ack>established  ack    ack      ack>established
    above   ack     ack      ack      ack            ack  ack              -      -        ack
    """,
    "syn-received, opened actively": """
            SYN  SYN-ACK  SYN-FIN  ACK            FIN  FIN-ACK          RST      RST-ACK  data
    below   ack  ack      ack      ack            ack  ack              -        -        ack
    left    ack  ack      ack      ->established  -    ack>close-wait   refused  refused  data>established
    right   ack  ack      ack      ->established  -    ack>established  ack      ack      ack>established
    above   ack  ack      ack      ack            ack  ack              -        -        ack
    """,
    "established": """
            SYN  SYN-ACK  SYN-FIN  ACK  FIN  FIN-ACK         RST    RST-ACK  data
    below   ack  ack      ack      ack  ack  ack             -      -        ack
    left    ack  ack      ack      -    -    ack>close-wait  reset  reset    data
    right   ack  ack      ack      -    -    ack             ack    ack      ack
    above   ack  ack      ack      ack  ack  ack             -      -        ack
    """,
    "fin-wait-1": """
            SYN  SYN-ACK  SYN-FIN  ACK           FIN  FIN-ACK         RST    RST-ACK  data
    below   ack  ack      ack      ack           ack  ack             -      -        ack
    left    ack  ack      ack      ->fin-wait-2  -    ack>time-wait   reset  reset    data>fin-wait-2
    right   ack  ack      ack      ->fin-wait-2  -    ack>fin-wait-2  ack    ack      ack>fin-wait-2
    above   ack  ack      ack      ack           ack  ack             -      -        ack
    """,
    "fin-wait-2": """
            SYN  SYN-ACK  SYN-FIN  ACK  FIN  FIN-ACK        RST    RST-ACK  data
    below   ack  ack      ack      ack  ack  ack            -      -        ack
    left    ack  ack      ack      -    -    ack>time-wait  reset  reset    data
    right   ack  ack      ack      -    -    ack            ack    ack      ack
    above   ack  ack      ack      ack  ack  ack            -      -        ack
    """,
    "close-wait": """
            SYN  SYN-ACK  SYN-FIN  ACK  FIN  FIN-ACK  RST    RST-ACK  data
    below   ack  ack      ack      ack  ack  ack      -      -        ack
    left    ack  ack      ack      -    -    ack      reset  reset    -
    right   ack  ack      ack      -    -    ack      ack    ack      -
    above   ack  ack      ack      ack  ack  ack      -      -        ack
    """,
    "closing": """
            SYN  SYN-ACK  SYN-FIN  ACK          FIN  FIN-ACK        RST     RST-ACK  data
    below   ack  ack      ack      ack          ack  ack            -       -        ack
    left    ack  ack      ack      ->time-wait  -    ack>time-wait  closed  closed   ->time-wait
    right   ack  ack      ack      ->time-wait  -    ack>time-wait  ack     ack      ->time-wait
    above   ack  ack      ack      ack          ack  ack            -       -        ack
    """,
    "last-ack": """
            SYN  SYN-ACK  SYN-FIN  ACK     FIN  FIN-ACK  RST     RST-ACK  data
    below   ack  ack      ack      ack     ack  ack      -       -        ack
    left    ack  ack      ack      closed  -    closed   closed  closed   closed
    right   ack  ack      ack      closed  -    closed   ack     ack      closed
    above   ack  ack      ack      ack     ack  ack      -       -        ack
    """,
    "time-wait": """
            SYN      SYN-ACK  SYN-FIN  ACK  FIN  FIN-ACK  RST  RST-ACK  data
    below   ack      ack      ack      ack  ack  ack      -    -        ack
    left    ack      ack      ack      -    -    ack      -    -        -
    right   syn-ack  ack      ack      -    -    ack      -    -        -
    above   syn-ack  ack      ack      ack  ack  ack      -    -        ack
    """,
}

# `ancient` is SND.UNA - MAX.SND.WND - 1, `oldest` the number above it, `una` SND.UNA, `ahead` SND.NXT + 1.
ACK_GRIDS = {
    "syn-sent": """
             SYN-ACK  ACK  FIN-ACK  RST-ACK  data
    ancient  rst      rst  rst      -        rst
    oldest   rst      rst  rst      -        rst
    una      rst      rst  rst      -        rst
    ahead    rst      rst  rst      -        rst
    """,
    "syn-received": """
             ACK  FIN-ACK  RST-ACK  data
    ancient  rst  rst      reset    rst
    oldest   rst  rst      reset    rst
    una      rst  rst      reset    rst
    ahead    rst  rst      reset    rst
    """,
    "established": """
             ACK  FIN-ACK         RST-ACK  data
    ancient  ack  ack             reset    ack
    oldest   -    ack>close-wait  reset    data
    una      -    ack>close-wait  reset    data
    ahead    ack  ack             reset    ack
    """,
    "fin-wait-1": """
             ACK  FIN-ACK      RST-ACK  data
    ancient  ack  ack          reset    ack
    oldest   -    ack>closing  reset    data
    una      -    ack>closing  reset    data
    ahead    ack  ack          reset    ack
    """,
    "fin-wait-2": """
             ACK  FIN-ACK        RST-ACK  data
    ancient  ack  ack            reset    ack
    oldest   -    ack>time-wait  reset    data
    una      -    ack>time-wait  reset    data
    ahead    ack  ack            reset    ack
    """,
    "close-wait": """
             ACK  FIN-ACK  RST-ACK  data
    ancient  ack  ack      reset    ack
    oldest   -    ack      reset    -
    una      -    ack      reset    -
    ahead    ack  ack      reset    ack
    """,
    "closing": """
             ACK  FIN-ACK  RST-ACK  data
    ancient  ack  ack      closed   ack
    oldest   -    ack      closed   -
    una      -    ack      closed   -
    ahead    ack  ack      closed   ack
    """,
    "last-ack": """
             ACK  FIN-ACK  RST-ACK  data
    ancient  ack  ack      closed   ack
    oldest   -    ack      closed   -
    una      -    ack      closed   -
    ahead    ack  ack      closed   ack
    """,
    "time-wait": """
             ACK  FIN-ACK  RST-ACK  data
    ancient  ack  ack      -        ack
    oldest   -    ack      -        -
    una      -    ack      -        -
    ahead    ack  ack      -        ack
    """,
}

GOOD_ACK = {
    "syn-received": "established",
    "syn-received, opened actively": "established",
    "fin-wait-1": "fin-wait-2",
    "closing": "time-wait",
    "last-ack": "closed",
}
"""Where an acknowledgement of all that was sent leads."""


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """What we do instead.

    `states`, `rows` and `segments` are regular expressions, `outcome` is that of a grid; `{ack}` in it is
    where a good acknowledgement leads.
    """

    states: str
    rows: str
    segments: str
    outcome: str
    reason: str

    def matches(self, state: str, row: str, segment: str) -> bool:
        return all(
            re.fullmatch(pattern, text)
            for pattern, text in ((self.states, state), (self.rows, row), (self.segments, segment))
        )

    def apply(self, state: str) -> str:
        outcome = self.outcome.format(ack=GOOD_ACK.get(state, state))
        return "closed" if outcome.endswith(">closed") else outcome


DIFFERENCES = [
    Difference(
        "listen",
        ".*",
        "SYN-FIN|FIN",
        "rst-ack",
        "Before a SYN nothing tells LISTEN from CLOSED; SYN with FIN is a scan, which opens nothing",
    ),
    Difference(
        "syn-received.*",
        "below",
        "SYN",
        "syn-ack",
        "The SYN again: the peer has not got our SYN-ACK, and an ACK alone would not help it",
    ),
    Difference(
        "syn-received, opened actively",
        "below",
        "SYN-ACK",
        "ack>established",
        "Figure 8 of RFC 9293: the SYN-ACK of a simultaneous open repeats the SYN and completes it",
    ),
    Difference(
        "(?!syn-received|time-wait|closed|listen|syn-sent).*",
        "below",
        "ACK|FIN-ACK|data",
        "ack>{ack}",
        "A keep-alive, or a probe of a window that has opened since: a peer that only sends such is heard",
    ),
    Difference(
        "(?!time-wait|closed|listen|syn-sent).*",
        "above",
        "ACK",
        "->{ack}",
        "The peer's data fills the window and is lost or late; its acknowledgements come from the edge",
    ),
    Difference(
        "time-wait",
        "above",
        "ACK",
        "-",
        "As in the other states: an ACK from the edge is no error",
    ),
    Difference(
        "closing",
        "left|right",
        "data",
        "ack>time-wait",
        "Data behind the peer's own FIN is answered, so that a peer in error hears where its stream ended",
    ),
    Difference(
        "close-wait|closing|last-ack|time-wait",
        "left|right|oldest|una",
        "data",
        "ack",
        "Data behind the peer's own FIN is answered, so that a peer in error hears where its stream ended",
    ),
]


def cells(grids: dict[str, str]) -> Iterator[tuple[str, str, str, str]]:
    """State, row, segment and outcome of every cell."""
    for state, grid in grids.items():
        first, *rows = (line.split() for line in grid.strip().splitlines())
        for name, *outcomes in rows:
            for segment, outcome in zip(first, outcomes, strict=True):
                yield state, name, segment, outcome


def expectation(state: str, row: str, segment: str, outcome: str) -> str:
    """What the stack does: the cell, or the difference."""
    if state == "last-ack" and outcome == "closed":
        return outcome  # nothing is left that could answer
    for difference in DIFFERENCES:
        if difference.matches(state, row, segment):
            return difference.apply(state)
    return outcome


def parameters(grids: dict[str, str]) -> list[tuple[str, str, str, str]]:
    return [(*cell[:3], expectation(*cell)) for cell in cells(grids)]


# the states


def nobody_listens(**options: Any) -> Peer:
    peer = Peer(accept=False, **options)
    peer.stack_iss = 0
    return peer


def somebody_listens(**options: Any) -> Peer:
    peer = Peer(**options)
    peer.stack_iss = 0
    return peer


def simultaneous(**options: Any) -> Peer:
    """SYN-RECEIVED after an active open."""
    peer = syn_sent(**options)
    peer.send("S", 0, mss=1460)
    peer.expect("SA", seq=0, ack=1)
    return peer


START: dict[str, Callable[..., Peer]] = {
    "closed": nobody_listens,
    "listen": somebody_listens,
    "syn-received, opened actively": simultaneous,
} | {state.value: starter for state, starter in STARTERS.items()}
NEXT_IN = dict.fromkeys(START, 1) | {state.value: number for state, number in RCV_NXT.items()}
NEXT_IN["syn-sent"] = 1
NEXT_OUT = dict.fromkeys(START, 1) | {state.value: number for state, number in SND_NXT.items()}
NEXT_OUT["syn-sent"] = 1
UNA = dict.fromkeys(START, 0) | dict.fromkeys(("established", "fin-wait-1", "close-wait"), 1)
UNA |= {"closing": 1, "last-ack": 1, "fin-wait-2": 2, "time-wait": 2}
FIN_CAME = ("close-wait", "closing", "last-ack", "time-wait")
ENDS = {
    "reset": CloseReason.RESET,
    "listen": CloseReason.RESET,
    "refused": CloseReason.REFUSED,
    "closed": None,
}


def check(peer: Peer, state: str, segment: str, seq: int, ack: int, outcome: str) -> None:
    """Send `segment` to `peer`, whose stack is in `state`, and look at everything that comes of it."""
    flags, data = SEGMENTS[segment]
    reply, _, after = outcome.partition(">")
    before = peer.connection
    peer.send(flags, seq, ack if "A" in flags else None, data, mss=1460 if "S" in flags else None)
    if not peer.accept:
        for request in peer.requests:
            peer.stack.reset(request, peer.now)
        peer.pump()
    fin_taken = "F" in flags and after in FIN_CAME and state not in FIN_CAME
    next_in = seq + 1 if state == "syn-sent" else NEXT_IN[state] + fin_taken + (reply == "data")
    match reply:
        case "ack":
            peer.expect("A", seq=NEXT_OUT[state], ack=next_in, length=0)
        case "data":
            assert peer.until_output(0.5) < 0.5
            peer.expect("A", seq=NEXT_OUT[state], ack=next_in, length=0)
            assert b"".join(peer.conn.peek()) == data
        case "rst":
            peer.expect("R", seq=ack)
        case "rst-ack":
            peer.expect("RA", seq=0, ack=seq + len(data) + ("S" in flags) + ("F" in flags))
        case "syn-ack":
            peer.expect("SA", seq=0, ack=seq + 1)
            after = "syn-received"
            next_in = seq + 1
    peer.expect_nothing()
    if reply in ENDS:
        assert before is not None and before.closed and before.error is ENDS[reply]
        assert not peer.stack.connections and peer.connection is before
    elif after or before is not None:
        assert peer.state is State(after or state.partition(",")[0]) and peer.conn.error is None
        assert peer.conn.readable == (reply == "data")
        if peer.state is not State.SYN_SENT:
            assert peer.conn.hot.rcv_nxt == (peer.iss + next_in) % MOD
        assert list(peer.stack.connections.values()) == [peer.conn]
    else:
        assert not peer.stack.connections and not peer.stack.requests
    if reply == "listen":
        peer.send("S", 100_000, mss=1460)
        peer.expect("SA", seq=0, ack=100_001)


@pytest.mark.rfc("9293", "3.10.7.1")
@pytest.mark.rfc("9293", "3.10.7.2")
@pytest.mark.rfc("9293", "3.10.7.3")
@pytest.mark.rfc("5961", "3.2 case 1")
@pytest.mark.rfc("5961", "3.2 case 2")
@pytest.mark.rfc("5961", "3.2 case 3")
@pytest.mark.rfc("5961", "4.2")
@pytest.mark.rfc("1337", "3")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("state", "where", "segment", "outcome"), parameters(GRIDS))
def test_every_segment_in_every_state(
    family: str, state: str, where: str, segment: str, outcome: str
) -> None:
    peer = START[state](**FAMILIES[family])
    # What the stack advertised last; windows are not scaled here. Without a connection any number will do.
    window = [wire.window for wire in peer.sent_by_stack if wire.flags & 16][-1:] or [65535]
    offset = {"below": -1, "left": 0, "right": window[0] - 1, "above": window[0]}[where]
    check(peer, state, segment, NEXT_IN[state] + offset, NEXT_OUT[state], outcome)


@pytest.mark.rfc("5961", "5.2")
@pytest.mark.rfc("9293", "3.10.7.3")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("state", "where", "segment", "outcome"), parameters(ACK_GRIDS))
def test_every_acknowledgement_in_every_state(
    family: str, state: str, where: str, segment: str, outcome: str
) -> None:
    peer = START[state](**FAMILIES[family])
    una = UNA[state]
    ack = {"ancient": una - 65536, "oldest": una - 65535, "una": una, "ahead": NEXT_OUT[state] + 1}[where]
    check(peer, state, segment, NEXT_IN[state], ack, outcome)


def test_the_grids_are_whole() -> None:
    wanted = {(row, segment) for row in ("below", "left", "right", "above") for segment in SEGMENTS}
    found: dict[str, set[tuple[str, str]]] = {}
    for state, row, segment, _ in cells(GRIDS):
        found.setdefault(state, set()).add((row, segment))
    assert set(found) == set(START)
    assert {state.partition(",")[0] for state in found} == {state.value for state in State}
    assert all(rows == wanted for rows in found.values())


def test_every_difference_is_one() -> None:
    used = set()
    for cell in [*cells(GRIDS), *cells(ACK_GRIDS)]:
        for difference in DIFFERENCES:
            if difference.matches(*cell[:3]):
                if difference.apply(cell[0]) != cell[3]:
                    used.add(difference)
                break
    assert used == set(DIFFERENCES)
