"""The receive queue and the out-of-order blocks against models."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tunstack.limits import PAGE_SIZE
from tunstack.tcp.pages import PagePool
from tunstack.tcp.receive import OutOfOrder, ReceiveAccount, ReceiveQueue


@given(
    st.lists(st.tuples(st.sampled_from(["append", "consume", "settle"]), st.integers(0, 40000)), max_size=40)
)
def test_queue_is_a_queue_of_bytes(steps: list[tuple[str, int]]) -> None:
    account = ReceiveAccount(1 << 30)
    pool = PagePool(1 << 30)
    queue = ReceiveQueue(account, pool)
    model = bytearray()
    frames: list[bytearray] = []
    for step, size in steps:
        if step == "append":
            frame = bytearray((len(model) + i) % 251 for i in range(size))
            frames.append(frame)
            queue.append(memoryview(frame))
            model += frame
        elif step == "consume":
            count = min(size, len(model))
            queue.consume(count)
            del model[:count]
        else:
            queue.settle()
            for frame in frames:
                frame[:] = bytes(len(frame))  # the device reuses its buffers
            frames.clear()
        assert b"".join(queue.peek()) == model
        assert queue.size == account.used == len(model)
        assert pool.used <= len(model) + 2 * PAGE_SIZE
    queue.clear()
    assert pool.used == account.used == 0


blocks = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=30)


@given(blocks, st.integers(1, 6))
def test_blocks_reassemble_any_overlap(pieces: list[tuple[int, int]], limit: int) -> None:
    """Every byte that was kept is the stream's byte at its place; blocks are disjoint and never touch."""
    stream = bytes((7 * i + 3) % 251 for i in range(100))
    account = ReceiveAccount(1 << 20)
    store = OutOfOrder(account, limit)
    model: set[int] = set()
    for start, size in pieces:
        if store.insert(start, stream[start : start + size]):
            model |= set(range(start, start + size))
        else:
            model |= {p for s, e in store.ranges() for p in range(s, e)}
        ranges = store.ranges()
        assert len(ranges) <= limit
        assert all(a[1] < b[0] for a, b in itertools.pairwise(ranges))
        assert {p for s, e in ranges for p in range(s, e)} == model
        assert account.used == store.size == len(model)
    position = 0
    while model:
        position = min(model)
        block = store.take(position)
        assert block is not None
        assert bytes(block) == stream[position : position + len(block)]
        model -= set(range(position, position + len(block)))
    assert store.take(position) is None
    assert account.used == 0


def test_what_was_there_first_stays() -> None:
    store = OutOfOrder(ReceiveAccount(1000), 8)
    assert store.insert(10, b"first")
    assert store.insert(8, b"SECONDXX!")
    assert bytes(store.take(8) or b"") == b"SEfirstX!"


def test_take_skips_what_is_past() -> None:
    account = ReceiveAccount(1000)
    store = OutOfOrder(account, 8)
    store.insert(5, b"aaa")
    store.insert(20, b"bbb")
    assert store.take(10) is None
    assert bytes(store.take(21) or b"") == b"bb"
    assert account.used == 0
