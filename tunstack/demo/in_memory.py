"""The demonstration without a namespace: the guest is a second tunstack in this process, over memory.

Both stacks and the servers share one interpreter, so the speeds say little; what is shown is that
the stacks, the NAT and the checks work on this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio

import tunstack
from tunstack.demo import traffic
from tunstack.demo.servers import LOOPBACK, TrafficServer, UdpEchoServer, closed_port
from tunstack.gateway.plan import DEFAULT_PLAN
from tunstack.limits import MAX_FRAME
from tunstack.link.devices.base import Offloads
from tunstack.link.devices.memory import memory_pair

MIB = 1 << 20
BULK = 256 * MIB
PORT = 8000
TIME_LIMIT = 60.0  # seconds

Tried = Callable[[dict[str, Any]], None]


async def send_ramp(stream: trio.abc.HalfCloseableStream, length: int) -> None:
    """Send `length` bytes of ramp and half-close."""
    for block in traffic.ramp_blocks(length):
        await stream.send_all(block)
    await stream.send_eof()


async def receive_ramp(stream: trio.abc.ReceiveStream, expected: int) -> dict[str, Any]:
    """Read until end of file; the verdict of `RampChecker.finish`."""
    checker = traffic.RampChecker()
    while data := await stream.receive_some(256 * 1024):
        checker.feed(bytes(data))
    return checker.finish(expected)


async def exchange(guest: tunstack.Gateway, host: str, port: int, order: traffic.Order) -> dict[str, Any]:
    """What `traffic.exchange` does with sockets, with a stream of the stack that plays the guest."""
    verdict: dict[str, Any] = {}
    traffic.ramp_digest(order.down)
    start = time.monotonic()
    stream = await guest.open_tcp_stream(host, port)

    async def receive() -> None:
        verdict.update(await receive_ramp(stream, order.down))

    async with stream:
        await stream.send_all(order.line())
        if order.mode == "both":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_ramp, stream, order.up)
                nursery.start_soon(receive)
        elif order.mode == "up-first":
            await send_ramp(stream, order.up)
            await receive()
        else:
            await receive()
            await send_ramp(stream, order.up)
    return {**verdict, "seconds": time.monotonic() - start}


@contextlib.asynccontextmanager
async def two_stacks(publish: tunstack.Publish) -> AsyncIterator[tunstack.Gateway]:
    """A gateway and, across a link in memory, the stack that plays its guest; yields the latter."""
    plan = DEFAULT_PLAN
    mirrored = dataclasses.replace(
        plan,
        gateway=plan.guest,
        gateway6=plan.guest6,
        guest=plan.gateway,
        guest6=plan.gateway6,
        dns=plan.network[:-1] + b"\xfd",  # addresses that nobody asks: the guest serves no DNS
        dns6=plan.network6[:-1] + b"\xfd",
        gateway_mac=plan.guest_mac,
        guest_mac=plan.gateway_mac,
    )
    offloads = Offloads(checksum=True, tso4=True, max_frame=MAX_FRAME)
    near, far = memory_pair(offloads)
    async with (
        tunstack.open_gateway(plan, host_loopback=plan.gateway, publish=[publish]) as gateway,
        tunstack.open_gateway(mirrored) as guest,
    ):
        gateway.attach_device(near)
        guest.attach_device(far)
        yield guest


def demonstrate(tried: Tried, bulk: int = BULK) -> None:
    """Try everything; `tried` is called with a report of each thing as it ends."""
    with TrafficServer() as tcp, UdpEchoServer() as udp:
        trio.run(_demonstrate, tried, bulk, tcp, udp)


async def _demonstrate(tried: Tried, bulk: int, tcp: TrafficServer, udp: UdpEchoServer) -> None:
    published = closed_port()
    host = DEFAULT_PLAN.gateway_text
    publish = tunstack.Publish.parse(f"{published}:{PORT}")

    async def attempt(what: str, step: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        try:
            with trio.fail_after(TIME_LIMIT):
                report = await step()
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            report = {"ok": False, "result": str(error) or type(error).__name__}
        tried({"what": what, "with": "tunstack", "ok": True, **report})

    async with two_stacks(publish) as guest:

        async def transfer(name: str, mode: str, up: int, down: int) -> dict[str, Any]:
            order = traffic.Order(id=name, mode=mode, up=up, down=down)
            found = await exchange(guest, host, tcp.port, order)
            record = await trio.to_thread.run_sync(tcp.wait_record, name)
            error = found["error"] or record["error"]
            size = up + down
            report = {"ok": error is None, "bytes": size, "seconds": found["seconds"]}
            return {**report, "result": error or f"{size / 1e6:.0f} MB, SHA-256 equal"}

        await attempt("UDP echo", lambda: _datagrams(guest, udp.port))
        await attempt("TCP to a closed port", lambda: _refusal(guest, host))
        await attempt("TCP up, 1 flow", lambda: transfer("up", "up-first", bulk, 0))
        await attempt("TCP down, 1 flow", lambda: transfer("down", "down-first", 0, bulk))
        await attempt("TCP both ways, 1 flow", lambda: transfer("both", "both", bulk // 4, bulk // 4))
        await attempt("TCP from the host, published port", lambda: _published(guest, published))


async def _datagrams(guest: tunstack.Gateway, port: int) -> dict[str, Any]:
    sizes = [1, 512, 1472, 1473, 9000, 65507]
    socket = await guest.open_udp_socket(40_000)
    try:
        for size in sizes:
            payload = traffic.ramp(size, size)
            await socket.send_to(payload, DEFAULT_PLAN.gateway, port)
            with trio.move_on_after(3) as scope:
                answer, _ = await socket.receive_from()
            if scope.cancelled_caught or bytes(answer) != payload:
                return {"ok": False, "result": f"the datagram of {size} bytes did not come back"}
    finally:
        await socket.aclose()
    return {"result": f"{len(sizes)} sizes, {min(sizes)} to {max(sizes)} bytes"}


async def _refusal(guest: tunstack.Gateway, host: str) -> dict[str, Any]:
    start = time.monotonic()
    try:
        stream = await guest.open_tcp_stream(host, closed_port())
    except ConnectionRefusedError:
        return {"result": f"refused after {(time.monotonic() - start) * 1000:.1f} ms"}
    await stream.aclose()
    return {"ok": False, "result": "connected"}


async def _published(guest: tunstack.Gateway, published: int) -> dict[str, Any]:
    """A server in the stack that plays the guest, a client on the host's loopback."""
    order = traffic.Order(id="published", up=16 * MIB, down=16 * MIB, mode="both")
    verdicts: dict[str, dict[str, Any]] = {"the guest": {"error": "nobody came"}}
    listener = await guest.open_tcp_listener(PORT)

    async def serve() -> None:
        async with await listener.accept() as stream:
            line = b""
            while not line.endswith(b"\n"):
                if not (byte := await stream.receive_some(1)):
                    return
                line += byte

            async def receive() -> None:
                verdicts["the guest"] = await receive_ramp(stream, order.up)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_ramp, stream, order.down)
                nursery.start_soon(receive)

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        client = await trio.to_thread.run_sync(traffic.exchange, (LOOPBACK, published), order)
        if client["error"]:
            nursery.cancel_scope.cancel()
    verdicts["the host"] = client
    for who, verdict in verdicts.items():
        if verdict["error"]:
            return {"ok": False, "result": f"{who}: {verdict['error']}"}
    size = order.up + order.down
    return {"bytes": size, "seconds": client["seconds"], "result": f"{size / 1e6:.0f} MB, SHA-256 equal"}
