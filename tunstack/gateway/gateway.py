"""The composition: one gateway for one virtual network, as the library and the commands use it."""

from __future__ import annotations

import contextlib
import enum
import functools
import io
import logging
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING

import trio

from tunstack import native
from tunstack.gateway.dns import DnsSettings, GatewayDns
from tunstack.gateway.host import VirtualHost
from tunstack.gateway.plan import DEFAULT_PLAN, AddressPlan, Publish
from tunstack.ip.addresses import Prefix, format_address
from tunstack.ip.header import TCP, UDP
from tunstack.limits import DEFAULT_LIMITS, Limits
from tunstack.link.devices.base import Device
from tunstack.link.switch import Switch
from tunstack.nat import config as nat_config
from tunstack.nat.nat import Nat
from tunstack.nat.poller import new_poller
from tunstack.stack import Stack

if TYPE_CHECKING:
    from tunstack.gateway.bridge import Bridge
    from tunstack.gateway.dhcp import DhcpSettings
    from tunstack.gateway.namespace import Attachment
    from tunstack.link.devices.framed import FramedDevice
    from tunstack.link.devices.port import Port
    from tunstack.link.devices.segment import SegmentDevice
    from tunstack.link.framings import Framing
    from tunstack.link.shaping.scenario import Scenario
    from tunstack.link.shaping.spec import ShapeSpec
    from tunstack.link.shaping.stage import StageStatistics
    from tunstack.services.dhcp_names import LeaseNames
    from tunstack.services.local_names import Zone
    from tunstack.tcp.statistics import TcpStatistics

log = logging.getLogger("tunstack")


class Keep(enum.Enum):
    """What is not to be changed."""

    KEEP = enum.auto()


DRAIN_PATIENCE = 5.0
"""Seconds without progress after which `Gateway.drain` gives up."""
DRAIN_INTERVAL = 0.002


