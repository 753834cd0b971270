"""Shaping that changes while traffic flows: in virtual time, and with Linux as the guest."""

from __future__ import annotations

import contextlib
import json
import pathlib
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

from tests.gateway.test_shaped_link import FULL, shaped, transfer
from tunstack import Gateway, open_gateway
from tunstack.demo import traffic
from tunstack.demo.servers import TrafficServer
from tunstack.demo.traffic import Order, ramp_digest, share
from tunstack.errors import DropReason
from tunstack.gateway.namespace import NamespaceOptions, start_in_namespace
from tunstack.gateway.plan import MACHINES, AddressPlan
from tunstack.link.shaping.spec import ShapeError
from tunstack.native import fastpath

STREAM_GUEST = pathlib.Path(__file__).parents[1] / "lab" / "stream_guest.py"
DATA = bytes(index % 251 for index in range(2_000_000))

HARMLESS = [
    None,
    "delay 0s",
    "delay 2ms",
    "delay 3ms 2ms",
    "delay 1ms 1ms normal ordered duplicate 5%",
    "rate 200mbit limit 20000",
    "rate 100mbit burst 64kb limit 20000 delay 1ms",
    "rate 150mbit queue fq_codel target 3600s limit 20000",
    "slot 1ms",
]
"""What loses nothing."""


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """See test_shaped_link."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("down", [False, True])
async def test_nothing_is_lost_by_changes(clock: trio.testing.MockClock, seed: int, down: bool) -> None:
    rng = random.Random(seed)
    async with shaped(None, None, l2=seed % 2 == 0) as (gateway, guest, near):
        async with trio.open_nursery() as nursery:

            async def change() -> None:
                for _ in range(200):
                    gateway.shape(up=rng.choice(HARMLESS))
                    gateway.shape(down=rng.choice(HARMLESS))
                    await trio.sleep(rng.choice([0.0001, 0.001, 0.01]))

            nursery.start_soon(change)
            await transfer(gateway, guest, DATA, down=down)
        gateway.shape(up=None, down=None)
        assert near.offloads == FULL[seed % 2 == 0]
        assert gateway.shaping_statistics() == {}
        lost = gateway.stack.drops.as_dict()
        assert not any("shaping" in reason or "queue" in reason for reason in lost), lost
        await transfer_again(gateway, guest)


async def transfer_again(gateway: Gateway, guest: Any) -> None:
    """Without shaping no time passes."""
    listener = await gateway.open_tcp_listener(81)
    start = trio.current_time()
    async with listener, await guest.open_tcp_stream(port=81) as client, await listener.accept() as server:
        await client.send_all(b"x" * 1000)
        assert await server.receive_some(1000) == b"x" * 1000
    assert trio.current_time() == pytest.approx(start, abs=1e-3)


async def test_one_direction_is_changed_and_the_other_goes_on(clock: trio.testing.MockClock) -> None:
    async with shaped("delay 30ms", "delay 70ms") as (gateway, guest, _):
        await transfer(gateway, guest, b"x", down=False)
        up = gateway.shaping_statistics()["up"][0]
        gateway.shape(down="delay 10ms")
        assert [str(spec) for spec in gateway.shaping.values()] == ["delay 30ms", "delay 10ms"]
        assert gateway.shaping_statistics()["up"][0] == up
        start = trio.current_time()
        listener = await gateway.open_tcp_listener(80)
        async with listener, await guest.open_tcp_stream(port=80):
            assert trio.current_time() - start == pytest.approx(0.04)
        gateway.shape(up=None)
        assert list(gateway.shaping_statistics()) == ["down"]


async def test_words_that_cannot_be_change_nothing(clock: trio.testing.MockClock) -> None:
    async with shaped("delay 30ms", None) as (gateway, _, _):
        before = gateway.shaping
        for words in ("dealy 5ms", "trace /no/such/file"):
            with pytest.raises(ShapeError):
                gateway.shape(up=None, down=words)
        assert gateway.shaping == before
        assert list(gateway.shaping_statistics()) == ["up"]


async def test_a_link_that_is_down_loses_everything_and_comes_back(clock: trio.testing.MockClock) -> None:
    async with shaped("delay 5ms", None) as (gateway, guest, near):
        assert gateway.is_link_up
        async with trio.open_nursery() as nursery:

            async def pull() -> None:
                await trio.sleep(0.02)
                gateway.set_link(False)
                gateway.shape(up=None)
                assert not gateway.is_link_up
                await trio.sleep(3)
                assert gateway.stack.drops[DropReason.LINK_DOWN] > 0
                gateway.set_link(True)

            nursery.start_soon(pull)
            seconds = await transfer(gateway, guest, DATA, down=False)
        assert 3 < seconds < 10
        assert near.offloads == FULL[True]


@contextlib.asynccontextmanager
async def behind_tap(gateway: Gateway, command: list[str], out: pathlib.Path) -> AsyncIterator[None]:
    """`command` in a namespace behind the gateway, until it ends; what it prints goes to `out`."""
    with out.open("wb") as file:
        options = NamespaceOptions(stdout=file.fileno())
        async with start_in_namespace(command, gateway.plan, options) as guest:
            gateway.attach_fd(guest.take_device_fd())
            await guest.start()
            yield
            assert await guest.wait() == 0


@contextlib.asynccontextmanager
async def behind_stream(gateway: Gateway, command: list[str], out: pathlib.Path) -> AsyncIterator[None]:
    """The same behind a framed link."""
    path = str(out.with_name("vm.sock"))
    with trio.socket.socket(socket.AF_UNIX) as listener, out.open("wb") as file:
        await listener.bind(path)
        listener.listen()
        words = ["unshare", "-n", sys.executable, "-I", str(STREAM_GUEST), path, "1500", *command]
        with subprocess.Popen(words, stdout=file) as process:
            try:
                link, _ = await listener.accept()
                gateway.attach_stream(socket.socket(fileno=link.detach()))
                yield
                assert await trio.to_thread.run_sync(process.wait) == 0
            finally:
                process.kill()


@pytest.mark.netns
@pytest.mark.parametrize("behind", [behind_tap, behind_stream])
async def test_a_real_guest_with_8_flows_through_hundreds_of_changes(
    behind: Any, tmp_path: pathlib.Path
) -> None:
    flows, size = 8, 160_000_000
    rng = random.Random(5)
    out = tmp_path / "out"
    with TrafficServer() as server:
        line = Order(id="bulk", up=size, down=size).line().decode().strip()
        words = ["exchange", "192.168.127.1", server.port, line, flows]
        command = [sys.executable, "-I", str(traffic.__file__), *map(str, words)]
        plan = AddressPlan.from_subnet(layout=MACHINES)
        async with open_gateway(plan=plan, host_loopback=plan.gateway) as gateway:
            async with behind(gateway, command, out):
                changes = 0
                # Half is left for the link that is not shaped any more.
                while changes < 3000 and sum(f.carried_up for f in gateway.nat.tcp.flows) < size / 2:
                    gateway.shape(up=rng.choice(HARMLESS), down=rng.choice(HARMLESS))
                    await trio.sleep(0.003)
                    changes += 1
                assert changes > 20
                gateway.shape(up=None, down=None)
                before = gateway.tcp_statistics().accelerated
            found = json.loads(out.read_text())
            assert (found["error"], found["bytes"]) == (None, size)
            for index in range(flows):
                part = share(size, flows, index)
                record = server.wait_record(f"bulk.{index}")
                assert record == {"bytes": part, "sha256": ramp_digest(part), "error": None}
            lost = gateway.stack.drops.as_dict()
            assert not any("shaping" in reason or "full" in reason for reason in lost), lost
            if fastpath.available:  # the flows are in the fast path again
                assert gateway.tcp_statistics().accelerated > before
