"""Faults of a stack that a script must notice, put between the stack and the wire or into its host."""

from __future__ import annotations

import pytest

from tests.testing.packetdrill.play import PASSIVE, passes, run
from tunstack import native
from tunstack.stack import Stack
from tunstack.testing.packetdrill import Verdict
from tunstack.testing.packetdrill.flow import Flow, FlowTable, TimestampMap

SENDS = PASSIVE + "+0 write(4, ..., 1000) = 1000\n+0 > P. 1:1001(1000) ack 1\n"
REPEATS = SENDS + "+0~+3 > P. 1:1001(1000) ack 1\n"


def corrupt(monkeypatch, change, which: int) -> None:
    """Let `change` have packet number `which` of the stack (0 is the SYN-ACK)."""
    count = 0
    segment = native.segment

    def changed(packet, l2):
        nonlocal count
        frames = []
        for frame in segment(packet, l2):
            frames.append(change(frame) if count == which else frame)
            count += 1
        return frames

    monkeypatch.setattr(native, "segment", changed)


def flip(at: int):
    def change(frame: bytes) -> bytes:
        wrong = bytearray(frame)
        wrong[at] ^= 1
        return bytes(wrong)

    return change


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        (10, "malformed: bad IP checksum"),
        (36, "malformed: bad checksum"),
        (32, "malformed: bad header length"),
    ],
)
def test_a_malformed_packet(monkeypatch, place, problem) -> None:
    change = flip(place)
    if place == 32:

        def change(frame: bytes) -> bytes:
            return frame[:32] + b"\x10" + frame[33:]

    corrupt(monkeypatch, change, 1)
    result = run(SENDS)
    assert result.verdict is Verdict.FAILED
    assert problem in result.hints


def test_a_repetition_with_other_bytes(monkeypatch) -> None:
    passes(REPEATS)
    corrupt(monkeypatch, flip(-1), 2)
    result = run(REPEATS)
    assert result.verdict is Verdict.FAILED
    assert "payload: byte 1000 is not what was sent there before" in result.hints


def test_a_train_with_other_bytes_or_a_bad_checksum(monkeypatch) -> None:
    script = PASSIVE + "+0 write(4, ..., 3000) = 3000\n+0 > P. 1:3001(3000) ack 1\n"
    passes(script)
    corrupt(monkeypatch, flip(-1), 2)
    assert run(script).hints == ("malformed: bad checksum",)


def test_a_packet_that_is_lost_in_the_stack(monkeypatch) -> None:
    monkeypatch.setattr(native, "segment", lambda packet, l2: [])
    assert run(SENDS).message == "no packet came until 0.104000 s"


def test_a_stack_that_raises(monkeypatch) -> None:
    def broken(self, packet, now) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(Stack, "receive", broken)
    seen = []
    result = run(SENDS, trace=seen.append)
    assert result.verdict is Verdict.FAILED
    assert result.message == "the stack raised KeyError: 'broken'"
    assert "< S 0:0(0)" in result.source
    assert "Traceback" in seen[-1]


def test_a_timer_that_is_not_acted_upon(monkeypatch) -> None:
    monkeypatch.setattr(Stack, "handle_timeout", lambda self, now: None)
    result = run(REPEATS)
    assert result.verdict is Verdict.FAILED
    assert "is not acted upon" in result.message


def test_a_stack_that_never_rests(monkeypatch) -> None:
    monkeypatch.setattr(Stack, "poll_events", lambda self: [None])
    result = run(SENDS)
    assert result.verdict is Verdict.FAILED
    assert result.message == "the stack and its host do not come to rest"


# flows


def test_numbers_of_a_flow() -> None:
    flow = Flow(80, 40000, 0xFFFFFFF0)
    flow.stack_sent_syn(0xFFFFFFFE)
    for number in (0, 1, 2, 0xFFFFFFFF):
        assert flow.local_to_script(flow.local_to_live(number)) == number
        assert flow.remote_to_script(flow.remote_to_live(number)) == number
    assert flow.local_to_live(3) == 1
    assert flow.remote_to_live(0x10) == 0
    flow.stack_sent_syn(5)  # a repetition with another number is no new connection
    assert flow.local_to_script(5) == 7
    flow.peer_sends_syn(0)
    flow.peer_sends_syn(0)
    assert not flow.fresh
    flow.peer_sends_syn(7)
    flow.stack_sent_syn(5)
    assert flow.local_to_script(5) == 0


def test_timestamps_of_a_flow() -> None:
    stamps = TimestampMap()
    assert stamps.to_live(0) == 0
    assert stamps.to_script(77) == 77
    stamps.latest = 1000
    assert stamps.to_live(5) == 1000  # nothing was named: the newest
    stamps.learn(100, 1000)
    stamps.learn(200, 1150)
    assert (stamps.to_live(100), stamps.to_live(200), stamps.to_live(190)) == (1000, 1150, 1140)
    assert stamps.to_script(1150) == 250


def test_what_was_sent_before() -> None:
    flow = Flow(80, 40000, 0)
    assert flow.check_payload(1, b"abcd") is None
    assert flow.check_payload(3, b"cdef") is None
    assert flow.check_payload(2, b"bcdX") == 5
    assert flow.check_payload(0xFFFFFFFF, b"z") is None  # below the first byte: nothing to compare with
    assert flow.sent == b"abcdef"


def test_which_flow_a_syn_belongs_to() -> None:
    table = FlowTable(80, 80, 0)
    first = table.for_syn(0, opening=False, alive=False)
    first.peer_sends_syn(0)
    assert table.for_syn(0, opening=True, alive=True) is first
    assert table.for_syn(5, opening=False, alive=True) is first
    second = table.for_syn(0, opening=False, alive=True)
    assert second is not first
    assert table.for_segment() is second
    assert table.for_syn(9, opening=False, alive=False).remote_port == 40002
