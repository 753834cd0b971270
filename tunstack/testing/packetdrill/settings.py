"""Options of a script: at its head (`--name=value`) and on the command line, which wins.

Each option of the published tool is in one of three tables: what it does here, why it is accepted without
effect, or why a script with it cannot run. So nothing is ignored in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from tunstack.ip.addresses import Prefix, format_address, parse_address
from tunstack.testing.packetdrill.language.errors import Position, ScriptError, UnsupportedSyntax
from tunstack.testing.packetdrill.language.syntax import Option

COMMAND_LINE = Position(0, 0)
"""The place of an option that stands in no script."""
_ADDRESSES = {
    4: (parse_address("192.168.0.1"), parse_address("192.0.2.1"), 16),
    6: (parse_address("fd3d:a0b:17d6::1"), parse_address("2001:db8::1"), 64),
}
"""By version: the address of the stack, that of its peer, the length of the prefix."""
_NON_FATAL = frozenset({"packet", "syscall"})
_ECN_MODES = {"0": "off", "1": "on", "2": "passive", "off": "off", "on": "on", "passive": "passive"}


@dataclasses.dataclass(slots=True)
class Settings:
    """How a script is run. Times in microseconds, MTU in bytes."""

    ip_version: int = 4
    local_ip: bytes | None = None
    remote_ip: bytes | None = None
    prefix_length: int | None = None
    bind_port: int = 8080
    connect_port: int = 8080
    mtu: int = 1500
    tolerance_usecs: int = 4000
    tolerance_percent: float = 0.0
    ts_tick_usecs: int = 0
    """Microseconds of one tick of the stack's timestamps, which are then verified; 0: they are not."""
    non_fatal: frozenset[str] = frozenset()
    """Kinds of event whose failure is only noted: packet, syscall."""
    dry_run: bool = False
    any_syn_options: bool = False
    ignore_window: bool = False
    ecn: str = "passive"
    congestion: str | None = None
    seed: int = 1
    remote_isn: int = 0
    local_isn: int | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def local(self) -> bytes:
        """The address of the stack."""
        return self.local_ip or _ADDRESSES[self.ip_version][0]

    @property
    def remote(self) -> bytes:
        """The address of its peer, the script."""
        return self.remote_ip or _ADDRESSES[self.ip_version][1]

    @property
    def prefix(self) -> Prefix:
        """The network of the stack."""
        length = _ADDRESSES[self.ip_version][2] if self.prefix_length is None else self.prefix_length
        return Prefix.of(self.local, length)


class _BadValue(ValueError):
    pass


def _whole(text: str, most: int = 1 << 32, least: int = 0) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise _BadValue("a number") from None
    if not least <= value <= most:
        raise _BadValue(f"a number from {least} to {most}")
    return value


def _address(settings: Settings, text: str) -> bytes:
    try:
        address = parse_address(text)
    except ValueError:
        raise _BadValue("an IP address") from None
    if len(address) != (4 if settings.ip_version == 4 else 16):
        raise _BadValue(f"an IPv{settings.ip_version} address (--ip_version)")
    return address


def _flag(text: str) -> bool:
    if text.lower() not in ("0", "1", "true", "false", "yes", "no", "on", "off"):
        raise _BadValue("0 or 1")
    return text.lower() in ("1", "true", "yes", "on")


def _ip_version(settings: Settings, text: str) -> None:
    if text not in ("ipv4", "ipv6", "4", "6"):
        raise _BadValue("ipv4 or ipv6 (IPv4-mapped sockets are not supported)")
    settings.ip_version = 6 if "6" in text else 4


def _local_ip(settings: Settings, text: str) -> None:
    settings.local_ip = _address(settings, text)


def _remote_ip(settings: Settings, text: str) -> None:
    settings.remote_ip = _address(settings, text)


