"""The switch: which guest of a shared segment gets which frame.

Theory of operation. Guests are behind *ports*, the gateway is one more: `GATEWAY`. The source of each frame
tells behind which port a MAC is (IEEE 802.1D 7.8). A frame for a MAC that is known goes to its port, one for
a group or for a MAC that nobody has been heard with goes to all, and to the gateway only what is for its MAC
or for a group. What 802.1D 7.12.6 reserves for bridges goes nowhere.

Other than a bridge in a building the switch does not believe everything: a MAC stays with its port until
that is closed or has not been heard with it for `AGE`, and the `SourceGuard` looks at what frames say of
addresses. Where a port is not guarded both move at once, as at a bridge.

Two isolated ports do not reach each other. Bounds: `limits.ports`; `limits.port_stations` MACs a port, where
the one that was learned first makes room, so that a guest which makes up MACs harms only itself. Sans-IO.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from tunstack.errors import DropCounters, DropReason, LocalError
from tunstack.limits import Limits
from tunstack.link.ethernet import HEADER_LENGTH, is_station
from tunstack.link.guard import AGE, SourceGuard
from tunstack.packet import Buffer

GATEWAY = 0
"""The port behind which the gateway is."""

_RESERVED = b"\x01\x80\xc2\0\0"
_NOWHERE: tuple[int, ...] = ()


class _Port:
    __slots__ = ("is_guarded", "is_isolated", "number", "others", "stations", "to_all")

    def __init__(self, number: int, *, is_isolated: bool, is_guarded: bool) -> None:
        self.number = number
        self.is_isolated = is_isolated
        self.is_guarded = is_guarded
        self.stations: dict[bytes, None] = {}
        self.others: tuple[int, ...] = ()
        """The ports that this one reaches."""
        self.to_all: tuple[int, ...] = (GATEWAY,)


class _Station:
    __slots__ = ("heard_at", "port")

    def __init__(self, port: _Port, now: float) -> None:
        self.port = port
        self.heard_at = now


class Switch:
    """The segment of one gateway.

    Attributes:
        mac: the gateway's.
        guard: what guests may claim.
        drops: what was dropped, by reason.
    """

    def __init__(self, mac: bytes, own_addresses: Set[bytes], limits: Limits, drops: DropCounters) -> None:
        """`own_addresses`: of the gateway, a set that may change."""
        self.mac = mac
        self.guard = SourceGuard(own_addresses, limits.port_stations)
        self.drops = drops
        self._limits = limits
        self._ports: dict[int, _Port] = {}
        self._stations: dict[bytes, _Station] = {}

    def __len__(self) -> int:
        """MACs that are known."""
        return len(self._stations)

    @property
    def ports(self) -> tuple[int, ...]:
        """The numbers of the ports that are open."""
        return tuple(self._ports)

    @property
    def has_free_port(self) -> bool:
        """Whether `open_port` has one."""
        return len(self._ports) < self._limits.ports

    def open_port(self, *, is_isolated: bool = False, is_guarded: bool = True) -> int:
        """A new port's number, the lowest that is free. `LocalError` if there are too many."""
        if len(self._ports) >= self._limits.ports:
            raise LocalError(f"the switch has {self._limits.ports} ports, and all are taken")
        number = next(n for n in range(1, len(self._ports) + 2) if n not in self._ports)
        self._ports[number] = _Port(number, is_isolated=is_isolated, is_guarded=is_guarded)
        self._connect()
        return number

    def close_port(self, number: int) -> None:
        """Nobody is there any more; what was known of who was is forgotten."""
        for mac in self._ports.pop(number).stations:
            del self._stations[mac]
        self.guard.forget(number)
        self._connect()

    def receive(self, number: int, frame: Buffer, now: float) -> Sequence[int]:
        """The ports that get `frame`, which came in at port `number`; none if it was dropped (counted)."""
        if len(frame) < HEADER_LENGTH:
            return self._drop(DropReason.FRAME_TOO_SHORT)
        port = self._ports[number]
        src = bytes(frame[6:12])
        station = self._stations.get(src)
        if station is None or station.port is not port:
            refused = self._learn(src, port, station, now)
            if refused is not None:
                return self._drop(refused)
        else:
            station.heard_at = now
        if port.is_guarded:
            refused = self.guard.check(frame, src, number, now)
            if refused is not None:
                return self._drop(refused)
        dst = bytes(frame[:6])
        if dst == self.mac:
            return (GATEWAY,)
        if dst[0] & 1:
            return self._drop(DropReason.NOT_FOR_US) if dst[:5] == _RESERVED and dst[5] < 16 else port.to_all
        target = self._find(dst, now)
        if target is None:
            return port.others or self._drop(DropReason.NOT_FOR_US)
        if target is port:
            return self._drop(DropReason.NOT_FOR_US)
        if target.is_isolated and port.is_isolated:
            return self._drop(DropReason.PORT_ISOLATED)
        return (target.number,)

    def send(self, frame: Buffer, now: float) -> Sequence[int]:
        """The ports that get `frame`, which the gateway sends."""
        dst = bytes(frame[:6])
        if not dst[0] & 1:
            target = self._find(dst, now)
            if target is not None:
                return (target.number,)
        return tuple(self._ports)

    def port_of(self, mac: bytes, now: float) -> int | None:
        """The port behind which `mac` is."""
        target = self._find(mac, now)
        return None if target is None else target.number

    def is_isolated(self, number: int) -> bool:
        """Whether port `number` is."""
        return self._ports[number].is_isolated

    def stations(self) -> dict[bytes, int]:
        """The MACs that are known, and their ports."""
        return {mac: station.port.number for mac, station in self._stations.items()}

    def _find(self, mac: bytes, now: float) -> _Port | None:
        station = self._stations.get(mac)
        return None if station is None or now - station.heard_at >= AGE else station.port

    def _learn(self, mac: bytes, port: _Port, known: _Station | None, now: float) -> DropReason | None:
        """`mac` is behind `port` from now on, or the reason why that cannot be believed."""
        if not is_station(mac):
            return DropReason.BAD_SOURCE_MAC
        if mac == self.mac:
            return DropReason.SPOOFED_MAC
        if known is not None:
            if known.port.is_guarded and now - known.heard_at < AGE:
                return DropReason.SPOOFED_MAC
            del known.port.stations[mac]
        if len(port.stations) >= self._limits.port_stations:
            oldest = next(iter(port.stations))
            del port.stations[oldest], self._stations[oldest]
        port.stations[mac] = None
        self._stations[mac] = _Station(port, now)
        return None

    def _connect(self) -> None:
        """Compute anew whom each port reaches."""
        ports = self._ports.values()
        for port in ports:
            port.others = tuple(
                other.number
                for other in ports
                if other is not port and not (other.is_isolated and port.is_isolated)
            )
            port.to_all = (GATEWAY, *port.others)

    def _drop(self, reason: DropReason) -> Sequence[int]:
        self.drops.add(reason)
        return _NOWHERE
