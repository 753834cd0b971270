"""The DHCP server at work: datagrams of the virtual network in and out, and the file that keeps leases."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import msgspec
import trio

from tunstack.ip.addresses import format_address, parse_address
from tunstack.ip.udp import UdpDatagram
from tunstack.link.ethernet import format_mac, parse_mac
from tunstack.packet import Buffer
from tunstack.services.dhcp import DhcpServer
from tunstack.services.dhcp_leases import Binding, LeaseTable
from tunstack.services.dhcp_wire import SERVER_PORT
from tunstack.stack import Stack

log = logging.getLogger(__name__)

SAVE_INTERVAL = 0.5
"""Seconds between two writings of the file at the least."""
WARN_INTERVAL = 60.0
"""Seconds between two warnings that there are no addresses left."""
_LARGEST_FILE = 1 << 20


class LeaseFileError(ValueError):
    """The file of leases is none; the message is one sentence."""


class StoredLease(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A lease in the file.

    Attributes:
        address: the client's.
        mac: its hardware address.
        client: its identifier, hexadecimal.
        name: its host name, or "".
        expires: seconds since 1970.
    """

    address: str
    mac: str
    client: str
    name: str
    expires: float


class StoredLeases(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The file."""

    leases: list[StoredLease]


class DhcpService:
    """Answers what comes to port 67; a service of the NAT."""

    def __init__(
        self, server: DhcpServer, stack: Stack, search: Callable[[float], tuple[str, ...]] | None = None
    ) -> None:
        """`search`: the domains to complete names with at a time, in the place of the server's."""
        self._server = server
        self._search = search
        self._stack = stack
        self._warned_at = float("-inf")
        self._saved = server.table.changes
        self._changed = trio.Event()
        server.on_exhausted = self._warn

    def datagram(self, datagram: UdpDatagram, now: float) -> None:
        """One from the guest, or a train of them."""
        payload = datagram.payload
        size = datagram.gso_size or len(payload) or 1
        for start in range(0, len(payload) or 1, size):
            self._receive(payload[start : start + size], now)
        if self._server.table.changes != self._saved:
            self._changed.set()

    def _receive(self, payload: Buffer, now: float) -> None:
        server = self._server
        if self._search is not None and (search := self._search(now)) != server.config.search:
            server.config = dataclasses.replace(server.config, search=search)
        reply = self._server.receive(payload, now)
        if reply is not None:
            self._stack.send_udp(
                self._server.config.server,
                SERVER_PORT,
                reply.address,
                reply.port,
                reply.payload,
                now,
                mac=reply.mac,
            )

    def _warn(self) -> None:
        now = self._stack.now
        if now - self._warned_at >= WARN_INTERVAL:
            self._warned_at = now
            log.warning("DHCP: all %d addresses are taken", len(self._server.table.pool))

    async def keep(self, path: str | os.PathLike[str]) -> None:
        """Write the leases to `path` whenever they change, until cancelled, and then once more."""
        try:
            while True:
                await self._changed.wait()
                self._changed = trio.Event()
                await trio.to_thread.run_sync(self._snapshot(path))  # a disk may take its time
                await trio.sleep(SAVE_INTERVAL)
        finally:
            if self._server.table.changes != self._saved:
                self._snapshot(path)()

    def _snapshot(self, path: str | os.PathLike[str]) -> Callable[[], None]:
        """What writes the leases as they are now."""
        table = self._server.table
        self._saved = table.changes
        leases, offset = table.leases(trio.current_time()), _wall_offset()

        def write() -> None:
            try:
                write_leases(path, leases, offset)
            except OSError as error:
                log.warning("DHCP: the leases cannot be written to %s: %s", path, error.strerror)

        return write


def load(table: LeaseTable, path: str | os.PathLike[str]) -> int:
    """Take up the leases of the file, if there is one; how many were.

    Raises:
        LeaseFileError: it is no such file.
        OSError: it cannot be read.
    """
    now, offset = trio.current_time(), _wall_offset()
    restored = 0
    for binding in read_leases(path, offset):
        if binding.expires > now:
            restored += table.restore(binding)
    return restored


def read_leases(path: str | os.PathLike[str], offset: float) -> list[Binding]:
    """The leases in the file; none if there is no file. `offset`: of the times since 1970 to ours."""
    file = pathlib.Path(path)
    if not file.exists():
        return []
    if file.stat().st_size > _LARGEST_FILE:
        raise LeaseFileError(f"'{path}' is larger than a file of leases can be")
    try:
        stored = msgspec.json.decode(file.read_bytes(), type=StoredLeases)
        return [_binding(one, offset) for one in stored.leases]
    except msgspec.DecodeError as error:
        raise LeaseFileError(f"'{path}' is no file of leases: {error}") from None
    except ValueError as error:
        raise LeaseFileError(f"'{path}': {error}") from None


def write_leases(path: str | os.PathLike[str], leases: list[Binding], offset: float) -> None:
    """Put a file with `leases` in the place of the one that is there, whole or not at all. OSError."""
    stored = StoredLeases(
        leases=[
            StoredLease(
                address=format_address(one.address),
                mac=format_mac(one.mac),
                client=one.client.hex(),
                name=one.name,
                expires=round(one.expires + offset, 3),
            )
            for one in leases
        ]
    )
    data = msgspec.json.format(msgspec.json.encode(stored), indent=1) + b"\n"
    file = pathlib.Path(path)
    with _beside(file) as (descriptor, name):
        with open(descriptor, "wb", closefd=False) as out:
            out.write(data)
        os.fsync(descriptor)
        os.replace(name, file)


@contextlib.contextmanager
def _beside(file: pathlib.Path) -> Iterator[tuple[int, str]]:
    """A new file in the same directory, which is removed unless it was given another name."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        yield descriptor, name
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _binding(stored: StoredLease, offset: float) -> Binding:
    return Binding(
        client=bytes.fromhex(stored.client),
        mac=parse_mac(stored.mac),
        address=parse_address(stored.address),
        expires=stored.expires - offset,
        is_leased=True,
        name=stored.name,
    )


def _wall_offset() -> float:
    """What is to be added to trio's time for seconds since 1970."""
    return time.time() - trio.current_time()
