"""The driver's side of a fake adapter as a device, so that a stack can be on it: Windows, in short."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from tests.windows.fake import Fake
from tunstack.link.devices.base import Offloads
from tunstack.packet import Checksum, Packet

INTERVAL = 0.001
"""Seconds between two looks at what the application has sent, of which nothing tells."""


class DriverDevice:
    """Implements `Device`; `serve` has to run."""

    def __init__(self, fake: Fake, mtu: int) -> None:
        self.name = fake.name
        self.offloads = Offloads(l2=False, mtu=mtu, max_frame=mtu)
        self.on_ready: Callable[[], None] | None = None
        self.write_errors = 0
        self._fake = fake

    def set_offloads(self, enabled: bool) -> None:
        """There are none."""

    def fileno(self) -> None:
        """None: there is no descriptor."""

    def read_batch(self, limit: int) -> list[Packet]:
        """What the application has sent."""
        packets: list[Packet] = []
        while len(packets) < limit and (data := self._fake.collect()) is not None:
            packets.append(Packet(data, (), 0, 0, Checksum.UNKNOWN))
        return packets

    def write_batch(self, packets: Sequence[Packet]) -> int:
        """Packets for the application; those that the ring has no room for are lost, as with the driver."""
        for packet in packets:
            self._fake.inject(packet.tobytes())
        return len(packets)

    def flush(self) -> bool:
        """Nothing waits here."""
        return True

    def close(self) -> None:
        """Nothing is held."""

    async def serve(self) -> None:
        """Look for packets again and again."""
        while True:
            if self.on_ready is not None:
                self.on_ready()
            await trio.sleep(INTERVAL)
