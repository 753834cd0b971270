"""Thousands of datagrams between a real Linux guest and the host: none is lost, and C has carried them."""

from __future__ import annotations

import json
import os
import sys
import tempfile

import pytest

from tunstack import open_gateway
from tunstack.demo.servers import UdpEchoServer
from tunstack.gateway.namespace import NamespaceOptions, start_in_namespace
from tunstack.gateway.plan import DEFAULT_PLAN
from tunstack.ip.addresses import parse_address
from tunstack.native import fastpath

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(not fastpath.available, reason="the fast path was not built"),
]

COUNT = 2000
"""Datagrams each way, for each size."""
SIZES = (64, 512, 1400)
CUT = (4000, 8192)
"""Those of several fragments."""
GUEST = """
import json, socket, sys
host, port, count, sizes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
window = 16 if max(sizes) < 1500 else 4
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((host, port))
sock.settimeout(5)
wrong = 0
for size in sizes:
    expected = [number.to_bytes(4, "big") * (size // 4) for number in range(count)]
    sent = 0
    for number in range(count):
        while sent < min(number + window, count):
            sock.send(expected[sent])
            sent += 1
        wrong += sock.recv(65536) != expected[number]
print(json.dumps(wrong))
"""
"""A window of 16 datagrams, or 4 large ones: no queue on the way is too short for it."""


@pytest.mark.parametrize("layer3", [False, True], ids=["tap", "tun"])
@pytest.mark.parametrize("host", ["10.0.2.2", "fd00::2"])
@pytest.mark.parametrize("sizes", [SIZES, CUT], ids=["whole", "in fragments"])
async def test_nothing_is_lost_and_the_fast_path_carries_it(
    host: str, layer3: bool, sizes: tuple[int, ...]
) -> None:
    with tempfile.TemporaryFile() as out, UdpEchoServer("::1" if ":" in host else "127.0.0.1") as server:
        program = [sys.executable, "-I", "-c", GUEST, host, str(server.port), str(COUNT), json.dumps(sizes)]
        options = NamespaceOptions(layer3=layer3, stdout=out.fileno())
        async with (
            start_in_namespace(program, DEFAULT_PLAN, options, env=dict(os.environ)) as guest,
            open_gateway(host_loopback=parse_address(host)) as gateway,
        ):
            gateway.attach_fd(guest.take_device_fd())
            await guest.start()
            assert await guest.wait() == 0
            assert gateway.engine._fast is not None
            c = gateway.engine._fast.fast.c.udp
            carried = c.datagrams_up, c.datagrams_down
            fragments = c.assembled, c.cut
            drops = gateway.stack.drops.as_dict()
        out.seek(0)
        assert json.load(out) == 0
    assert min(carried) >= 0.95 * COUNT * len(sizes)
    assert min(fragments) >= (0.95 * COUNT * len(sizes) if sizes == CUT else 0)
    assert not {"udp-socket-full", "udp-filtered", "transmit-queue-full"} & drops.keys()
