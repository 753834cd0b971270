"""The poller made of tasks, held to the one of epoll: whatever is done to sockets, both say the same."""

from __future__ import annotations

import contextlib
import select
import socket

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from tunstack.nat.poller import BATCH, GONE, READ, WRITE, EpollPoller
from tunstack.nat.task_poller import TaskPoller

BOTH = READ | WRITE
SOCKETS = 3


class Owner:
    def on_ready(self, ready: int, now: float) -> None:
        raise AssertionError


async def settled(poller: TaskPoller) -> dict[int, tuple[object, int]]:
    """What is ready, by number, when all tasks know."""
    await wait_all_tasks_blocked()
    return {id(token): (token, ready) for token, ready in poller.poll()}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["watch", "unwatch", "modify", "say", "hear", "fill", "end", "look"]),
        st.integers(0, SOCKETS - 1),
        st.sampled_from([0, READ, WRITE, BOTH]),
    ),
    max_size=40,
)


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is no epoll to be held to")
@given(STEPS)
async def test_it_says_what_epoll_says(steps: list[tuple[str, int, int]]) -> None:
    tasks, epoll = TaskPoller(), EpollPoller()
    pairs = [socket.socketpair() for _ in range(SOCKETS)]
    watched: dict[int, Owner] = {}
    for near, far in pairs:
        near.setblocking(False)
        far.setblocking(False)
    try:
        for step, number, interest in [*steps, ("look", 0, 0)]:
            near, far = pairs[number]
            with contextlib.suppress(OSError):
                if step == "watch" and number not in watched:
                    watched[number] = Owner()
                    for poller in (tasks, epoll):
                        poller.add(near, watched[number], interest)
                elif step == "unwatch" and watched.pop(number, None) is not None:
                    for poller in (tasks, epoll):
                        poller.remove(near)
                elif step == "modify" and number in watched:
                    watched[number] = Owner()
                    for poller in (tasks, epoll):
                        poller.modify(near, watched[number], interest)
                elif step == "say":
                    far.send(b"x")
                elif step == "hear":
                    near.recv(1000)
                elif step == "fill":
                    while True:
                        near.send(bytes(100_000))
                elif step == "end":
                    far.close()
            if step == "look":
                await settled(tasks)  # it may know of what is no more
                found = {key: ready & BOTH for key, (_, ready) in (await settled(tasks)).items()}
                wanted = {id(token): ready & BOTH for token, ready in epoll.poll()}
                assert found == wanted
        assert len(tasks) == len(watched)
    finally:
        tasks.close()
        epoll.close()
        for pair in pairs:
            for sock in pair:
                sock.close()


async def test_what_is_removed_in_a_batch_is_no_longer_in_it() -> None:
    poller, owner = TaskPoller(), Owner()
    near, far = socket.socketpair()
    with near, far:
        poller.add(near, owner, WRITE)
        poller.add(far, owner, WRITE)
        await wait_all_tasks_blocked()
        batch = poller.poll()
        assert batch == [(owner, WRITE)] * 2
        poller.remove(near)
        assert sorted(batch, key=lambda entry: entry[0] is GONE) == [(owner, WRITE), (GONE, 0)]
        poller.remove(near)  # harmless
        poller.close()


async def test_to_wait_is_a_checkpoint_and_can_be_cancelled() -> None:
    poller, owner = TaskPoller(), Owner()
    near, far = socket.socketpair()
    with near, far:
        poller.add(near, owner, WRITE)
        with trio.move_on_after(0), pytest.raises(trio.Cancelled):
            await poller.wait()
        assert await poller.wait() == [(owner, WRITE)]
        poller.modify(near, owner, READ)
        with trio.move_on_after(0.01):
            await poller.wait()
            raise AssertionError
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.wait)
            await wait_all_tasks_blocked()
            far.send(b"x")
        poller.close()


async def test_a_batch_is_bounded_and_the_rest_comes_next() -> None:
    poller = TaskPoller()
    with contextlib.ExitStack() as stack:
        owners = [Owner() for _ in range(BATCH + 5)]
        for owner in owners:
            near, far = socket.socketpair()
            stack.enter_context(near)
            stack.enter_context(far)
            poller.add(near, owner, WRITE)
        await wait_all_tasks_blocked()
        first = [token for token, _ in poller.poll()]
        second = [token for token, _ in poller.poll()]
        assert len(first) == BATCH and len(second) == 5
        assert {id(token) for token in first + second} == set(map(id, owners))
        poller.close()