def _netmask(settings: Settings, text: str) -> None:
    if text.startswith("/"):
        settings.prefix_length = _whole(text[1:], 32 if settings.ip_version == 4 else 128)
        return
    number = int.from_bytes(_address(settings, text), "big")
    bits = 32 if settings.ip_version == 4 else 128
    length = number.bit_count()
    if number != ((1 << length) - 1) << (bits - length):
        raise _BadValue("a netmask whose ones come first")
    settings.prefix_length = length


def _port(name: str) -> Callable[[Settings, str], None]:
    def apply(settings: Settings, text: str) -> None:
        setattr(settings, name, _whole(text, 0xFFFF, 1))

    return apply


def _mtu(settings: Settings, text: str) -> None:
    settings.mtu = _whole(text, 65535, 1280 if settings.ip_version == 6 else 68)


def _tolerance(settings: Settings, text: str) -> None:
    settings.tolerance_usecs = _whole(text, 10**9)


def _percent(settings: Settings, text: str) -> None:
    try:
        settings.tolerance_percent = float(text)
    except ValueError:
        raise _BadValue("a number") from None
    if not 0 <= settings.tolerance_percent <= 100:
        raise _BadValue("from 0 to 100")


def _non_fatal(settings: Settings, text: str) -> None:
    kinds = frozenset(text.split(","))
    if not kinds <= _NON_FATAL:
        raise _BadValue("a list of packet, syscall")
    settings.non_fatal = kinds


def _tick(settings: Settings, text: str) -> None:
    settings.ts_tick_usecs = _whole(text, 10**6)


def _dry_run(settings: Settings, text: str) -> None:
    settings.dry_run = _flag(text)


def _syn_options(settings: Settings, text: str) -> None:
    if text not in ("any", "exact"):
        raise _BadValue("any or exact")
    settings.any_syn_options = text == "any"


def _ignore_window(settings: Settings, text: str) -> None:
    settings.ignore_window = _flag(text)


def _ecn(settings: Settings, text: str) -> None:
    if text not in _ECN_MODES:
        raise _BadValue("0 (off), 1 (on) or 2 (passive)")
    settings.ecn = _ECN_MODES[text]


def _congestion(settings: Settings, text: str) -> None:
    from tunstack.tcp.congestion import ALGORITHMS

    if text not in ALGORITHMS:
        raise _BadValue(f"one of {', '.join(sorted(ALGORITHMS))}")
    settings.congestion = text


def _seed(settings: Settings, text: str) -> None:
    settings.seed = _whole(text, 1 << 62)


def _remote_isn(settings: Settings, text: str) -> None:
    settings.remote_isn = _whole(text, 0xFFFFFFFF)


def _local_isn(settings: Settings, text: str) -> None:
    settings.local_isn = _whole(text, 0xFFFFFFFF)


SUPPORTED: dict[str, tuple[Callable[[Settings, str], None], str]] = {
    "ip_version": (_ip_version, "`ipv4` (default) or `ipv6`"),
    "local_ip": (_local_ip, "address of the stack; 192.168.0.1 or fd3d:a0b:17d6::1"),
    "remote_ip": (_remote_ip, "address of the peer; 192.0.2.1 or 2001:db8::1"),
    "netmask_ip": (_netmask, "netmask of the stack's network, or `/length`; 255.255.0.0 or /64"),
    "bind_port": (_port("bind_port"), "port that `bind` takes; 8080"),
    "connect_port": (_port("connect_port"), "port of the peer that `connect` goes to; 8080"),
    "mtu": (_mtu, "MTU of the link in bytes; 1500"),
    "tolerance_usecs": (_tolerance, "microseconds by which an event may miss its time; 4000"),
    "tolerance_percent": (_percent, "the same as part of the time since the event before; 0"),
    "tcp_ts_tick_usecs": (
        _tick,
        "microseconds of one tick of the stack's timestamps (1000): verify them; 0: do not",
    ),
    "non_fatal": (_non_fatal, "`packet`, `syscall`: failures of these kinds are notes"),
    "dry_run": (_dry_run, "1: only parse the script"),
    "syn_options": (
        _syn_options,
        "`any`: options of SYNs in any order, padding ignored; `exact`. Own option",
    ),
    "ignore_window": (_ignore_window, "1: do not compare windows. Own option"),
    "tcp_ecn": (_ecn, "0: no ECN; 1: ask for it; 2 (default): agree to it when asked. Own option"),
    "congestion": (_congestion, "name of the congestion control. Own option"),
    "seed": (_seed, "of the stack's random numbers; 1. Own option"),
    "local_isn": (_local_isn, "sequence number on the wire that stands for the stack's first 0. Own option"),
    "remote_isn": (_remote_isn, "sequence number on the wire that stands for the peer's 0. Own option"),
}
"""What each option sets, and its description for the docs."""

