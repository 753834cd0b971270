"""The scoreboard against a model that knows each segment by itself, under SACK blocks of any kind."""

from __future__ import annotations

import dataclasses
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tunstack.tcp.records import Delivery, SentRecord
from tunstack.tcp.sack import read_blocks
from tunstack.tcp.scoreboard import Scoreboard
from tunstack.tcp.seq import MASK, add, diff

MSS = 10
WINDOW = 400


@dataclasses.dataclass
class Piece:
    """One segment of the model, by positions in the stream."""

    start: int
    end: int
    state: str = "in flight"

    @property
    def size(self) -> int:
        return self.end - self.start


def delivery(now: float = 0.0) -> Delivery:
    fresh = Delivery()
    fresh.reset(now, None, 0, 0.0, 0.0)
    return fresh


class ScoreboardMachine(RuleBasedStateMachine):
    """Whatever is sent, acknowledged, sacked (truly or not), lost and sent again, in any order."""

    @initialize(iss=st.one_of(st.integers(2**32 - 300, 2**32 - 1), st.integers(0, MASK)))
    def start(self, iss: int) -> None:
        self.iss = iss
        self.board = Scoreboard()
        self.pieces: list[Piece] = []
        self.una = 0
        self.nxt = 0
        self.now = 0.0
        self.told: set[int] = set()
        """Bytes that some block has covered since the scoreboard was last cleared."""
        self.exact = True
        """Until what was sacked is taken back: joined records forget where their segments began."""
        self.delivered = 0
        self.reached = 0
        """Bytes that were delivered by the model's account."""

    def seq(self, position: int) -> int:
        return add(self.iss, position)

    def position(self, seq: int) -> int:
        return self.una + diff(seq, self.seq(self.una))

    @precondition(lambda self: self.nxt - self.una < WINDOW)
    @rule(count=st.integers(1, 8), short=st.integers(0, MSS - 1))
    def send(self, count: int, short: int) -> None:
        self.now += 1
        size = count * MSS - short
        self.board.sent(self.seq(self.nxt), self.seq(self.nxt + size), self.now, MSS)
        for start in range(self.nxt, self.nxt + size, MSS):
            self.pieces.append(Piece(start, min(start + MSS, self.nxt + size)))
        self.nxt += size

    @precondition(lambda self: self.nxt > self.una)
    @rule(part=st.floats(0, 1), whole=st.booleans())
    def acknowledge(self, part: float, whole: bool) -> None:
        ack = self.una + max(1, round(part * (self.nxt - self.una)))
        if whole:
            ack = next(piece.end for piece in self.pieces if piece.end >= ack)
        found = delivery()
        self.board.acknowledge(self.seq(ack), found)
        expected = 0
        for piece in self.pieces:
            gone = max(0, min(piece.end, ack) - piece.start)
            if piece.state != "sacked":
                expected += gone
            piece.start += gone
        self.pieces = [piece for piece in self.pieces if piece.size]
        self.una = ack
        if self.exact:
            assert found.bytes == expected

    blocks = st.lists(
        st.tuples(st.integers(-60, WINDOW + 60), st.integers(-20, 120), st.booleans()),
        min_size=1,
        max_size=4,
    )

    @precondition(lambda self: self.nxt > self.una)
    @rule(blocks=blocks)
    def sack(self, blocks: list[tuple[int, int, bool]]) -> None:
        wire = []
        for offset, size, aligned in blocks:
            start, end = self.una + offset, self.una + offset + size
            if aligned:
                inside = [p for p in self.pieces if p.start >= start]
                start = inside[0].start if inside else start
                ends = [p.end for p in self.pieces if p.end <= end]
                end = ends[-1] if ends else end
            wire.append((self.seq(start), self.seq(end)))
        found = delivery()
        _, usable = read_blocks(
            tuple(wire), self.seq(self.una), self.seq(self.una), self.seq(self.nxt), WINDOW
        )
        expected = 0
        for low, high in usable:
            start, end = self.position(low), self.position(high)
            assert self.una <= start < end <= self.nxt
            self.told |= set(range(start, end))
            for piece in self.pieces:
                if start <= piece.start and piece.end <= end and piece.state != "sacked":
                    piece.state = "sacked"
                    expected += piece.size
            self.board.sack(low, high, found)
        if self.exact:
            assert found.bytes == expected

    @rule(count=st.integers(1, 5))
    def lose_the_oldest(self, count: int) -> None:
        for _ in range(count):
            record = self.board.oldest
            if record is None:
                return
            self.board.mark_lost(record)
            self._set_state(record, "lost")

    @precondition(lambda self: self.board.lost_bytes > 0)
    @rule(segments=st.integers(1, 8))
    def resend(self, segments: int) -> None:
        self.now += 1
        index = self.board.next_lost()
        record = self.board.resend(index, segments * MSS, self.now, MSS)
        assert record.transmissions > 1
        self._set_state(record, "in flight")

    @precondition(lambda self: len(self.board) > 0)
    @rule()
    def probe(self) -> None:
        """The last segment goes out again."""
        if self.board.sacked_bytes:
            return
        self.now += 1
        index = self.board.last_segment(fin=False)
        record = self.board.resend(index, self.board[index].size, self.now, MSS)
        assert 0 < record.size <= MSS
        assert self.position(record.end) == self.nxt
        self._set_state(record, "in flight")

    @precondition(lambda self: len(self.board) > 0)
    @rule(age=st.integers(0, 10))
    def time_out(self, age: int) -> None:
        self.exact = self.exact and not self.board.sacked_bytes
        self.board.time_out(self.now - age)
        self.told.clear()
        for record in self.board:
            assert not record.sacked
            assert record.lost or record.sent_at > self.now - age
            self._set_state(record, "lost" if record.lost else "in flight")
        assert self.board[0].lost

    @rule()
    def undo(self) -> None:
        self.board.forget_losses()
        for piece in self.pieces:
            if piece.state == "lost":
                piece.state = "in flight"

    @precondition(lambda self: len(self.board) > 0)
    @rule()
    def lose_all(self) -> None:
        self.board.mark_all_lost()
        for piece in self.pieces:
            if piece.state == "in flight":
                piece.state = "lost"

    def _set_state(self, record: SentRecord, state: str) -> None:
        if not self.exact:
            return
        start, end = self.position(record.seq), self.position(record.end)
        for piece in self.pieces:
            if start <= piece.start and piece.end <= end:
                piece.state = state
            else:
                assert piece.end <= start or end <= piece.start, "a record ends inside a segment"

    @invariant()
    def sums_agree(self) -> None:
        if not hasattr(self, "board"):
            return
        board = self.board
        lost = sum(record.size for record in board if record.lost)
        sacked = sum(record.size for record in board if record.sacked)
        assert (board.lost_bytes, board.sacked_bytes) == (lost, sacked)
        assert board.sacked_segments == sum(record.segments for record in board)
        if self.exact:
            assert lost == sum(piece.size for piece in self.pieces if piece.state == "lost")
            assert sacked == sum(piece.size for piece in self.pieces if piece.state == "sacked")
            pipe = sum(piece.size for piece in self.pieces if piece.state == "in flight")
            assert pipe == self.nxt - self.una - lost - sacked

    @invariant()
    def records_cover_what_is_outstanding(self) -> None:
        if not hasattr(self, "board"):
            return
        edge = self.una
        previous = None
        for record in self.board:
            start, end = self.position(record.seq), self.position(record.end)
            assert start == edge < end
            assert not (record.lost and record.sacked)
            assert not (record.sacked and previous is not None and previous.sacked), "not joined"
            if record.sacked:
                assert set(range(start, end)) <= self.told, "taken for received without the peer's word"
            edge = end
            previous = record
        assert edge == self.nxt
        assert len(self.board) <= len(self.pieces) + (0 if self.exact else WINDOW)

    @invariant()
    def the_timeline_holds_what_is_in_flight_in_order_of_time(self) -> None:
        if not hasattr(self, "board"):
            return
        timeline = []
        record = self.board.oldest
        while record is not None:
            timeline.append(record)
            record = self.board.following(record)
        keys = [(record.sent_at, self.position(record.end)) for record in timeline]
        assert keys == sorted(keys)
        in_flight = [record for record in self.board if not record.lost and not record.sacked]
        assert sorted(map(id, timeline)) == sorted(map(id, in_flight))
        lost = [index for index, record in enumerate(self.board) if record.lost]
        assert self.board.next_lost() == (lost[0] if lost else -1)


