"""The poller: levels, interests, and batches whose sockets go away while they are handled."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio

from tunstack.nat.dialer import reset_and_close
from tunstack.nat.poller import BATCH, ERROR, GONE, READ, WRITE, EpollPoller

from .world import listener


class Recorder:
    def __init__(self) -> None:
        self.ready: list[int] = []

    def on_ready(self, ready: int, now: float) -> None:
        self.ready.append(ready)


@pytest.fixture
def poller() -> Iterator[EpollPoller]:
    made = EpollPoller()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = socket.socketpair()
    yield one, two
    one.close()
    two.close()


def dispatch(poller: EpollPoller) -> None:
    for token, ready in poller.poll():
        token.on_ready(ready, 0.0)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with listener() as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    return client, accepted


def test_level_triggered(poller: EpollPoller, pair: tuple[socket.socket, socket.socket]) -> None:
    token = Recorder()
    poller.add(pair[0], token, READ)
    dispatch(poller)
    assert token.ready == []
    pair[1].send(b"x")
    dispatch(poller)
    dispatch(poller)
    assert token.ready == [READ, READ]
    pair[0].recv(1)
    dispatch(poller)
    assert token.ready == [READ, READ]


def test_interest_and_token_change(poller: EpollPoller, pair: tuple[socket.socket, socket.socket]) -> None:
    first, second = Recorder(), Recorder()
    poller.add(pair[0], first, WRITE)
    dispatch(poller)
    poller.modify(pair[0], second, READ | WRITE)
    pair[1].send(b"x")
    dispatch(poller)
    poller.modify(pair[0], second, ERROR)
    dispatch(poller)
    assert (first.ready, second.ready) == ([WRITE], [READ | WRITE])


def test_interest_zero_is_silent_even_after_a_hang_up(
    poller: EpollPoller, pair: tuple[socket.socket, socket.socket]
) -> None:
    token = Recorder()
    poller.add(pair[0], token, 0)
    pair[1].close()
    dispatch(poller)
    assert token.ready == []
    poller.modify(pair[0], token, READ)
    dispatch(poller)
    assert token.ready == [READ | ERROR]
    poller.modify(pair[0], token, 0)
    poller.modify(pair[0], token, 0)
    dispatch(poller)
    assert len(token.ready) == 1
    poller.remove(pair[0])
    assert len(poller) == 0


def test_a_reset_is_told_to_who_wants_errors_alone(poller: EpollPoller) -> None:
    client, accepted = tcp_pair()
    token = Recorder()
    poller.add(client, token, ERROR)
    accepted.sendall(b"data is no error")
    dispatch(poller)
    assert token.ready == []
    reset_and_close(accepted)
    dispatch(poller)
    assert token.ready == [ERROR]
    poller.remove(client)
    client.close()


def test_removed_in_the_same_batch_is_never_delivered(poller: EpollPoller) -> None:
    pairs = [socket.socketpair() for _ in range(10)]

    class Greedy:
        """Removes and closes every other socket; a new one takes over their descriptors."""

        def __init__(self, index: int) -> None:
            self.index = index

        def on_ready(self, ready: int, now: float) -> None:
            called.append(self.index)
            for index, (one, _) in enumerate(pairs):
                if index != self.index:
                    poller.remove(one)
                    one.close()
            fresh.append(socket.socket())
            poller.add(fresh[0], stranger, READ)

    called: list[int] = []
    fresh: list[socket.socket] = []
    stranger = Recorder()
    for index, (one, two) in enumerate(pairs):
        poller.add(one, Greedy(index), READ)
        two.send(b"x")
    batch = poller.poll()
    assert len(batch) == 10
    for token, ready in batch:
        token.on_ready(ready, 0.0)
    assert len(called) == 1
    assert stranger.ready == []
    assert sum(token is GONE for token, _ in batch) == 9
    for one, two in pairs:
        one.close()
        two.close()
    fresh[0].close()


def test_remove_twice_and_of_a_stranger_is_harmless(
    poller: EpollPoller, pair: tuple[socket.socket, socket.socket]
) -> None:
    poller.add(pair[0], Recorder(), READ)
    poller.remove(pair[0])
    poller.remove(pair[0])
    poller.remove(pair[1])


def test_more_sockets_than_a_batch_all_get_their_turn(poller: EpollPoller) -> None:
    tokens = [Recorder() for _ in range(3 * BATCH)]
    pairs = [socket.socketpair() for _ in tokens]
    for token, (one, two) in zip(tokens, pairs, strict=True):
        poller.add(one, token, READ)
        two.send(b"x")  # nobody reads: all stay ready
    for _ in range(4):
        dispatch(poller)
    assert all(token.ready for token in tokens)
    for one, two in pairs:
        one.close()
        two.close()


async def test_wait_sleeps_until_something_is_ready(poller: EpollPoller) -> None:
    one, two = socket.socketpair()
    token = Recorder()
    poller.add(one, token, READ)
    with trio.move_on_after(0.02) as scope:
        await poller.wait()
    assert scope.cancelled_caught

    async def send() -> None:
        two.send(b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        batch = await poller.wait()
    assert batch == [(token, READ)]
    poller.remove(one)
    one.close()
    two.close()
