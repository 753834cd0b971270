"""Which ports are in use, and by whom: the conflicts of bind(2), and ports that nobody asked for by number.

A port stays in use for as long as somebody who claimed it says so (`holds_port`): a connection outlives its
descriptor until TIME-WAIT is over. With SO_REUSEADDR on both sides a port may be bound again unless one of
them listens; UDP needs the option on both sides only (socket(7)).
"""

from __future__ import annotations

from typing import Protocol

from tunstack.testing.packetdrill.system.call import Failure

EPHEMERAL = range(32768, 61000)
"""net.ipv4.ip_local_port_range of Linux."""


class PortUser(Protocol):
    """Who may have claimed a port."""

    @property
    def bound_address(self) -> bytes:
        """The address; all zero: any."""
        ...

    @property
    def reuses(self) -> bool:
        """SO_REUSEADDR is set."""
        ...

    @property
    def listens(self) -> bool:
        """It takes connections."""
        ...

    @property
    def holds_port(self) -> bool:
        """It still uses the port that it claimed."""
        ...


class PortTable:
    """The ports of one protocol."""

    def __init__(self) -> None:
        self._users: dict[int, list[PortUser]] = {}
        self._next = EPHEMERAL.start

    def is_taken(self, user: PortUser, address: bytes, port: int) -> bool:
        """Whether `port` at `address` is somebody else's, who does not share it with `user`."""
        others = self._users.get(port, ())
        if any(not other.holds_port for other in others):
            others = self._users[port] = [other for other in others if other.holds_port]
        for other in others:
            if other is user or (user.reuses and other.reuses and not other.listens):
                continue
            if not any(address) or not any(other.bound_address) or address == other.bound_address:
                return True
        return False

    def claim(self, user: PortUser, address: bytes, port: int) -> int:
        """`user` takes `port`, or any if that is 0; returns which. Raises `Failure`: EADDRINUSE."""
        if port:
            if self.is_taken(user, address, port):
                raise Failure("EADDRINUSE")
        else:
            port = self._free(user, address)
        self._users.setdefault(port, []).append(user)
        return port

    def join(self, user: PortUser, port: int) -> None:
        """`user` shares `port` with the listener that it comes from."""
        self._users.setdefault(port, []).append(user)

    def _free(self, user: PortUser, address: bytes) -> int:
        for _ in EPHEMERAL:
            port = self._next
            self._next = port + 1 if port + 1 in EPHEMERAL else EPHEMERAL.start
            if port not in self._users or not self.is_taken(_Stranger(address), address, port):
                return port
        raise Failure("EADDRINUSE")

    def leave(self, user: PortUser, port: int) -> None:
        """`user` gives `port` back."""
        users = self._users.get(port, [])
        if user in users:
            users.remove(user)
        if not users:
            self._users.pop(port, None)


class _Stranger:
    """Who shares a port with nobody: an automatic port is one that nobody has."""

    reuses = False
    listens = False
    holds_port = True

    def __init__(self, address: bytes) -> None:
        self.bound_address = address
