"""getsockopt(2) and setsockopt(2).

An option is in one of three classes: it does what Linux's does; it changes nothing that anybody can observe
over this stack, and is remembered so that it reads back (SO_REUSEADDR on a host without conflicts,
SO_PRIORITY, SO_MARK); or it is `Unsupported`. That a buffer size reads back as it was set, and not doubled as
Linux has it, is on purpose: the stack has no bookkeeping in its buffers that the doubling would stand for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tunstack.tcp.congestion import ALGORITHMS
from tunstack.tcp.header import DEFAULT_MSS_V4, HEADER_LEN
from tunstack.tcp.states import State
from tunstack.testing.packetdrill.language.values import (
    Array,
    Field,
    Integer,
    String,
    Struct,
    Value,
    Wildcard,
)
from tunstack.testing.packetdrill.system.arguments import integer, pair, pointed_integer
from tunstack.testing.packetdrill.system.base import Socket
from tunstack.testing.packetdrill.system.call import Failure, Unsupported
from tunstack.testing.packetdrill.system.constants import ERRNOS
from tunstack.testing.packetdrill.system.info import tcp_info
from tunstack.testing.packetdrill.system.tcp import CONGESTION_NAMES, TcpSocket
from tunstack.testing.packetdrill.system.udp import UdpSocket

SOL_IP, SOL_SOCKET, SOL_TCP, SOL_UDP, SOL_IPV6 = 0, 1, 6, 17, 41
_SMALLEST_BUFFER = 1152
"""Bytes: half of Linux's SOCK_MIN_RCVBUF, which counts doubled bytes."""
_UNSIGNED = 0xFFFFFFFF
_LARGEST_TIME = 32767
"""Seconds; MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL."""
_MAX_TIMEOUT = 1 << 31
"""Seconds beyond which a time-out is none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """How one option is read and written; None: it is not.

    `width` is the number of bytes of its value; `kinds` are the sockets that have it.
    """

    get: Callable[[Socket, float], Value] | None = None
    set: Callable[[Socket, Value, float], None] | None = None
    width: int = 4
    kinds: tuple[type[Socket], ...] = (TcpSocket, UdpSocket)


def setsockopt(socket: Socket, level: int, name: int, value: Value, length: Value, now: float) -> None:
    """setsockopt(2). Raises `Failure` and `Unsupported`."""
    size = integer(length)
    if size < 0:
        raise Failure("EINVAL")
    option = _find(socket, level, name, reading=False)
    if option.set is None:
        raise Failure("ENOPROTOOPT")
    if size < option.width and not (level == SOL_IP and size >= 1):  # a byte will do there
        raise Failure("EINVAL")
    if isinstance(value, Wildcard):
        raise Unsupported("setsockopt with ... as value")
    if isinstance(value, Integer) and value.value == 0:
        raise Failure("EFAULT")  # a null pointer
    option.set(socket, value, now)


def getsockopt(socket: Socket, level: int, name: int, length: Value, now: float) -> tuple[Value, int]:
    """getsockopt(2): the value, and how many bytes of it were wanted and are there."""
    option = _find(socket, level, name, reading=True)
    if isinstance(length, Wildcard):
        size = 1 << 16
    else:
        size = pointed_integer(length)
        if size < 0:
            raise Failure("EINVAL")
    if option.get is None:
        raise Failure("ENOPROTOOPT")
    value = option.get(socket, now)
    if isinstance(value, String):
        return value, min(size, 16)  # TCP_CA_NAME_MAX
    if isinstance(value, Array) and size < 4:
        low = pointed_integer(value) & ((1 << 8 * size) - 1)
        return Array((Integer(low),)), size
    return value, min(size, option.width)


def _find(socket: Socket, level: int, name: int, *, reading: bool) -> Option:
    options = OPTIONS.get(level)
    if level == SOL_UDP and isinstance(socket, UdpSocket):
        raise Unsupported(f"option {name} of level SOL_UDP")
    is_ipv4 = socket.host.width == 4
    if (
        options is None
        or (level == SOL_TCP and not isinstance(socket, TcpSocket))
        or (level == SOL_IPV6 and is_ipv4)
    ):
        # IPv4 words it differently for getsockopt.
        raise Failure("EOPNOTSUPP" if reading and is_ipv4 else "ENOPROTOOPT")
    option = options.get(name)
    if option is None:
        raise Unsupported(f"option {name} of level {level}")
    if not isinstance(socket, option.kinds):
        raise Failure("ENOPROTOOPT")
    return option


# values


def _int(value: int) -> Value:
    return Array((Integer(value),))


def _time(seconds: float | None) -> Value:
    whole = int(seconds or 0)
    micro = round(((seconds or 0) - whole) * 1_000_000)
    return Struct((Field(Integer(whole), "tv_sec"), Field(Integer(micro), "tv_usec")))


def _flag(attribute: str) -> Option:
    """A flag of `Options`, which is kept and passed to the connection."""

    def get(socket: Socket, now: float) -> Value:
        return _int(int(getattr(socket.options, attribute)))

    def put(socket: Socket, value: Value, now: float) -> None:
        setattr(socket.options, attribute, pointed_integer(value) != 0)
        socket.apply(attribute, now)

    return Option(get, put)


def _number(
    attribute: str, low: int, high: int, kinds: tuple[type[Socket], ...] = (TcpSocket, UdpSocket)
) -> Option:
    """A number of `Options` between `low` and `high`."""

    def get(socket: Socket, now: float) -> Value:
        return _int(getattr(socket.options, attribute))

    def put(socket: Socket, value: Value, now: float) -> None:
        given = pointed_integer(value)
        if not low <= given <= high:
            raise Failure("EINVAL")
        setattr(socket.options, attribute, given)
        socket.apply(attribute, now)

    return Option(get, put, kinds=kinds)


def _timeout(attribute: str) -> Option:
    """SO_RCVTIMEO and SO_SNDTIMEO."""

    def get(socket: Socket, now: float) -> Value:
        return _time(getattr(socket.options, attribute))

    def put(socket: Socket, value: Value, now: float) -> None:
        seconds, micro = pair(value, (("tv_sec",), ("tv_usec",)))
        if not 0 <= micro < 1_000_000:
            raise Failure("EDOM")
        timeout: float | None = seconds + micro / 1_000_000
        if seconds < 0:
            timeout = 0.0
        elif not timeout or seconds >= _MAX_TIMEOUT:
            timeout = None
        setattr(socket.options, attribute, timeout)

    return Option(get, put, width=16)


def _read_only(get: Callable[[Socket], int]) -> Option:
    return Option(lambda socket, now: _int(get(socket)))


# options that are like no other


def _error(socket: Socket, now: float) -> Value:
    if isinstance(socket, TcpSocket):
        socket.sync()
    name = socket.take_error() or socket.soft_error()
    return _int(ERRNOS[name] if name else 0)


def _get_linger(socket: Socket, now: float) -> Value:
    linger = socket.options.linger
    on = linger is not None
    return Struct((Field(Integer(int(on)), "onoff"), Field(Integer(linger or 0), "linger")))


def _set_linger(socket: Socket, value: Value, now: float) -> None:
    on, seconds = pair(value, (("onoff", "l_onoff"), ("linger", "l_linger")))
    socket.options.linger = (seconds & 0xFFFFFFFF) if on else None


def _get_receive_buffer(socket: Socket, now: float) -> Value:
    size = socket.options.receive_buffer
    return _int(socket.host.stack.limits.receive_buffer if size is None else size)


def _set_receive_buffer(socket: Socket, value: Value, now: float) -> None:
    limit = socket.host.stack.limits.receive_buffer
    socket.options.receive_buffer = min(limit, max(_SMALLEST_BUFFER, pointed_integer(value) & _UNSIGNED))
    socket.apply("receive_buffer", now)


def _get_send_buffer(socket: Socket, now: float) -> Value:
    size = socket.options.send_buffer
    return _int(socket.host.stack.limits.send_buffer_floor if size is None else size)


def _set_send_buffer(socket: Socket, value: Value, now: float) -> None:
    limit = socket.host.stack.limits.send_buffer
    socket.options.send_buffer = min(limit, max(_SMALLEST_BUFFER, pointed_integer(value) & _UNSIGNED))


def _set_low_water(socket: Socket, value: Value, now: float) -> None:
    given = pointed_integer(value)
    most = socket.host.stack.limits.receive_buffer // 2
    socket.options.receive_low_water = 1 if given == 0 else most if given < 0 else min(given, most)


def _get_max_segment(socket: Socket, now: float) -> Value:
    assert isinstance(socket, TcpSocket)
    connection = socket.connection
    if connection is not None and socket.state not in (State.CLOSED, State.LISTEN, State.SYN_SENT):
        return _int(connection.hot.mss)
    return _int(socket.options.max_segment or DEFAULT_MSS_V4)


def _set_max_segment(socket: Socket, value: Value, now: float) -> None:
    given = pointed_integer(value)
    if given and not 88 <= given <= 32767:  # TCP_MIN_MSS, MAX_TCP_WINDOW
        raise Failure("EINVAL")
    if isinstance(socket, TcpSocket) and socket.connection is not None:
        raise Unsupported("TCP_MAXSEG of a connection that exists")
    socket.options.max_segment = given


def _set_user_timeout(socket: Socket, value: Value, now: float) -> None:
    given = pointed_integer(value)
    if given < 0:
        raise Failure("EINVAL")
    socket.options.user_timeout = given
    socket.apply("user_timeout", now)


def _get_info(socket: Socket, now: float) -> Value:
    assert isinstance(socket, TcpSocket)
    return Struct(tuple(Field(Integer(value), name) for name, value in tcp_info(socket, now).items()))


def _get_congestion(socket: Socket, now: float) -> Value:
    if socket.options.congestion is not None:
        return String(socket.options.congestion)
    default = socket.host.stack.congestion
    for name, ours in CONGESTION_NAMES.items():
        if ALGORITHMS[ours] is default:
            return String(name)
    raise Unsupported("a name for the stack's congestion control")


_OTHER_CONGESTION = frozenset(
    [
        "bbr",
        "bic",
        "cdg",
        "dctcp",
        "highspeed",
        "htcp",
        "hybla",
        "illinois",
        "lp",
        "nv",
        "scalable",
        "vegas",
        "veno",
        "westwood",
        "yeah",
    ]
)
"""What Linux has besides."""


def _set_congestion(socket: Socket, value: Value, now: float) -> None:
    if isinstance(value, Array) and len(value.items) == 1:
        value = value.items[0]
    if not isinstance(value, String):
        raise Unsupported(f"{value} as the name of a congestion control")
    name = value.text.partition("\0")[0]
    if name not in CONGESTION_NAMES:
        if name in _OTHER_CONGESTION:
            raise Unsupported(f"the congestion control {name}")
        raise Failure("ENOENT")
    socket.options.congestion = name
    socket.apply("congestion", now)


def _set_traffic_class(socket: Socket, value: Value, now: float) -> None:
    given = pointed_integer(value)
    if isinstance(socket, TcpSocket):
        given &= 0xFC  # the bits of ECN are TCP's
    socket.options.traffic_class = given & 0xFF
    socket.apply("traffic_class", now)


def _set_traffic_class_6(socket: Socket, value: Value, now: float) -> None:
    given = pointed_integer(value)
    if not -1 <= given <= 0xFF:
        raise Failure("EINVAL")
    _set_traffic_class(socket, _int(max(0, given)), now)


def _get_hop_limit(socket: Socket, now: float) -> Value:
    return _int(socket.options.hop_limit or 64)


def _set_hop_limit(socket: Socket, value: Value, now: float) -> None:
    given = pointed_integer(value)
    if given != -1 and not 1 <= given <= 255:
        raise Failure("EINVAL")
    if isinstance(socket, TcpSocket) and given not in (-1, 64):
        raise Unsupported(f"a hop limit of {given} for TCP")
    socket.options.hop_limit = None if given == -1 else given


def _get_discovery(socket: Socket, now: float) -> Value:
    """TCP sends with DF and finds the path MTU (WANT); datagrams are fragmented where they must be (DONT)."""
    chosen = socket.options.mtu_discover
    if chosen is None:
        chosen = 1 if isinstance(socket, TcpSocket) else 0
    return _int(chosen)


def _set_discovery(socket: Socket, value: Value, now: float) -> None:
    given = pointed_integer(value)
    if not 0 <= given <= 5:
        raise Failure("EINVAL")
    if given not in ((1, 2) if isinstance(socket, TcpSocket) else (0,)):
        raise Unsupported(f"path MTU discovery {given}")
    socket.options.mtu_discover = given


def _get_mtu(socket: Socket, now: float) -> Value:
    if isinstance(socket, TcpSocket):
        connection = socket.connection
        if connection is None or connection.closed:
            raise Failure("ENOTCONN")
        return _int(connection.path_mss + HEADER_LEN + (20 if socket.host.width == 4 else 40))
    if isinstance(socket, UdpSocket) and socket.peer is not None:
        return _int(socket.host.stack.mtu)
    raise Failure("ENOTCONN")


def _set_v6_only(socket: Socket, value: Value, now: float) -> None:
    if socket.is_bound:
        raise Failure("EINVAL")
    socket.options.v6_only = pointed_integer(value) != 0


_TCP_ONLY = (TcpSocket,)
_RECEIVE_BUFFER = Option(_get_receive_buffer, _set_receive_buffer)
_SEND_BUFFER = Option(_get_send_buffer, _set_send_buffer)
_DISCOVERY = Option(_get_discovery, _set_discovery)


def _get_traffic_class(socket: Socket, now: float) -> Value:
    return _int(socket.options.traffic_class)


OPTIONS: dict[int, dict[int, Option]] = {
    SOL_SOCKET: {
        2: _flag("reuse_address"),
        3: _read_only(lambda socket: socket.type),
        4: Option(_error),
        6: _flag("broadcast"),
        7: _SEND_BUFFER,
        8: _RECEIVE_BUFFER,
        9: _flag("keep_alive"),
        12: _number("priority", 0, 6),
        13: Option(_get_linger, _set_linger, width=8),
        18: Option(lambda socket, now: _int(socket.options.receive_low_water), _set_low_water),
        19: _read_only(lambda socket: 1),
        20: _timeout("receive_timeout"),
        21: _timeout("send_timeout"),
        30: _read_only(lambda socket: int(socket.listens)),
        32: _SEND_BUFFER,
        33: _RECEIVE_BUFFER,
        36: _number("mark", -(1 << 31), (1 << 31) - 1),
        38: _read_only(lambda socket: socket.protocol),
        39: _read_only(lambda socket: socket.family),
    },
    SOL_TCP: {
        1: _flag("no_delay"),
        2: Option(_get_max_segment, _set_max_segment),
        4: _number("keep_idle", 1, _LARGEST_TIME),
        5: _number("keep_interval", 1, _LARGEST_TIME),
        6: _number("keep_count", 1, 127),
        11: Option(_get_info, width=1 << 16),
        13: Option(_get_congestion, _set_congestion, width=0),
        18: Option(lambda socket, now: _int(socket.options.user_timeout), _set_user_timeout),
    },
    SOL_IP: {
        1: Option(_get_traffic_class, _set_traffic_class),
        2: Option(_get_hop_limit, _set_hop_limit),
        10: _DISCOVERY,
        14: Option(_get_mtu),
    },
    SOL_IPV6: {
        16: Option(_get_hop_limit, _set_hop_limit),
        23: _DISCOVERY,
        24: Option(_get_mtu),
        26: Option(lambda socket, now: _int(int(socket.options.v6_only)), _set_v6_only),
        67: Option(_get_traffic_class, _set_traffic_class_6),
    },
}
"""By level and number, as in `constants`."""
