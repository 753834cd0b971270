"""What a guest may not reach, by raw frames through the whole gateway: each row of the table in `nat/policy`.

The gateway runs in a network of its own, where sockets listen on every address: nothing may arrive there.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from tunstack import open_gateway
from tunstack.link.devices.base import DeviceClosed
from tunstack.link.devices.memory import MemoryDevice, memory_pair
from tunstack.packet import Packet

from .frames import ICMP, RST, SYN, TCP, UDP, Live, arp, checksum, echo, tcp, udp

pytestmark = pytest.mark.netns

HOST = "198.18.0.1"
HOST_BROADCAST = "198.18.7.255"
PORT = 40_001
RESET, PROHIBITED, NO_PORT, NO_HOST, SILENCE, REPLY = "RST", "3/13", "3/3", "3/1", "silence", "0/0"

ROWS: dict[str, tuple[str, str, str]] = {
    # what is answered to TCP, UDP and echo
    "0.0.0.0": (PROHIBITED, PROHIBITED, PROHIBITED),
    "0.1.2.3": (PROHIBITED, PROHIBITED, PROHIBITED),
    "127.0.0.1": (PROHIBITED, PROHIBITED, PROHIBITED),
    "127.1.2.3": (PROHIBITED, PROHIBITED, PROHIBITED),
    "127.255.255.254": (PROHIBITED, PROHIBITED, PROHIBITED),
    "169.254.169.254": (RESET, PROHIBITED, PROHIBITED),
    "169.254.0.1": (RESET, PROHIBITED, PROHIBITED),
    HOST: (RESET, PROHIBITED, PROHIBITED),
    "10.0.2.2": (RESET, NO_PORT, REPLY),
    "10.0.2.3": (RESET, NO_PORT, REPLY),
    "10.0.2.77": (NO_HOST, NO_HOST, NO_HOST),
    HOST_BROADCAST: (RESET, SILENCE, SILENCE),
    "10.0.2.255": (SILENCE, SILENCE, SILENCE),
    "255.255.255.255": (SILENCE, SILENCE, SILENCE),
    "224.0.0.1": (SILENCE, SILENCE, SILENCE),
    "224.0.0.251": (SILENCE, SILENCE, SILENCE),
    "239.255.255.250": (SILENCE, SILENCE, SILENCE),
}


@contextlib.contextmanager
def sockets_everywhere() -> Iterator[Callable[[], int]]:
    """TCP and UDP on port `PORT` of every address; yields how much has arrived there."""
    for address in (f"{HOST}/21", "127.1.2.3/8"):
        words = ["ip", "address", "replace", address, "broadcast", HOST_BROADCAST, "dev", "lo"]
        subprocess.run(words if address.startswith(HOST) else words[:4] + words[6:], check=True)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        for sock in (stream, datagrams):
            sock.setblocking(False)
            sock.bind(("0.0.0.0", PORT))
        stream.listen()

        def arrived() -> int:
            count = 0
            with contextlib.suppress(BlockingIOError):
                stream.accept()[0].close()
                count += 1
            with contextlib.suppress(BlockingIOError):
                datagrams.recv(100)
                count += 1
            return count

        yield arrived


def describe(frame: bytes, live: Live, dst: bytes) -> tuple[int, str] | None:
    """To which protocol `frame`, from the gateway, is an answer, and which; None for anything else."""
    if frame[12:14] != b"\x08\x00":
        return None
    assert frame[30:34] == live.guest
    assert checksum(frame[14:34]) == 0
    if frame[23] == TCP:
        assert frame[26:30] == dst
        assert struct.unpack_from("!HH", frame, 34) == (PORT, 5555)
        return TCP, RESET if frame[47] & RST else f"TCP {frame[47]:#x}"
    assert frame[23] == ICMP
    assert checksum(frame[34:]) == 0
    answer = f"{frame[34]}/{frame[35]}"
    if frame[34] == 0:
        assert frame[26:30] == dst
        return ICMP, answer
    assert frame[58:62] == dst  # of the quote
    return frame[51], answer


async def collect(device: MemoryDevice, seconds: float) -> list[bytes]:
    """What comes out of the gateway within `seconds`."""
    frames: list[bytes] = []
    with trio.move_on_after(seconds), contextlib.suppress(DeviceClosed):
        while True:
            frames += [packet.tobytes() for packet in device.read_batch(100)]
            await trio.sleep(0.005)
    return frames


async def attempt(address: str, **options: Any) -> tuple[dict[int, str], dict[str, int], int, int]:
    """One SYN, one datagram and one ping: answers by protocol, drops, arrivals, dials."""
    live = Live()
    dst = socket.inet_aton(address)
    device, near = memory_pair()
    with sockets_everywhere() as arrived:
        async with open_gateway(**options) as gateway:
            gateway.attach_device(near)
            device.write_batch([Packet(arp(live, 1, live.guest_mac, live.guest, live.gateway))])
            await collect(device, 0.02)
            for frame in (
                tcp(live, dst, (5555, PORT), 1000, 0, SYN, options=b"\x02\x04\x05\xb4"),
                udp(live, dst, PORT, b"to whom it may concern"),
                echo(live, dst),
            ):
                device.write_batch([Packet(frame)])
            found = [describe(frame, live, dst) for frame in await collect(device, 0.15)]
            answers = [answer for answer in found if answer is not None]
            assert len(dict(answers)) == len(answers), answers
            return dict(answers), gateway.stack.drops.as_dict(), arrived(), gateway.nat.counters.tcp_dials


@pytest.mark.parametrize("address", ROWS)
def test_each_row_of_the_table(in_private_network: Callable[[Callable[[], Any]], Any], address: str) -> None:
    expected = dict(zip((TCP, UDP, ICMP), ROWS[address], strict=True))
    answers, drops, arrived, dials = in_private_network(lambda: trio.run(attempt, address))
    assert {protocol: answers.get(protocol, SILENCE) for protocol in expected} == expected
    assert arrived == 0
    assert dials == 0
    refused = sum(answer != REPLY for answer in expected.values())
    assert sum(drops.values()) == refused, drops
    assert drops.keys() <= {"policy", "bad-destination"}


@pytest.mark.parametrize("address", [HOST, "10.0.2.2"])
def test_what_is_allowed_arrives(
    in_private_network: Callable[[Callable[[], Any]], Any], address: str
) -> None:
    """The same frames, and the sockets see them: it is the policy that keeps them away above."""
    loopback = None if address == HOST else socket.inet_aton(address)

    async def main() -> tuple[dict[int, str], dict[str, int], int, int]:
        return await attempt(address, allow_host=True, host_loopback=loopback)

    answers, drops, arrived, dials = in_private_network(lambda: trio.run(main))
    assert answers[TCP] == "TCP 0x12"
    assert UDP not in answers
    assert answers[ICMP] == REPLY
    assert (arrived, dials) == (2, 1)
    assert drops == {}