WITHOUT_EFFECT = {
    "gateway_ip": "there is no gateway: the link has one peer",
    "speed": "the link of the script has no rate",
    "feature": "nothing is switched by it here",
    "init_scripts": "no shell commands are run",
    "code_command": "code runs in the interpreter that runs the script",
    "code_format": "code is Python",
    "code_sockopt": "code sees TCP_INFO",
    "send_omit_free": "there is no memory of a kernel",
    "tcp_ts_ecr_scaled": "echoes are compared as they are",
    "debug": "see --verbose",
    "verbose": "see --verbose of the command line",
    "is_anyip": "there is one local address",
}
"""Options of the published tool that are accepted with a note, and why they mean nothing here."""

UNSUPPORTED = {
    "so_filename": "the stack is no shared library",
    "so_flags": "the stack is no shared library",
    "wire_client": "scripts do not run over a wire",
    "wire_server": "scripts do not run over a wire",
    "wire_server_at": "scripts do not run over a wire",
    "wire_server_port": "scripts do not run over a wire",
    "wire_client_dev": "scripts do not run over a wire",
    "wire_server_dev": "scripts do not run over a wire",
    "udp_encaps": "packets are not encapsulated",
    "persistent_tun_dev": "there is no tunnel device",
}
"""Options with which a script cannot run, and why."""


def apply_options(settings: Settings, options: Iterable[Option], path: str = "") -> None:
    """Let `options` change `settings`, the version of IP first.

    Raises:
        ScriptError: an option is unknown, unsupported, or its value is not what it should be.
    """
    ordered = sorted(options, key=lambda option: option.name != "ip_version")
    for option in ordered:
        name = option.name
        if name in WITHOUT_EFFECT:
            settings.notes.append(f"--{name} has no effect: {WITHOUT_EFFECT[name]}")
            continue
        check_name(option, path)
        try:
            SUPPORTED[name][0](settings, option.value)
        except _BadValue as error:
            raise ScriptError(f"--{name} should be {error}", option.position, path) from None


def check_name(option: Option, path: str = "") -> None:
    """Raise `ScriptError` if there is no such option, or if no script can run with it."""
    name = option.name
    if name in UNSUPPORTED:
        raise UnsupportedSyntax(f"--{name} is not supported: {UNSUPPORTED[name]}", option.position, path)
    if name not in SUPPORTED and name not in WITHOUT_EFFECT:
        raise ScriptError(f"there is no option --{name}", option.position, path)


def parse_option(text: str, position: Position = COMMAND_LINE) -> Option:
    """`--name=value` of the command line as an option. Raises ValueError with a sentence."""
    name, separator, value = text.partition("=")
    if not name.startswith("--") or not separator:
        raise ValueError(f"{text!r} is no option: it should be --name=value")
    return Option(name[2:].replace("-", "_"), value, position)


def describe_settings(settings: Settings) -> str:
    """One line on who is who, for a trace."""
    return (
        f"stack {format_address(settings.local)}, peer {format_address(settings.remote)}, MTU {settings.mtu}"
    )
