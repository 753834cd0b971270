"""A million segments against live connections in every state: nothing raises, and no limit is exceeded.

About 100,000 start in each of the eleven states, valid, nearly valid and hostile ones mixed, in batches as a
device delivers them; between the batches the user writes and reads, time passes and the peer acknowledges.
"""

from __future__ import annotations

import collections
import random

import pytest

from tests.tcp.peer import MOD, STARTERS, Peer, ramp
from tests.tcp.test_hostile import LIMITS, check
from tunstack.tcp.states import State

SEGMENTS = 1_000_000
LIFE = 200
"""Segments that one connection sees at the most."""
ISNS = [(1_000, 5_000), (MOD - 2, MOD - 3), (2**31 - 100, MOD - 20_000), (0, 0)]
LETTERS = ["A"] * 8 + ["PA", "FA", "SA", "RA", "R", "S", "F", "", "UA", "SF", "SFRPAU", "FPU", "SR", "AEC"]
FAR = [2**31 - 1, 2**31, -(2**31), 2**30, -(2**16), 2**20]
OPTIONS = [b"\1\1\5\x0a" + bytes(8), b"\5\0", b"\2\4\0\1", b"\3\3\xff", b"\xfe\4\0\0", b"\x08\x0a" + bytes(8)]


def near(rng: random.Random) -> int:
    """A distance: mostly none or a few, now and then an edge of the window, or anywhere."""
    kind = rng.random()
    if kind < 0.4:
        return 0
    if kind < 0.6:
        return rng.randint(-3, 3)
    if kind < 0.8:
        return rng.randint(-3000, 3000)
    if kind < 0.9:
        return rng.choice((20_000, 65_535)) + rng.randint(-3, 3)
    return rng.choice(FAR) if kind < 0.97 else rng.randrange(MOD)


def live(state: State, rng: random.Random) -> Peer:
    """A connection in `state`, of any family and with any options; CLOSED and LISTEN have none yet."""
    timestamps = rng.random() < 0.5
    peer_options = {
        "isns": rng.choice(ISNS),
        "limits": LIMITS,
        "family": rng.choice((4, 6)),
        "timestamps": timestamps,
        "sack": rng.random() < 0.5,
        "seed": rng.randrange(1 << 30),
    }
    if state is State.CLOSED:
        return Peer(**peer_options)
    if state is State.LISTEN:
        peer = Peer(accept=False, **peer_options)
        peer.send("S", 0, mss=1460)
        assert peer.stack.requests
        return peer
    return STARTERS[state](**peer_options)


def state_of(peer: Peer) -> State:
    """In which state the next segment finds the peer's connection."""
    if peer.stack.requests:
        return State.LISTEN
    return State.CLOSED if peer.connection is None else peer.state


def throw(peer: Peer, rng: random.Random) -> None:
    """One segment for the next batch."""
    conn = peer.connection
    base = (1, 1)
    if conn is not None:
        base = conn.hot.rcv_nxt - peer.iss, conn.hot.snd_una - (peer.stack_iss or 0)
        if rng.random() < 0.3:
            base = base[0], conn.hot.snd_nxt - (peer.stack_iss or 0)
    letters = rng.choice(LETTERS)
    size = rng.choice((0, 0, 0, 0, 1, 2, 100, 700, 1460))
    sack = []
    if "S" not in letters and rng.random() < 0.2:
        for _ in range(rng.randint(1, 3)):
            start = base[1] + near(rng)
            sack.append((start, start + rng.choice((1, 100, 1460, -1, 2**31))))
    stamps = None
    if peer.timestamps and rng.random() < 0.95:
        stamps = (
            (peer.stamp() + rng.choice((0, 0, 0, 0, -1, 1, -100_000, 2**31))) % MOD,
            peer.last_stamp if rng.random() < 0.9 else rng.randrange(MOD),
        )
    number = (base[0] + near(rng)) % MOD
    peer.hold(
        letters,
        number,
        (base[1] + near(rng)) % MOD,
        ramp(size, number % 251),
        win=rng.choice((0, 1, 100, 1460, 65535)),
        ts=stamps,
        mss=rng.choice((None, 1, 536, 1460)) if "S" in letters else None,
        shift=rng.choice((None, 0, 7, 14)) if "S" in letters else None,
        sack=sack,
        options=rng.choice(OPTIONS) if not sack and rng.random() < 0.1 else b"",
        flip=rng.randrange(160) if rng.random() < 0.02 else None,
        gso=rng.choice((0, 0, 0, 1, 536)) if size > 536 else 0,
    )


def live_on(peer: Peer, rng: random.Random) -> None:
    """What else happens: the user writes, reads or closes, or time passes."""
    conn = peer.connection
    kind = rng.random()
    if kind < 0.15:
        peer.advance(rng.choice((0.001, 0.05, 0.3, 2.0)))
    elif conn is None:
        return
    elif kind < 0.3 and conn.writable:
        peer.write_to(conn, ramp(rng.choice((1, 1000, 40_000))))
    elif kind < 0.5 and conn.readable:
        peer.read(rng.randrange(conn.readable + 1))
    elif kind < 0.51 and conn.established:
        peer.shutdown()


def sound(peer: Peer) -> None:
    """Every limit, after every batch."""
    stack = peer.stack
    assert stack.receive_account.used <= LIMITS.receive_memory
    assert stack.send_pool.used <= LIMITS.page_pool
    assert len(stack.connections) <= LIMITS.connections
    assert len(stack.requests) <= 1
    if peer.connection is not None:
        check(peer.connection)
    for connection in stack.connections.values():
        check(connection)
        assert connection.state is not State.CLOSED


@pytest.mark.slow
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_a_million_segments(state: State) -> None:
    rng = random.Random(f"a million segments against {state.name}")
    share = -(-SEGMENTS // len(State))
    met: collections.Counter[State] = collections.Counter()
    sent = 0
    while sent < share:
        peer = live(state, rng)
        assert state_of(peer) is state
        for _ in range(LIFE):
            batch = rng.choice((1, 1, 1, 2, 4, 16))
            for _ in range(batch):
                throw(peer, rng)
            met[state_of(peer)] += batch
            sent += batch
            peer.release()
            sound(peer)
            if state_of(peer) is State.CLOSED and state is not State.CLOSED:
                break
            live_on(peer, rng)
            peer.take()
            del peer.sent_by_stack[:]
            peer.icmp.clear()
            peer.requests.clear()
        for connection in list(peer.stack.connections.values()):
            connection.abort()
        peer.pump()
        assert not peer.stack.connections and not peer.stack.send_pool.used
    assert sum(met.values()) == sent
    assert met[state] >= share // 5, "most connections left the state too early"