TestScoreboard = ScoreboardMachine.TestCase
TestScoreboard.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@pytest.mark.rfc("6675", "4 SetPipe")
@pytest.mark.rfc("2018", "5")
def test_a_sack_edge_splits_a_train_at_segments_only() -> None:
    """A train of 4 MSS: the block covers the second segment, half of the first and half of the third."""
    board = Scoreboard()
    board.sent(0, 4 * MSS, 1.0, MSS)
    board.sack(MSS // 2, 2 * MSS + MSS // 2, delivery())
    assert [(r.seq, r.end, r.sacked) for r in board] == [
        (0, MSS, False),
        (MSS, 2 * MSS, True),
        (2 * MSS, 4 * MSS, False),
    ]
    assert board.sacked_segments == 1


@pytest.mark.rfc("2018", "8")
def test_a_time_out_clears_what_was_sacked() -> None:
    board = Scoreboard()
    board.sent(0, 4 * MSS, 1.0, MSS)
    board.sack(MSS, 4 * MSS, delivery())
    board.time_out(5.0)
    assert (board.sacked_bytes, board.lost_bytes) == (0, 4 * MSS)


@pytest.mark.rfc("2018", "8")
def test_what_was_taken_back_says_nothing_about_time() -> None:
    """It may have arrived long before: no RTT sample, nothing for RACK, no sign of reordering."""
    board = Scoreboard()
    board.sent(0, 4 * MSS, 1.0, MSS)
    board.sack(2 * MSS, 4 * MSS, delivery())
    board.time_out(5.0)
    found = delivery(9.0)
    board.acknowledge(4 * MSS, found)
    assert found.bytes == 4 * MSS
    assert found.repeated and found.low == 2 * MSS
    found = delivery(9.0)
    board.sent(4 * MSS, 6 * MSS, 9.0, MSS)
    board.sack(5 * MSS, 6 * MSS, delivery())
    board.time_out(9.0)
    board.sack(5 * MSS, 6 * MSS, found)
    assert found.bytes == MSS and found.repeated
    assert (found.sent_at, found.sampled_at, found.low) == (-1, -1, None)


@pytest.mark.rfc("8985", "6.2 step 2")
@pytest.mark.rfc("6298", "3 Karn")
@pytest.mark.parametrize(
    ("after", "echo", "is_last", "is_sample"),
    [
        (0.04, None, False, False),  # sooner than anything ever was: the original's
        (0.06, None, True, False),
        (0.06, 1000, False, False),  # the echo of the original
        (0.06, 2000, True, True),
        (0.04, 2000, False, False),
    ],
)
def test_which_transmission_was_acknowledged(
    after: float, echo: int | None, is_last: bool, is_sample: bool
) -> None:
    """Sent at 1.0 and 2.0 s, timestamps in ms, smallest RTT 50 ms."""
    board = Scoreboard()
    board.sent(0, MSS, 1.0, MSS)
    board.resend(0, MSS, 2.0, MSS)
    found = Delivery()
    found.reset(2.0 + after, echo, 0, 0.05, 0.0)
    board.acknowledge(MSS, found)
    assert found.sent_at == (2.0 if is_last else -1.0)
    assert found.sampled_at == (2.0 if is_sample else -1.0)
    assert found.repeated != is_sample


@pytest.mark.rfc("8985", "6.3")
def test_a_time_out_takes_the_first_and_the_overdue_for_lost() -> None:
    board = Scoreboard()
    for i in range(4):
        board.sent(i * MSS, (i + 1) * MSS, float(i), MSS)
    board.resend(0, MSS, 9.0, MSS)
    board.time_out(2.0)
    assert [record.lost for record in board] == [True, True, True, False]


@given(st.integers(0, MASK), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=40))
def test_repeated_blocks_deliver_once(base: int, blocks: list[tuple[int, int]]) -> None:
    board = Scoreboard()
    for i in range(40):
        board.sent(add(base, i * MSS), add(base, (i + 1) * MSS), 1.0, MSS)
    total = 0
    seen: set[int] = set()
    for start, count in blocks:
        found = delivery()
        board.sack(add(base, start * MSS), add(base, (start + count) * MSS), found)
        total += found.bytes
        seen |= set(range(start, min(40, start + count)))
    assert total == len(seen) * MSS == board.sacked_bytes


def test_a_thousand_records_cost_what_a_hundred_cost_each() -> None:
    """Each of n ACKs sacks one more segment behind a hole, and repeats the block that grows: linear in n."""

    def cost(count: int) -> float:
        board = Scoreboard()
        for i in range(count):
            board.sent(i * MSS, (i + 1) * MSS, 1.0, MSS)
        found = delivery()
        start = time.process_time()
        for i in range(1, count):
            board.sack(MSS, (i + 1) * MSS, found)
        for _ in range(count):
            board.sack(MSS, count * MSS, found)
        assert len(board) == 2
        return time.process_time() - start

    cost(100)
    small = min(cost(400) for _ in range(5))
    large = min(cost(4000) for _ in range(3))
    assert large < 10 * small * 4, "ten times the records may cost ten times, not a hundred"
