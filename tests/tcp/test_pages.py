"""The page chain against a bytearray, and its pool against its limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tunstack.limits import PAGE_SIZE
from tunstack.tcp.pages import PageChain, PagePool

sizes = st.one_of(
    st.integers(0, 3 * PAGE_SIZE), st.sampled_from([1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1])
)
POOL = 8 * PAGE_SIZE


class ChainMachine(RuleBasedStateMachine):
    """Everything that a chain can be asked, beside a bytearray that is asked the same."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(POOL)
        self.chain = PageChain(self.pool)
        self.model = bytearray()
        self.counter = 0

    def fresh(self, size: int) -> bytes:
        self.counter += size
        return bytes((self.counter + i) % 251 for i in range(size))

    @rule(size=sizes)
    def append(self, size: int) -> None:
        data = self.fresh(size)
        taken = self.chain.append(data)
        assert taken == size or self.pool.used == POOL
        self.model += data[:taken]

    @rule(limit=sizes, part=st.floats(0, 1))
    def fill_in_place(self, limit: int, part: float) -> None:
        views = self.chain.reserve(limit)
        room = sum(map(len, views))
        assert room <= limit
        assert room == limit or self.pool.used == POOL
        data = self.fresh(int(room * part))
        done = 0
        for view in views:
            piece = data[done : done + len(view)]
            view[: len(piece)] = piece
            done += len(piece)
        self.chain.commit(len(data))
        self.model += data

    @precondition(lambda self: self.model)
    @rule(part=st.floats(0, 1))
    def release(self, part: float) -> None:
        count = int(len(self.model) * part)
        self.chain.release(count)
        del self.model[:count]

    @precondition(lambda self: self.model)
    @rule(start=st.floats(0, 1), size=st.floats(0, 1))
    def look(self, start: float, size: float) -> None:
        offset = int(len(self.model) * start)
        count = int((len(self.model) - offset) * size)
        assert b"".join(self.chain.views(offset, count)) == self.model[offset : offset + count]

    @invariant()
    def same_and_within_the_pool(self) -> None:
        assert self.chain.length == len(self.model)
        assert b"".join(self.chain.views(0, self.chain.length)) == self.model
        assert self.pool.used <= POOL
        # At most a partly used page at each end.
        assert self.pool.used <= len(self.model) + 2 * PAGE_SIZE
        if not self.model:
            assert self.pool.used == 0


TestChain = ChainMachine.TestCase


@given(st.lists(st.tuples(st.booleans(), sizes), max_size=20))
def test_two_chains_never_share_bytes(steps: list[tuple[bool, int]]) -> None:
    pool = PagePool(64 * PAGE_SIZE)
    chains = PageChain(pool), PageChain(pool)
    models = bytearray(), bytearray()
    for first, size in steps:
        index = 0 if first else 1
        data = bytes([index + 1]) * size
        taken = chains[index].append(data)
        models[index].extend(data[:taken])
        other = chains[1 - index]
        other.release(other.length // 2)
        del models[1 - index][: len(models[1 - index]) - other.length]
    for chain, model in zip(chains, models, strict=True):
        assert b"".join(chain.views(0, chain.length)) == model
        chain.clear()
    assert pool.used == 0