class Gateway(VirtualHost):
    """A running gateway. Made by `open_gateway`.

    As a host of the virtual network it has the gateway's addresses, and connects to the guest by default.

    Attributes:
        plan: who has which address.
        nat: the flows.
        switch: who is where, if guests share a segment; see `connect`.
        dns: the DNS service.
        guest_names: names that guests have told DHCP, if there is a server.
    """

    dns: GatewayDns
    guest_names: LeaseNames | None = None

    def __init__(
        self,
        plan: AddressPlan,
        *,
        limits: Limits,
        publish: Iterable[Publish],
        host_loopback: bytes | None,
        allow_host: bool,
        pcap: str | os.PathLike[str] | None,
        shape_up: ShapeSpec | None,
        shape_down: ShapeSpec | None,
    ) -> None:
        self.plan = plan
        self._limits = limits
        self._scenario: trio.CancelScope | None = None
        own = {*plan.gateways, *plan.resolvers}
        if host_loopback is not None and plan.contains(host_loopback):
            own.add(host_loopback)
        stack = Stack(
            mac=plan.gateway_mac,
            mtu=plan.mtu,
            prefixes=[Prefix(network, length) for network, length in plan.networks],
            own_addresses=own,
            rng=random.SystemRandom(),
            limits=limits,
        )
        self.switch = Switch(plan.gateway_mac, stack.own_addresses, limits, stack.drops)
        self._segment: SegmentDevice | None = None
        with contextlib.ExitStack() as resources:
            self._pcap: io.FileIO | None = None
            if pcap is not None:
                self._pcap = resources.enter_context(io.FileIO(pcap, "w"))
            poller = new_poller()
            resources.callback(poller.close)
            config = _nat_config(plan, publish, host_loopback, allow_host)
            self.nat = Nat(stack, poller, config, limits, stack.drops)
            resources.callback(self.nat.close)
            super().__init__(stack, poller, self.nat.services, addresses=plan.gateways, peers=plan.guests)
            self.engine.handler = self.nat
            self.engine.set_carrier = self.nat.set_carrier
            log.info(
                "gateway %s, DNS %s, guest %s, MTU %d; native code: %s; pings: %s",
                *(
                    " and ".join(map(format_address, addresses))
                    for addresses in (plan.gateways, plan.resolvers, plan.guests)
                ),
                plan.mtu,
                native.implementation,
                self.nat.echo_mode,
            )
            if shape_up is not None or shape_down is not None:
                self._shape(shape_up, shape_down)
            for notice in self.nat.notices:
                log.info("%s", notice)
            resources.callback(self.engine.detach)
            resources.callback(self.close_sockets)
            self._resources = resources.pop_all()

    # what guests attach to

    def attach_device(self, device: Device) -> None:
        """Serve `device`, which belongs to the gateway from now on. One at a time.

        Raises:
            RuntimeError: another device is attached.
            trio.ClosedResourceError: the gateway has been closed.
        """
        self._check_free()
        self.stack.set_link(l2=device.offloads.l2)
        if self._pcap is not None:
            device = self._capture(device, self._pcap)
        self.engine.attach(device)

    def attach_fd(self, fd: int) -> None:
        """Serve an open TAP or TUN descriptor; the gateway closes it in the end.

        After an exception the descriptor is still the caller's.

        Raises:
            ValueError: the descriptor is not one of /dev/net/tun, or has no interface.
            RuntimeError: another device is attached.
            trio.ClosedResourceError: the gateway has been closed.
        """
        from tunstack.link.devices.tap import TapDevice
        from tunstack.link.devices.tun import TunDevice
        from tunstack.link.devices.vnet import IFF_TUN, read_flags

        self._check_free()
        _, flags = read_flags(fd)
        device_class = TunDevice if flags & IFF_TUN else TapDevice
        self.attach_device(
            device_class.from_fd(
                fd, mtu=self.plan.mtu, batch=self._limits.device_batch, drops=self.stack.drops
            )
        )

    def attach_stream(self, sock: socket.socket, framing: Framing | None = None) -> None:
        """Serve a connected stream socket that carries frames behind their lengths, by default as QEMU does.

        The gateway closes it in the end, also after an exception.

        Raises:
            RuntimeError: another device is attached.
            trio.ClosedResourceError: the gateway has been closed.
        """
        from tunstack.link.devices.stream import StreamDevice
        from tunstack.link.framings import QEMU

        device = StreamDevice(sock, mtu=self.plan.mtu, framing=framing or QEMU, drops=self.stack.drops)
        try:
            self.attach_device(device)
        except BaseException:
            device.close()
            raise

    def connect(self, device: FramedDevice, *, is_isolated: bool = False, is_guarded: bool = True) -> Port:
        """Put `device`, which belongs to the gateway from now on, behind a port of a shared segment.

        Any number of guests may be connected so; they reach each other, unless both are isolated. What a
        guarded port says of its addresses has to be true; see `tunstack.link.guard`.

        Raises:
            LocalError: there are too many ports; the device is still the caller's.
            RuntimeError: a device is attached that is no segment.
            trio.ClosedResourceError: the gateway has been closed.
        """
        self._check_open()
        segment = self._segment
        if segment is None or segment.is_closed:
            from tunstack.link.devices.segment import SegmentDevice

            segment = SegmentDevice(
                self.switch, trio.current_time, new_poller(), mtu=self.plan.mtu, limits=self._limits
            )
            try:
                self.attach_device(segment)
            except BaseException:
                segment.close()
                raise
            self._segment = segment
        return segment.connect(device, is_isolated=is_isolated, is_guarded=is_guarded)

    def disconnect(self, port: Port) -> None:
        """Close `port` and its device; not from within a round."""
        if self._segment is not None:
            self._segment.disconnect(port)

    @functools.cached_property
    def bridge(self) -> Bridge:
        """Routes and forwards, which may change."""
        from tunstack.gateway.bridge import Bridge

        self._check_open()
        bridge = Bridge(self)
        self._resources.callback(bridge.close)
        return bridge

    @property
    def has_device(self) -> bool:
        """Whether a device is attached, and if it is a segment, somebody is connected."""
        if self._segment is not None:
            return bool(self._segment.ports)
        return self.engine.device is not None

    async def attach_namespace(self, target: int | str, *, layer3: bool = False) -> Attachment:
        """Make a device in the network namespace of process `target`, or at that path, and serve it.

        Returns what can be waited for, the end of the namespace; the gateway closes it in the end.

        Raises:
            NamespaceError: there is no such namespace, or this user may not enter it.
            RuntimeError: another device is attached.
            trio.ClosedResourceError: the gateway has been closed.
        """
        from tunstack.gateway.namespace import enter_namespace

        self._check_free()
        attachment = await enter_namespace(target, self.plan, layer3=layer3)
        try:
            fd = attachment.take_device_fd()
            try:
                self.attach_fd(fd)
            except BaseException:
                os.close(fd)
                raise
        except BaseException:
            attachment.close()
            raise
        self._resources.callback(attachment.close)
        return attachment

    @property
    def undelivered(self) -> int:
        """Connections of the guest whose data has not all been passed on yet."""
        self.stack.adopt_all()
        self.engine.wake()
        return sum(not flow.delivered for flow in self.nat.tcp.flows)

    async def drain(self, patience: float = DRAIN_PATIENCE) -> bool:
        """Wait until what a guest that has ended left behind in its kernel is with the host's sockets.

        The kernel of the guest still sends for sockets whose process is gone. True if everything
        arrived; False if nothing moved for `patience` seconds.
        """
        carried = -1
        last = trio.current_time()
        # The device's queue first: what is in it may still open a flow or end one.
        await trio.sleep(DRAIN_INTERVAL)
        while self.undelivered:
            now = trio.current_time()
            before, carried = carried, sum(flow.carried_up for flow in self.nat.tcp.flows)
            if carried != before:
                last = now
            elif now - last >= patience:
                return False
            await trio.sleep(DRAIN_INTERVAL)
        return True

    def detach(self) -> None:
        """Close the device, if there is one. Connections stay, for the next device."""
        self.engine.detach()

    def close(self) -> None:
        """Close every descriptor, and log what TCP did and what was dropped. The engine must have ended."""
        self._resources.close()
        statistics = self.tcp_statistics()
        if statistics.connections:
            log.info("TCP: %s", statistics)
        if untold := self.nat.counters.untold:
            log.info("UDP: %d datagrams came without their TTL and TOS", untold)
        for direction, stages in self.shaping_statistics().items():
            for stage in stages:
                log.info("shaped %s, %s: %d in, %d out", direction, stage.stage, stage.received, stage.sent)
        if drops := self.stack.drops.as_dict():
            log.info("dropped: %s", ", ".join(f"{reason} {drops[reason]}" for reason in sorted(drops)))

    def tcp_statistics(self) -> TcpStatistics:
        """What the connections to the guest have done since the gateway was opened, added up."""
        statistics = self.stack.tcp_statistics()
        self.engine.wake()  # it knows of connections that it has not known of
        statistics.accelerated = self.engine.accelerated_segments
        return statistics

    def shaping_statistics(self) -> dict[str, list[StageStatistics]]:
        """What the stages of the link's shaping have done since it was ordered: "up" and "down", if shaped.

        Those of packets that are shaped differently stand behind their match, as in "up udp port 53".
        """
        shaper = self.engine.shaper
        if shaper is None:
            return {}
        from tunstack.link.shaping.classes import parts_of

        self.engine.settle_shaping()
        return {
            f"{way} {match}" if match is not None else way: pipeline.statistics()
            for way, shaped in (("up", shaper.up), ("down", shaper.down))
            if shaped is not None
            for match, pipeline in parts_of(shaped).items()
        }

    @property
    def shaping(self) -> dict[str, ShapeSpec | None]:
        """What the link does to packets now: "up" and "down"."""
        shaper = self.engine.shaper
        if shaper is None:
            return {"up": None, "down": None}
        return {"up": shaper.up_spec, "down": shaper.down_spec}

    @property
    def is_link_up(self) -> bool:
        """Whether the link is up; see `set_link`."""
        shaper = self.engine.shaper
        return shaper is None or not shaper.is_cut

    def shape(
        self,
        *,
        up: str | ShapeSpec | Keep | None = Keep.KEEP,
        down: str | ShapeSpec | Keep | None = Keep.KEEP,
    ) -> None:
        """From now on the link does this to packets; None: nothing. A direction that is not given stays.

        No packet is lost that is on its way: what waits for the rate goes on at the new one, and what
        is delayed arrives when it was due. Where nothing is shaped any more the offloads are turned on again.

        Raises:
            ShapeError: (a ValueError) the shaping cannot be; nothing has changed then.
        """
        specs = self.shaping
        for name, shape in (("up", up), ("down", down)):
            if not isinstance(shape, Keep):
                specs[name] = _shape_spec(shape)
        self._shape(specs["up"], specs["down"], is_cut=not self.is_link_up)

    def set_link(self, up: bool) -> None:
        """Pull the cable, or plug it in again: a link that is down loses all packets, whatever is shaped."""
        specs = self.shaping
        if up != self.is_link_up:
            self._shape(specs["up"], specs["down"], is_cut=not up)

    async def follow(
        self,
        scenario: Scenario,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Change the link as `scenario` says, until its end, in the place of the one that was followed."""
        self.stop_scenario()
        with trio.CancelScope() as self._scenario:
            scope = self._scenario
            task_status.started()
            start = trio.current_time()
            try:
                while True:
                    for step in scenario.steps:
                        await trio.sleep_until(start + step.at)
                        self.shape(**step.shapes)
                        if step.link is not None:
                            self.set_link(step.link)
                    if not scenario.length:
                        return
                    start += scenario.length
                    await trio.sleep_until(start)
            except ValueError as error:  # ShapeError: a trace that is not there any more
                log.warning("the scenario ends here: %s", error)
            finally:
                if self._scenario is scope:
                    self._scenario = None

    def stop_scenario(self) -> None:
        """Follow it no longer; the link stays as it is now."""
        if self._scenario is not None:
            self._scenario.cancel()
            self._scenario = None

    @property
    def follows_scenario(self) -> bool:
        """Whether a scenario is being followed."""
        return self._scenario is not None

    def _shape(self, up: ShapeSpec | None, down: ShapeSpec | None, *, is_cut: bool = False) -> None:
        from tunstack.gateway.files import read
        from tunstack.link.shaping.shaper import Shaper

        before, was_cut, shaper = self.shaping, not self.is_link_up, self.engine.shaper
        if shaper is None:
            seed = random.SystemRandom().getrandbits(64)
            shaper = Shaper(up, down, seed, self._limits, self.stack.drops, read)
            shaper.set_cut(is_cut)
        else:
            self.engine.change_shape(up, down, is_cut=is_cut)
        self.engine.shape(None if shaper.is_idle else shaper)
        if is_cut != was_cut:
            log.info("the link is %s", "down" if is_cut else "up")
        for name, spec in (("up", up), ("down", down)):
            if spec != before[name]:
                log.info("shaping %s: %s", name, "no more" if spec is None else spec)

    def _check_free(self) -> None:
        self._check_open()
        if self.engine.device is not None:
            raise RuntimeError("a device is attached already")

    def _capture(self, device: Device, file: io.FileIO) -> Device:
        """`device` with everything that passes it written to `file`, as a section of its own."""
        from tunstack.link.capture import CaptureDevice, PcapngWriter, link_type

        writer = PcapngWriter(file.write, link_type(device.offloads), name=device.name)
        return CaptureDevice(device, writer, time.time)


def _nat_config(
    plan: AddressPlan, publish: Iterable[Publish], host_loopback: bytes | None, allow_host: bool
) -> nat_config.NatConfig:
    return nat_config.NatConfig(
        gateway=plan.gateways,
        networks=plan.networks,
        host_loopback=() if host_loopback is None else (host_loopback,),
        allow_host=allow_host,
        publish=tuple(
            nat_config.Publish(
                protocol=UDP if port.protocol == "udp" else TCP,
                host=port.host,
                host_port=port.host_port,
                guest=plan.guests[-1 if len(port.host) == 16 else 0],
                guest_port=port.guest_port,
            )
            for port in publish
        ),
    )


def _shape_spec(shape: str | ShapeSpec | None) -> ShapeSpec | None:
    if not isinstance(shape, str):
        return shape
    from tunstack.link.shaping.spec import ShapeSpec

    return ShapeSpec.parse(shape)


@contextlib.asynccontextmanager
async def open_gateway(
    plan: AddressPlan = DEFAULT_PLAN,
    *,
    limits: Limits = DEFAULT_LIMITS,
    publish: Iterable[Publish] = (),
    host_loopback: bytes | None = None,
    allow_host: bool = False,
    dns: Iterable[tuple[bytes, int]] = (),
    hosts: Mapping[str, bytes] | None = None,
    zones: Iterable[Zone] = (),
    dns_routes: Mapping[str, tuple[tuple[bytes, int], ...]] | None = None,
    dhcp: DhcpSettings | None = None,
    pcap: str | os.PathLike[str] | None = None,
    shape_up: str | ShapeSpec | None = None,
    shape_down: str | ShapeSpec | None = None,
) -> AsyncIterator[Gateway]:
    """A gateway that runs as long as the block.

    Args:
        plan: addresses and MTU of the virtual network.
        limits: bounds on everything.
        publish: ports of the host that lead to the guest's address of the same family.
        host_loopback: an address of the guest's side that means the host's 127.0.0.1, or ::1 if it is IPv6.
        allow_host: the guest may reach the host's own addresses.
        dns: resolvers (address, port) in place of those of /etc/resolv.conf.
        hosts: names that DNS answers itself.
        zones: zones that it does.
        dns_routes: resolvers for names within a zone, by the zone's name.
        dhcp: serve DHCP, in this way; None: do not.
        pcap: a file to which everything that passes the device is written (pcapng).
        shape_up: what the link does to packets from the guest, such as "delay 50ms loss 1%".
        shape_down: the same for packets to the guest.

    Raises:
        ShapeError: (a ValueError) the shaping cannot be.
        DhcpError: (a ValueError) the leases cannot be what the settings or their file say.
        ValueError: a name or a zone cannot be.
        OSError: a published port cannot be bound, or a file cannot be opened.
    """
    gateway = Gateway(
        plan,
        limits=limits,
        publish=publish,
        host_loopback=host_loopback,
        allow_host=allow_host,
        pcap=pcap,
        shape_up=_shape_spec(shape_up),
        shape_down=_shape_spec(shape_down),
    )
    try:
        async with gateway.engine.running() as nursery:
            settings = DnsSettings(
                resolvers=tuple(dns),
                hosts=dict(hosts or {}),
                zones=tuple(zones),
                routes=dict(dns_routes or {}),
            )
            gateway.dns = GatewayDns(gateway, settings, host_loopback)
            await gateway.dns.start(nursery)
            if dhcp is not None:
                from tunstack.gateway.dhcp import start_dhcp

                start_dhcp(gateway, nursery, dhcp)
            yield gateway
    finally:
        gateway.close()
