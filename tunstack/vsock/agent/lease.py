"""Keeps the interface's address by DHCP: the sockets, the clock and the configuration around `DhcpClient`.

An interface without an address cannot be spoken to by UDP sockets on every system (reverse path filters drop
what comes in), so broadcasts leave by a packet socket and answers come in by it, those alone (a filter in the
kernel). A renewal, which is for one server, leaves by an ordinary socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import socket
import struct
import sys
from collections.abc import Callable

import trio

from tunstack import native
from tunstack.errors import BadPacket, WrongSystem
from tunstack.ip import ipv4, udp
from tunstack.ip.addresses import BROADCAST_V4, format_address
from tunstack.ip.header import UDP
from tunstack.packet import Checksum, Packet
from tunstack.services.dhcp_client import DhcpClient, Lease, Sending
from tunstack.services.dhcp_wire import CLIENT_PORT, SERVER_PORT
from tunstack.vsock.agent.interface import NO_ADDRESSES, Addresses, Interface

_ETH_P_IP = 0x0800
_SO_ATTACH_FILTER = 26
_NOBODY = bytes(4)
_EVERYBODY = b"\xff" * 6
_FILTER = (
    (0x30, 0, 0, 9),  # ldb [9]: the protocol
    (0x15, 0, 6, UDP),
    (0x28, 0, 0, 6),  # ldh [6]: fragments are none
    (0x45, 4, 0, 0x1FFF),
    (0xB1, 0, 0, 0),  # ldxb 4 * ([0] & 15): the length of the header
    (0x48, 0, 0, 2),  # ldh [x + 2]: the destination port
    (0x15, 0, 1, CLIENT_PORT),
    (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
)
"""Classic BPF: IPv4 datagrams for the client's port."""


class LeaseKeeper:
    """A DHCP client at an interface."""

    def __init__(self, interface: Interface, hostname: str | None, tell: Callable[[str], object]) -> None:
        self._interface = interface
        self._client = DhcpClient(interface.mac, random.SystemRandom(), hostname)
        self._tell = tell
        self._packets = _packet_socket(interface.device.name)
        self._datagrams = _datagram_socket(interface.device.name)
        self._sleep = trio.CancelScope()
        self._lease: Lease | None = None

    def close(self) -> None:
        """Give up the sockets; the address stays."""
        self._packets.close()
        self._datagrams.close()

    def link_up(self) -> None:
        """The link is there, for the first time or again."""
        self._client.link_up(trio.current_time())
        self._settle()
        self._sleep.cancel()

    async def run(self) -> None:
        """Keep the lease, until cancelled."""
        while True:
            deadline = self._client.next_timeout()
            with trio.CancelScope() as self._sleep:
                self._sleep.deadline = float("inf") if deadline is None else deadline
                await trio.lowlevel.wait_readable(self._packets)
                self._receive()
            self._client.handle_timeout(trio.current_time())
            self._settle()

    def _receive(self) -> None:
        now = trio.current_time()
        with contextlib.suppress(OSError):  # nothing more; or the interface was down, and says so once
            while True:
                packet = self._packets.recv(65536)
                with contextlib.suppress(BadPacket):
                    datagram = udp.parse(ipv4.parse(packet), Checksum.VALID)
                    self._client.receive(datagram.payload, now)

    def _settle(self) -> None:
        """Send what is to be sent, and have the addresses that there are."""
        for sending in self._client.poll_transmit(trio.current_time()):
            with contextlib.suppress(OSError):  # it is sent again
                self._send(sending)
        lease = self._client.lease
        if lease == self._lease:
            return
        self._lease = lease
        try:
            self._configure(lease)
        except OSError as error:  # somebody has taken the interface down, or away
            self._tell(f"what the server says cannot be set: {error.strerror or error}")

    def _configure(self, lease: Lease | None) -> None:
        if lease is None:
            self._tell("the address is not ours any more")
            self._interface.configure(NO_ADDRESSES)
            return
        self._interface.configure(
            Addresses(
                addresses=((lease.address, lease.bits),),
                routers=() if lease.router is None else (lease.router,),
                dns=lease.dns,
                domain=lease.domain,
            )
        )
        if lease.mtu is not None:
            self._interface.set_link(mtu=lease.mtu)
        self._tell(f"address {format_address(lease.address)}/{lease.bits}")

    def _send(self, sending: Sending) -> None:
        if sending.destination != BROADCAST_V4:
            self._datagrams.sendto(sending.payload, (format_address(sending.destination), SERVER_PORT))
            return
        payload = sending.payload
        datagram = udp.emit(_NOBODY, CLIENT_PORT, BROADCAST_V4, SERVER_PORT, len(payload)) + payload
        head = ipv4.emit(_NOBODY, BROADCAST_V4, UDP, len(datagram))
        unfinished = Packet(head + datagram, (), 0, 0, int(Checksum.PARTIAL), len(head), udp.CSUM_OFFSET)
        packet = native.complete_checksum(unfinished).tobytes()
        self._packets.sendto(packet, (self._interface.device.name, _ETH_P_IP, 0, 0, _EVERYBODY))


def _packet_socket(name: str) -> socket.socket:
    if sys.platform != "linux":
        raise WrongSystem
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    code = b"".join(struct.pack("=HBBI", *line) for line in _FILTER)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(_FILTER), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    sock.bind((name, _ETH_P_IP))
    return sock


def _datagram_socket(name: str) -> socket.socket:
    if sys.platform != "linux":
        raise WrongSystem
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
    sock.bind(("", CLIENT_PORT))
    return sock
