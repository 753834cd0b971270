"""Linux TAP: Ethernet frames to and from a network namespace, 64 KiB trains included."""

from __future__ import annotations

from tunstack.link.devices.vnet import IFF_TAP, VnetDevice


class TapDevice(VnetDevice):
    """A layer-2 device; `TapDevice.open(name, mtu=…)` or `TapDevice.from_fd(fd, mtu=…)`."""

    KIND = IFF_TAP
    L2 = True
