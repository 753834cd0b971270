"""Linux TUN: IP packets to and from a network namespace, 64 KiB trains included."""

from __future__ import annotations

from tunstack.link.devices.vnet import IFF_TUN, VnetDevice


class TunDevice(VnetDevice):
    """A layer-3 device; `TunDevice.open(name, mtu=…)` or `TunDevice.from_fd(fd, mtu=…)`."""

    KIND = IFF_TUN
    L2 = False
