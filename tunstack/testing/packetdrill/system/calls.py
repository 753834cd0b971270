"""The system calls, one function each: arguments in, a result, a `Wait` or a `Failure` out.

What a call writes into the places of its arguments goes to `Call.outputs`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from tunstack.tcp.hot import NEVER
from tunstack.testing.packetdrill.language.values import Array, Integer, Value, Wildcard
from tunstack.testing.packetdrill.system import options
from tunstack.testing.packetdrill.system.arguments import (
    AF_INET,
    AF_INET6,
    SocketAddress,
    address_length,
    address_value,
    content,
    integer,
    is_null,
    number,
    poll_entries,
    size,
    socket_address,
    text_value,
    vector,
)
from tunstack.testing.packetdrill.system.base import O_NONBLOCK, Inbox, Socket
from tunstack.testing.packetdrill.system.call import Call, Failure, Unsupported, Wait
from tunstack.testing.packetdrill.system.constants import (
    FCNTL_COMMANDS,
    FILE_FLAGS,
    IOCTL_REQUESTS,
    MESSAGE_FLAGS,
    POLL_EVENTS,
    PROTOCOLS,
    TYPES,
)
from tunstack.testing.packetdrill.system.messages import message, message_flags, refuse_control
from tunstack.testing.packetdrill.system.tcp import TcpSocket

if TYPE_CHECKING:
    from tunstack.testing.packetdrill.system.system import System

Handler = Callable[["System", Call, float], "int | Wait"]

_LARGEST_FAMILY = 46
"""AF_MAX of Linux 6.x."""
_OTHER_STREAMS = frozenset({PROTOCOLS["IPPROTO_SCTP"], PROTOCOLS["IPPROTO_MPTCP"]})
_OTHER_DATAGRAMS = frozenset(
    PROTOCOLS[name] for name in ("IPPROTO_ICMP", "IPPROTO_ICMPV6", "IPPROTO_UDPLITE")
)
"""What Linux knows besides TCP and UDP."""
_CLOSE_ON_EXEC = TYPES["SOCK_CLOEXEC"]
_SETTABLE = FILE_FLAGS["O_APPEND"] | FILE_FLAGS["O_NONBLOCK"] | FILE_FLAGS["O_NOATIME"]
_SENDING = MESSAGE_FLAGS["MSG_DONTWAIT"] | MESSAGE_FLAGS["MSG_NOSIGNAL"] | MESSAGE_FLAGS["MSG_CONFIRM"]
_RECEIVING = (
    MESSAGE_FLAGS["MSG_PEEK"]
    | MESSAGE_FLAGS["MSG_TRUNC"]
    | MESSAGE_FLAGS["MSG_DONTWAIT"]
    | MESSAGE_FLAGS["MSG_WAITALL"]
    | MESSAGE_FLAGS["MSG_NOSIGNAL"]
    | MESSAGE_FLAGS["MSG_CMSG_CLOEXEC"]
)
_ALWAYS_POLLED = POLL_EVENTS["POLLERR"] | POLL_EVENTS["POLLHUP"]


def _on_socket(
    handler: Callable[[System, Socket, Call, float], int | Wait],
) -> Handler:
    """`handler` for the socket that the first argument names."""

    @functools.wraps(handler)
    def call_on_socket(system: System, call: Call, now: float) -> int | Wait:
        return handler(system, system.file(integer(call.arguments[0])), call, now)

    return call_on_socket


# making and ending


def _socket(system: System, call: Call, now: float) -> int:
    domain, kind, protocol = call.arguments
    host = system.host
    family = host.family if isinstance(domain, Wildcard) else integer(domain)
    bits = integer(kind)
    flags = bits & ~0xF
    bits &= 0xF
    number = integer(protocol)
    if flags & ~(O_NONBLOCK | _CLOSE_ON_EXEC):
        raise Failure("EINVAL")
    if not 0 <= family < _LARGEST_FAMILY:
        raise Failure("EAFNOSUPPORT")
    if bits > TYPES["SOCK_PACKET"]:
        raise Failure("EINVAL")
    if family == 0:
        raise Failure("EAFNOSUPPORT")
    if family not in (AF_INET, AF_INET6):
        raise Unsupported(f"sockets of address family {family}")
    if family != host.family:
        raise Unsupported(f"sockets of address family {family} on a host of IPv{host.version}")
    if not 0 <= number <= PROTOCOLS["IPPROTO_MPTCP"]:
        raise Failure("EINVAL")
    if bits not in (TYPES["SOCK_STREAM"], TYPES["SOCK_DGRAM"]):
        if bits in (TYPES["SOCK_RAW"], TYPES["SOCK_SEQPACKET"], TYPES["SOCK_DCCP"], TYPES["SOCK_PACKET"]):
            raise Unsupported(f"sockets of type {bits}")
        raise Failure("ESOCKTNOSUPPORT")
    stream = bits == TYPES["SOCK_STREAM"]
    if number not in (0, PROTOCOLS["IPPROTO_TCP" if stream else "IPPROTO_UDP"]):
        if number in (_OTHER_STREAMS if stream else _OTHER_DATAGRAMS):
            raise Unsupported(f"sockets of protocol {number}")
        raise Failure("EPROTONOSUPPORT")
    made = system.make_socket(stream)
    if flags & O_NONBLOCK:
        made.status |= O_NONBLOCK
    made.close_on_exec = bool(flags & _CLOSE_ON_EXEC)
    return system.install(made)


def _close(system: System, call: Call, now: float) -> int | Wait:
    wait = system.close(integer(call.arguments[0]), now)
    return 0 if wait is None else wait


@_on_socket
def _shutdown(system: System, socket: Socket, call: Call, now: float) -> int:
    how = integer(call.arguments[1])
    if not 0 <= how <= 2:
        raise Failure("EINVAL")
    socket.shutdown(how != 1, how != 0, now)
    return 0


# addresses


@_on_socket
def _bind(system: System, socket: Socket, call: Call, now: float) -> int:
    _, address, length = call.arguments
    socket.bind(socket_address(address, length, system.host.local))
    return 0


@_on_socket
def _connect(system: System, socket: Socket, call: Call, now: float) -> int | Wait:
    _, address, length = call.arguments
    return socket.connect(socket_address(address, length, system.host.remote), now)


@_on_socket
def _listen(system: System, socket: Socket, call: Call, now: float) -> int:
    socket.listen(integer(call.arguments[1]), now)
    if isinstance(socket, TcpSocket):
        system.listening(socket)
    return 0


@_on_socket
def _accept(system: System, socket: Socket, call: Call, now: float) -> int | Wait:
    flags = integer(call.arguments[3]) if len(call.arguments) == 4 else 0
    if flags & ~(O_NONBLOCK | _CLOSE_ON_EXEC):
        raise Failure("EINVAL")
    if not isinstance(socket, TcpSocket):
        raise Failure("EOPNOTSUPP")

    def take(child: TcpSocket) -> int:
        child.status |= flags & O_NONBLOCK
        child.close_on_exec = bool(flags & _CLOSE_ON_EXEC)
        connection = child.connection
        assert connection is not None
        _write_address(call, 1, SocketAddress(socket.family, connection.remote, connection.remote_port))
        return system.install(child)

    return socket.accept(now, take)


@_on_socket
def _getsockname(system: System, socket: Socket, call: Call, now: float) -> int:
    _check_length(call.arguments[2])
    _write_address(call, 1, socket.local_name())
    return 0


@_on_socket
def _getpeername(system: System, socket: Socket, call: Call, now: float) -> int:
    name = socket.peer_name()
    _check_length(call.arguments[2])
    _write_address(call, 1, name)
    return 0


def _check_length(value: Value) -> None:
    if isinstance(value, Array) and len(value.items) == 1 and not isinstance(value.items[0], Wildcard):
        if integer(value.items[0]) < 0:
            raise Failure("EINVAL")
    elif not isinstance(value, Wildcard | Array):
        if is_null(value):
            raise Failure("EFAULT")
        raise Unsupported(f"{value} as a pointer to a length")


def _write_address(call: Call, place: int, address: SocketAddress) -> None:
    """The kernel writes `address` to the argument at `place`, and its length to the next."""
    value = call.arguments[place]
    if is_null(value):
        return
    call.outputs[place] = address_value(address)
    call.outputs[place + 1] = address_length(address)


# receiving


def _receive(socket: Socket, inbox: Inbox, flags: int, now: float, write: Callable[[], None]) -> Wait:
    """Receive into `inbox`; `write` fills the places of the arguments once something came."""
    wait = socket.receive(inbox, flags, now)
    inner, late = wait.attempt, wait.expired

    def attempt(now: float) -> int | None:
        result = inner(now)
        if result is not None:
            write()
        return result

    def expired(now: float) -> int:
        result = late(now)
        write()
        return result

    wait.attempt, wait.expired = attempt, expired
    return wait


def _check_buffer(value: Value) -> None:
    if not isinstance(value, Integer) or value.value != 0:
        return
    raise Failure("EFAULT")


@_on_socket
def _read(system: System, socket: Socket, call: Call, now: float) -> int | Wait:
    count = size(call.arguments[2])
    if not count:
        return 0
    return _receive_into(socket, call, Inbox(count), 0, now)


@_on_socket
def _readv(system: System, socket: Socket, call: Call, now: float) -> int | Wait:
    count = sum(length for _, length in vector(call.arguments[1], integer(call.arguments[2])))
    return _receive(socket, Inbox(count), 0, now, lambda: None) if count else 0


@_on_socket
def _recv(system: System, socket: Socket, call: Call, now: float) -> int | Wait:
    flags = message_flags(call.arguments[3], _RECEIVING)
    return _receive_into(socket, call, Inbox(size(call.arguments[2])), flags, now)


def _receive_into(socket: Socket, call: Call, inbox: Inbox, flags: int, now: float) -> Wait:
    if inbox.size:
        _check_buffer(call.arguments[1])

    def write() -> None:
        if inbox.data:
            call.outputs[1] = text_value(inbox.data)

    return _receive(socket, inbox, flags, now, write)


@_on_socket
def _recvfrom(system: System, socket: Socket, call: Call, now: float) -> int | Wait:
    flags = message_flags(call.arguments[3], _RECEIVING)
    inbox = Inbox(size(call.arguments[2]))
    if inbox.size:
        _check_buffer(call.arguments[1])

    def write() -> None:
        if inbox.data:
            call.outputs[1] = text_value(inbox.data)
        if inbox.source is not None:
            _write_address(call, 4, inbox.source)
        elif isinstance(call.arguments[5], Array | Wildcard):
            call.outputs[5] = Array((Integer(0),))

    return _receive(socket, inbox, flags, now, write)


@_on_socket
def _recvmsg(system: System, socket: Socket, call: Call, now: float) -> int | Wait:
    flags = message_flags(call.arguments[2], _RECEIVING)
    header = message(call.arguments[1])
    inbox = Inbox(header.size)

    def write() -> None:
        call.outputs[1] = header.received(inbox)

    return _receive(socket, inbox, flags, now, write)


# sending


@_on_socket
def _write(system: System, socket: Socket, call: Call, now: float) -> int | Wait:
    return socket.send(content(call.arguments[1], size(call.arguments[2])), 0, None, now)


@_on_socket
def _writev(system: System, socket: Socket, call: Call, now: float) -> int | Wait:
    buffers = vector(call.arguments[1], integer(call.arguments[2]))
    data = b"".join(content(value, length) for value, length in buffers)
    return socket.send(data, 0, None, now)


@_on_socket
def _send(system: System, socket: Socket, call: Call, now: float) -> int | Wait:
    flags = message_flags(call.arguments[3], _SENDING)
    return socket.send(content(call.arguments[1], size(call.arguments[2])), flags, None, now)


@_on_socket
def _sendto(system: System, socket: Socket, call: Call, now: float) -> int | Wait:
    _, buffer, count, flag_value, address, length = call.arguments
    flags = message_flags(flag_value, _SENDING)
    remote = None
    if not is_null(address):
        remote = socket_address(address, length, system.host.remote)
    return socket.send(content(buffer, size(count)), flags, remote, now)


@_on_socket
def _sendmsg(system: System, socket: Socket, call: Call, now: float) -> int | Wait:
    flags = message_flags(call.arguments[2], _SENDING)
    header = message(call.arguments[1])
    refuse_control(header.struct)
    return socket.send(header.data, flags, header.destination(system.host.remote), now)


# options and control


@_on_socket
def _setsockopt(system: System, socket: Socket, call: Call, now: float) -> int:
    _, level, name, value, length = call.arguments
    options.setsockopt(socket, integer(level), integer(name), value, length, now)
    return 0


@_on_socket
def _getsockopt(system: System, socket: Socket, call: Call, now: float) -> int:
    _, level, name, _, length = call.arguments
    value, count = options.getsockopt(socket, integer(level), integer(name), length, now)
    call.outputs[3] = value
    call.outputs[4] = Array((Integer(count),))
    return 0


@_on_socket
def _fcntl(system: System, socket: Socket, call: Call, now: float) -> int:
    command = integer(call.arguments[1])
    given = integer(call.arguments[2]) if len(call.arguments) == 3 else 0
    if command == FCNTL_COMMANDS["F_GETFL"]:
        return socket.status
    if command == FCNTL_COMMANDS["F_SETFL"]:
        if given & FILE_FLAGS["O_ASYNC"]:
            raise Unsupported("signals (O_ASYNC)")
        if given & FILE_FLAGS["O_DIRECT"]:
            raise Failure("EINVAL")
        socket.status = (socket.status & ~_SETTABLE) | (given & _SETTABLE)
        return 0
    if command == FCNTL_COMMANDS["F_GETFD"]:
        return int(socket.close_on_exec)
    if command == FCNTL_COMMANDS["F_SETFD"]:
        socket.close_on_exec = bool(given & 1)
        return 0
    raise Unsupported(f"fcntl with command {command}")


@_on_socket
def _ioctl(system: System, socket: Socket, call: Call, now: float) -> int:
    request = number(call.arguments[1])
    if request == IOCTL_REQUESTS["FIONBIO"]:
        value = call.arguments[2]
        on = value.items[0] if isinstance(value, Array) and len(value.items) == 1 else value
        socket.status = socket.status | O_NONBLOCK if integer(on) else socket.status & ~O_NONBLOCK
        return 0
    if request not in IOCTL_REQUESTS.values():
        raise Unsupported(f"ioctl with request {request:#x}")
    call.outputs[2] = Array((Integer(socket.queued(request)),))
    return 0


def _poll(system: System, call: Call, now: float) -> Wait:
    entries = poll_entries(call.arguments[0], integer(call.arguments[1]))
    milliseconds = integer(call.arguments[2])
    sockets: list[Socket | None] = []
    for entry in entries:
        try:
            sockets.append(system.file(entry.fd) if entry.fd >= 0 else None)
        except Failure:
            sockets.append(None)

    def look() -> int:
        ready = 0
        for entry, socket in zip(entries, sockets, strict=True):
            if socket is not None:
                entry.revents = socket.poll() & (entry.events | _ALWAYS_POLLED)
            else:
                entry.revents = POLL_EVENTS["POLLNVAL"] if entry.fd >= 0 else 0
            ready += entry.revents != 0
        call.outputs[0] = Array(tuple(entry.value for entry in entries))
        return ready

    return Wait(
        lambda now: look() or None,
        lambda now: 0,
        NEVER if milliseconds < 0 else now + milliseconds / 1000,
        [socket for socket in sockets if socket is not None],
    )


HANDLERS: dict[str, tuple[Handler, int, int]] = {
    "socket": (_socket, 3, 3),
    "bind": (_bind, 3, 3),
    "listen": (_listen, 2, 2),
    "accept": (_accept, 3, 3),
    "accept4": (_accept, 4, 4),
    "connect": (_connect, 3, 3),
    "read": (_read, 3, 3),
    "readv": (_readv, 3, 3),
    "recv": (_recv, 4, 4),
    "recvfrom": (_recvfrom, 6, 6),
    "recvmsg": (_recvmsg, 3, 3),
    "write": (_write, 3, 3),
    "writev": (_writev, 3, 3),
    "send": (_send, 4, 4),
    "sendto": (_sendto, 6, 6),
    "sendmsg": (_sendmsg, 3, 3),
    "close": (_close, 1, 1),
    "shutdown": (_shutdown, 2, 2),
    "fcntl": (_fcntl, 2, 3),
    "ioctl": (_ioctl, 3, 3),
    "setsockopt": (_setsockopt, 5, 5),
    "getsockopt": (_getsockopt, 5, 5),
    "poll": (_poll, 3, 3),
    "getsockname": (_getsockname, 3, 3),
    "getpeername": (_getpeername, 3, 3),
}
"""By name: the function, and how many arguments the call has, at least and at most."""
