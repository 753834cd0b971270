"""The gateway as the library opens it: devices come and go, gateways side by side, nothing left open."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import tunstack
from tunstack.errors import DropReason
from tunstack.gateway.engine import Engine
from tunstack.gateway.namespace import NamespaceError
from tunstack.gateway.plan import DEFAULT_PLAN
from tunstack.link.devices.memory import memory_pair
from tunstack.packet import Packet
from tunstack.testing.guest import join, open_network

pytestmark = pytest.mark.usefixtures("no_fd_leak")

PORT = 8080


# devices


async def test_a_connection_outlives_its_device(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest), await gateway.open_tcp_listener(PORT) as listener:
        near = await guest.open_tcp_stream(port=PORT)
        far = await listener.accept()
        for _ in range(3):
            gateway.detach()
            with trio.fail_after(1):
                await gateway.wait_detached()
                await guest.wait_detached()
            await near.send_all(b"sent while there is no link")
            await trio.sleep(0.1)
            join(gateway, guest)
            with trio.fail_after(60):
                assert await far.receive_some() == b"sent while there is no link"
            await far.send_all(b"and back")
            assert await near.receive_some() == b"and back"


async def test_the_end_of_the_other_side_detaches(autojump_clock: MockClock) -> None:
    async with tunstack.open_gateway() as gateway:
        near, far = memory_pair()
        gateway.attach_device(near)
        with trio.move_on_after(1) as scope:
            await gateway.wait_detached()
        assert scope.cancelled_caught
        far.close()
        with trio.fail_after(1):
            await gateway.wait_detached()
        assert gateway.engine.device is None


async def test_a_second_device_is_refused_and_stays_the_callers(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest):
        near, far = memory_pair()
        with pytest.raises(RuntimeError, match="attached already"):
            gateway.attach_device(near)
        assert far.write_batch([Packet(b"x" * 60)]) == 1
        read, write = os.pipe()
        with pytest.raises(RuntimeError, match="attached already"):
            gateway.attach_fd(read)
        with pytest.raises(RuntimeError, match="attached already"):
            await gateway.attach_namespace(os.getpid())
        os.close(read)
        os.close(write)
        with pytest.raises(ConnectionRefusedError):
            await guest.open_tcp_stream(port=PORT)


@pytest.mark.parametrize("kind", ["file", "socket", "closed", "negative"])
async def test_a_descriptor_that_is_no_device_is_refused_and_stays_the_callers(kind: str) -> None:
    async with tunstack.open_gateway() as gateway:
        with open("/dev/null", "rb") as file, socket.socket() as sock:
            fd = {"file": file.fileno(), "socket": sock.fileno(), "closed": 10_000, "negative": -1}[kind]
            with pytest.raises(ValueError, match=r"not attached to a TAP or TUN interface|negative"):
                gateway.attach_fd(fd)
            os.fstat(file.fileno())
            os.fstat(sock.fileno())
        near, _ = memory_pair()
        gateway.attach_device(near)


async def test_a_gateway_that_has_ended_takes_no_device() -> None:
    async with tunstack.open_gateway() as gateway:
        pass
    with pytest.raises(trio.ClosedResourceError):
        gateway.attach_device(memory_pair()[0])
    with pytest.raises(trio.ClosedResourceError):
        gateway.attach_fd(0)
    with pytest.raises(trio.ClosedResourceError):
        await gateway.attach_namespace(os.getpid())


async def test_the_engine_closes_the_device_at_the_end() -> None:
    near, far = memory_pair()
    async with tunstack.open_gateway() as gateway:
        gateway.attach_device(near)
        assert isinstance(gateway.engine, Engine)
    with pytest.raises(Exception, match="closed"):
        far.write_batch([Packet(b"x")])


# open_gateway


async def test_an_exception_of_the_block_leaves_it_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with tunstack.open_gateway():
            raise ZeroDivisionError
    with trio.move_on_after(0.01) as scope:
        async with tunstack.open_gateway():
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_published_port_in_use_is_an_error_that_leaves_nothing_open(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        publish = tunstack.Publish.parse(f"{taken.getsockname()[1]}:80")
        with pytest.raises(OSError, match="in use"):
            async with tunstack.open_gateway(publish=[publish], pcap=tmp_path / "capture"):
                raise AssertionError


async def test_a_capture_that_cannot_be_opened_is_an_error_that_leaves_nothing_open() -> None:
    with pytest.raises(FileNotFoundError):
        async with tunstack.open_gateway(pcap="/nonexistent/capture"):
            raise AssertionError


async def test_a_capture_goes_on_with_the_next_device(autojump_clock: MockClock, tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    async with open_network(pcap=path) as (gateway, guest):
        with pytest.raises(ConnectionRefusedError):
            await guest.open_tcp_stream(port=PORT)
        first = path.stat().st_size
        gateway.detach()
        await guest.wait_detached()
        join(gateway, guest)
        with pytest.raises(ConnectionRefusedError):
            await guest.open_tcp_stream(port=PORT)
    data = path.read_bytes()
    assert data.count(b"\x0a\x0d\x0d\x0a") == 2  # section headers
    assert data.rfind(b"\x0a\x0d\x0d\x0a") == first < len(data) - 200


async def test_drops_are_logged_by_name_at_the_end(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tunstack"):
        async with tunstack.open_gateway() as gateway:
            near, far = memory_pair()
            gateway.attach_device(near)
            far.write_batch([Packet(b"x"), Packet(b"y"), Packet(bytes(12) + b"\xff\xff")])
            await wait_all_tasks_blocked()
            assert gateway.stack.drops[DropReason.FRAME_TOO_SHORT] == 2
    assert "dropped: frame-too-short 2, not-for-us 1" in caplog.messages


# side by side


async def test_ten_gateways_do_not_disturb_each_other(autojump_clock: MockClock) -> None:
    """The same addresses in half of them, the same ports in all; one of them is torn down in the middle."""
    done = []

    async def one(number: int) -> None:
        subnet = DEFAULT_PLAN.subnet_text if number % 2 else f"10.{number}.0.0/16"
        plan = tunstack.AddressPlan.from_subnet(subnet)
        async with open_network(plan) as (gateway, guest), await gateway.open_tcp_listener(PORT) as listener:
            near = await guest.open_tcp_stream(port=PORT)
            far = await listener.accept()
            payload = bytes([number]) * 300_000
            if number == 5:
                return  # torn down while the others transfer

            async def send() -> None:
                await near.send_all(payload)
                await near.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                received = bytearray()
                while data := await far.receive_some():
                    received += data
            assert received == payload
            assert far.remote[0] == plan.guest_text
            assert not gateway.stack.drops.as_dict()
            done.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(one, number)
    assert sorted(done) == [0, 1, 2, 3, 4, 6, 7, 8, 9]


# real namespaces


@pytest.mark.netns
@pytest.mark.parametrize("layer3", [False, True], ids=["tap", "tun"])
async def test_a_namespace_gets_a_network_and_its_end_is_seen(layer3: bool) -> None:
    with subprocess.Popen(["unshare", "-n", "sleep", "1000"]) as process:
        try:
            await wait_for_namespace(process.pid)
            async with tunstack.open_gateway() as gateway:
                attachment = await gateway.attach_namespace(process.pid, layer3=layer3)
                await connects(gateway, process.pid)
                with trio.move_on_after(0.05) as scope:
                    await attachment.wait_end()
                assert scope.cancelled_caught
                process.kill()
                with trio.fail_after(5):
                    await attachment.wait_end()
                attachment.close()
        finally:
            process.kill()


@pytest.mark.netns
async def test_one_namespace_after_the_other_and_the_same_again() -> None:
    with (
        subprocess.Popen(["unshare", "-n", "sleep", "1000"]) as one,
        subprocess.Popen(["unshare", "-n", "sleep", "1000"]) as other,
    ):
        try:
            async with tunstack.open_gateway() as gateway:
                for process in (one, other, one):
                    await wait_for_namespace(process.pid)
                    await gateway.attach_namespace(process.pid)
                    await connects(gateway, process.pid)
                    gateway.detach()
                    await gateway.wait_detached()
        finally:
            one.kill()
            other.kill()


@pytest.mark.netns
async def test_a_device_that_is_deleted_detaches() -> None:
    with subprocess.Popen(["unshare", "-n", "sleep", "1000"]) as process:
        try:
            await wait_for_namespace(process.pid)
            async with tunstack.open_gateway() as gateway:
                attachment = await gateway.attach_namespace(process.pid)
                await inside(process.pid, "ip", "link", "delete", attachment.device_name)
                with trio.fail_after(5):
                    await gateway.wait_detached()
        finally:
            process.kill()


async def test_no_namespace_is_one_clear_sentence() -> None:
    async with tunstack.open_gateway() as gateway:
        for target in (2**22 + 1, "/nonexistent"):
            with pytest.raises(NamespaceError, match=r"there is no process|cannot open the namespace"):
                await gateway.attach_namespace(target)
        near, _ = memory_pair()
        gateway.attach_device(near)


async def inside(pid: int, *command: str) -> bytes:
    """What `command` prints in the network namespace of process `pid`."""
    done = await trio.run_process(["nsenter", "-t", str(pid), "-n", *command], capture_stdout=True)
    return done.stdout


async def wait_for_namespace(pid: int) -> None:
    """Wait until process `pid` has left our network namespace."""
    ours = os.stat("/proc/self/ns/net").st_ino
    with trio.fail_after(5):
        while os.stat(f"/proc/{pid}/ns/net").st_ino == ours:
            await trio.sleep(0.01)


async def connects(gateway: tunstack.Gateway, pid: int) -> None:
    """A program in the namespace talks to a listener of the library."""
    async with await gateway.open_tcp_listener(PORT) as listener, trio.open_nursery() as nursery:
        outcome: list[bytes] = []

        async def client() -> None:
            outcome.append(await inside(pid, "socat", "-", f"TCP:{DEFAULT_PLAN.gateway_text}:{PORT}"))

        nursery.start_soon(client)
        with trio.fail_after(20):
            async with await listener.accept() as stream:
                await stream.send_all(b"hello from the library")
    assert outcome == [b"hello from the library"]
