"""What a node does with neighbour discovery (RFC 4861 7.2) on an Ethernet link: answer, learn, ask.

Theory of operation. Solicitations for own addresses are answered: to the asker's MAC, solicited, with Router
and Override set; after a probe from :: (RFC 4862 5.4) all nodes are told that the address is taken. What a
solicitation says of its sender makes an entry of the neighbour cache; an advertisement only touches one that
exists, and only a solicited one confirms it. The cache, its states and timers are `link.neighbour`; what it
wants to know `solicit` asks, at the solicited-node group or, for an address in use, at the MAC that is known.

Whoever claims an own address, or has the MAC of a group, of nobody or of ours, is not believed (BAD_NDP).
Solicitations for addresses of others and router solicitations are counted as ICMP_IGNORED.
"""

from __future__ import annotations

from tunstack.errors import BadPacket, DropCounters, DropReason
from tunstack.ip import ndp
from tunstack.ip.addresses import UNSPECIFIED_V6
from tunstack.ip.header import ICMPV6, IpHeader
from tunstack.ip.layer import IpLayer
from tunstack.ip.ndp import NeighbourAdvertisement, NeighbourSolicitation
from tunstack.link import ethernet
from tunstack.link.interface import EthernetLink


class NeighbourDiscovery:
    """Neighbour discovery for the own addresses of `link`."""

    __slots__ = ("_drops", "_ip", "_link")

    def __init__(self, link: EthernetLink, ip: IpLayer, drops: DropCounters) -> None:
        self._link = link
        self._ip = ip
        self._drops = drops

    def receive(self, header: IpHeader, now: float) -> None:
        """Act on a message; `header.hop_limit` as it was received.

        Raises:
            BadPacket: as `ndp.parse`, or BAD_NDP for a claim that cannot be true.
        """
        message = ndp.parse(header)
        if isinstance(message, NeighbourSolicitation):
            self._receive_solicitation(message, now)
        elif isinstance(message, NeighbourAdvertisement):
            self._receive_advertisement(message, now)
        else:
            self._drops.add(DropReason.ICMP_IGNORED)

    def solicit(self) -> None:
        """Ask what the link wants to know."""
        for address, mac in self._link.poll_solicitations():
            src = self._source_for(address)
            if src is None:
                continue
            dst = ndp.solicited_node(address) if mac is None else address
            message = ndp.emit_solicitation(src, dst, address, self._link.mac)
            self._send(src, dst, message, mac)

    def _receive_solicitation(self, message: NeighbourSolicitation, now: float) -> None:
        src, _, target, mac = message
        own = self._link.own_addresses
        if src in own or (mac is not None and not self._may_have(mac)):
            raise BadPacket(DropReason.BAD_NDP)
        if target not in own:
            self._drops.add(DropReason.ICMP_IGNORED)
            return
        is_probe = src == UNSPECIFIED_V6
        if mac is not None:
            self._link.neighbour_heard(src, mac, now, solicited=False, create=True)
        dst = ndp.ALL_NODES if is_probe else src
        answer = ndp.emit_advertisement(
            target, dst, target, self._link.mac, router=True, solicited=not is_probe, override=True
        )
        if mac is None and not is_probe:
            for packet in self._ip.build(target, dst, ICMPV6, answer, hop_limit=ndp.HOP_LIMIT):
                self._link.send(packet, dst, now)
        else:
            self._send(target, dst, answer, mac)

    def _receive_advertisement(self, message: NeighbourAdvertisement, now: float) -> None:
        link = self._link
        if message.target in link.own_addresses or message.src in link.own_addresses:
            raise BadPacket(DropReason.BAD_NDP)
        # The answer to a unicast question may leave the MAC out (RFC 4861 4.4): it is the one that was asked.
        mac = message.mac or link.neighbours.mac(message.target)
        if mac is None:
            self._drops.add(DropReason.ICMP_IGNORED)
            return
        if not self._may_have(mac):
            raise BadPacket(DropReason.BAD_NDP)
        link.neighbour_heard(message.target, mac, now, solicited=message.solicited, create=False)

    def _may_have(self, mac: bytes) -> bool:
        return ethernet.is_station(mac) and mac != self._link.mac

    def _source_for(self, address: bytes) -> bytes | None:
        """The own address that shares the longest prefix with `address`; None without any of IPv6."""
        number = int.from_bytes(address, "big")
        candidates = [own for own in self._link.own_addresses if len(own) == 16]
        return min(candidates, key=lambda own: int.from_bytes(own, "big") ^ number, default=None)

    def _send(self, src: bytes, dst: bytes, message: bytes, mac: bytes | None) -> None:
        """Send to `mac`, or to the group `dst`."""
        mac = mac or ethernet.group_mac(dst)
        assert mac is not None
        for packet in self._ip.build(src, dst, ICMPV6, message, hop_limit=ndp.HOP_LIMIT):
            self._link.send_to(packet, mac)
