"""Published UDP ports: one gateway port inside for each client outside.

Theory of operation. The host socket of a published port receives from all clients. Each client (its
address and port, and the host's address that it has sent to) gets a port of the gateway's own address
inside, from which its datagrams reach the guest; what the guest sends back there goes to that client, from
the published port and from the address that the client knows (IP_PKTINFO, where the socket is bound to
all). Only the guest's published port may answer. A client ends after `udp_idle`; at the limit the one idle
for longest goes.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections import OrderedDict

from tunstack.errors import DropReason
from tunstack.ip.header import UDP
from tunstack.ip.udp import UdpDatagram
from tunstack.nat.config import Publish
from tunstack.nat.context import Context, Services
from tunstack.nat.forward import ephemeral_ports, free_udp_port
from tunstack.nat.poller import READ
from tunstack.nat.portable import Ancillary, receive_datagram, send_datagram

RECEIVE_BURST = 32
CLIENTS = 1024
"""Clients of one published port; about 1 KiB each."""
_IP_PKTINFO = 8
_pktinfo = struct.Struct("=I4s4s")
_pktinfo6 = struct.Struct("=16sI")


class UdpForward:
    """One published UDP port; the token of its socket."""

    __slots__ = ("_clients", "_context", "_ports", "_services", "_sock", "_wildcard", "gateway", "publish")

    def __init__(
        self, context: Context, services: Services, publish: Publish, gateway: bytes, sock: socket.socket
    ) -> None:
        self._context = context
        self._services = services
        self._sock = sock
        self._ports = ephemeral_ports()
        self._clients: OrderedDict[tuple[object, bytes], UdpClient] = OrderedDict()
        self.publish = publish
        self.gateway = gateway
        self._wildcard = sys.platform == "linux" and not any(publish.host)
        if self._wildcard:
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            elif sys.platform == "linux":
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        context.poller.add(sock, self, READ)

    def __len__(self) -> int:
        return len(self._clients)

    def on_ready(self, ready: int, now: float) -> None:
        """Datagrams of clients are there."""
        for _ in range(RECEIVE_BURST):
            try:
                payload, ancillary, _, sender = receive_datagram(self._sock, 65535, 64)
            except OSError:  # none, or an error of an earlier send, which is void
                return
            client = self._client(sender, self._local(ancillary), now)
            if client is not None:
                client.receive(payload, now)

    def send(self, client: UdpClient, answer: UdpDatagram) -> None:
        """Send the guest's answer to `client`."""
        for piece in answer.pieces():
            try:
                send_datagram(self._sock, piece, client.ancillary, client.address)
            except BlockingIOError:
                self._context.drops.add(DropReason.UDP_SOCKET_FULL)
            except OSError:
                self._context.drops.add(DropReason.UDP_SOCKET_ERROR)

    def touch(self, client: UdpClient, now: float) -> None:
        """`client` is in use."""
        self._clients.move_to_end(client.key)
        self._context.timers.set(client, now + self._context.limits.udp_idle)

    def remove(self, client: UdpClient) -> None:
        """Forget a client."""
        if self._clients.pop(client.key, None) is not None:
            self._context.timers.cancel(client)
            self._services.pop((UDP, self.gateway, client.port))

    def close(self) -> None:
        """Stop: forget all clients and close the socket."""
        for client in list(self._clients.values()):
            self.remove(client)
        self._context.poller.remove(self._sock)
        self._sock.close()

    def _local(self, ancillary: Ancillary) -> bytes:
        """The address of the host that a datagram came to; empty if the socket has only one."""
        for level, kind, value in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                return bytes(_pktinfo.unpack(value)[2])
            if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                return bytes(_pktinfo6.unpack(value)[0])
        return b""

    def _client(self, address: tuple[str, int], local: bytes, now: float) -> UdpClient | None:
        key = (address, local)
        client = self._clients.get(key)
        if client is None:
            if len(self._clients) >= min(CLIENTS, self._context.limits.udp_mappings):
                self._context.drops.add(DropReason.UDP_MAPPING_EVICTED)
                self.remove(next(iter(self._clients.values())))
            port = free_udp_port(self._services, self.gateway, self._ports)
            if port is None:
                self._context.drops.add(DropReason.FLOW_LIMIT)
                return None
            client = UdpClient(self, self._context, key, address, port, self._reply_from(local))
            self._clients[key] = client
            self._services[UDP, self.gateway, port] = client
            self._context.counters.forwarded += 1
        self.touch(client, now)
        return client

    def _reply_from(self, local: bytes) -> Ancillary:
        if len(local) == 4:
            return [(socket.IPPROTO_IP, _IP_PKTINFO, _pktinfo.pack(0, local, bytes(4)))]
        if len(local) == 16:
            return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _pktinfo6.pack(local, 0))]
        return []


class UdpClient:
    """One client outside; inside it is a service on a port of the gateway."""

    __slots__ = ("_context", "_forward", "address", "ancillary", "key", "port")

    def __init__(
        self,
        forward: UdpForward,
        context: Context,
        key: tuple[object, bytes],
        address: tuple[str, int],
        port: int,
        ancillary: Ancillary,
    ) -> None:
        self._forward = forward
        self._context = context
        self.key = key
        self.address = address
        self.port = port
        self.ancillary = ancillary

    def receive(self, payload: bytes, now: float) -> None:
        """A datagram of the client, for the guest."""
        forward = self._forward
        publish = forward.publish
        self._context.stack.send_udp(
            forward.gateway, self.port, publish.guest, publish.guest_port, payload, now
        )

    def datagram(self, datagram: UdpDatagram, now: float) -> None:
        """The guest's answer."""
        publish = self._forward.publish
        if datagram.src != publish.guest or datagram.src_port != publish.guest_port:
            self._context.drops.add(DropReason.UDP_FILTERED)
            return
        self._forward.touch(self, now)
        self._forward.send(self, datagram)

    def on_timeout(self, now: float) -> None:
        self._forward.remove(self)
