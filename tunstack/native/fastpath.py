"""The fast path, as Python sees it: established flows of TCP and UDP that are carried in C.

The headers in `csrc` state the theory of operation and every field: `fastpath.h`, and for UDP, for sockets
and switches as the device and for a shaped link `fast_udp.h`, `fast_stream.h`, `fast_switch.h`,
`fast_shape.h`. `tunstack.tcp.lease` fills a flow in and reads it back, `tunstack.nat.fast` and
`tunstack.nat.fast_udp` decide on flows. There is no twin of this module: the reference is the Python stack
itself, and where `available` is False that carries every flow.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, NamedTuple

from tunstack import native

ffi: Any = None
lib: Any = None
available = False
"""Whether there is a fast path here: the C side was built, is not turned off, and the platform has epoll."""

if native.implementation == "c":
    from tunstack.native import accelerated

    ffi, lib = accelerated.ffi, accelerated.lib
    available = hasattr(lib, "ts_fast_new")


_LENGTH = 4
"""Bytes in front of a message that waits."""


class Datagram(NamedTuple):
    """A datagram, or a train of them, that C has received and not carried; see `struct ts_datagram`."""

    socket: Any
    payload: bytes
    address: bytes
    port: int
    scope: int
    traffic_class: int
    segment: int


class Stream:
    """A socket of frames that a fast path has as its device or behind a port; see `csrc/fast_stream.h`."""

    __slots__ = ("_c", "_owner")

    def __init__(self, owner: FastPath, c: Any, *, is_trusted: bool, trains: int | None) -> None:
        """`trains`: there is a header in front of each frame, which may leave these to the other end."""
        self._owner = owner  # whose memory it is
        self._c = c
        c.is_trusted = is_trusted
        if trains is not None:
            c.has_header = 1
            c.trains = trains

    def put(self, packet: bytes) -> bool:
        """Take `packet`, virtio-net header first, cut and completed as that says; False: refused for now.

        ValueError if it is no packet, OSError if the stream has ended.
        """
        failed = lib.ts_stream_put(self._c, packet, len(packet))
        if failed == errno.EINVAL:
            raise ValueError("not a packet with a virtio-net header, or larger than the MTU")
        if failed not in (0, errno.EAGAIN):
            raise OSError(failed, os.strerror(failed))
        return not failed

    def fill(self, incoming: bytes, skip: int, outgoing: bytes) -> None:
        """Begin with what was read, the bytes that are to be skipped, and what was not sent. MemoryError."""
        failed = lib.ts_stream_fill(self._c, incoming, len(incoming), skip, outgoing, len(outgoing))
        if failed:
            raise MemoryError(os.strerror(failed))

    def take_over(self) -> tuple[bytes, int, bytes]:
        """What `fill` takes, as it is now; the stream must not be used any more."""
        c = self._c
        incoming = bytes(ffi.buffer(getattr(c, "in") + c.in_start, c.in_end - c.in_start))
        waits = c.out_end - c.out_start
        outgoing = bytes(ffi.buffer(c.out + c.out_start, waits)) if waits else b""
        return incoming, c.skip, outgoing

    def take_over_messages(self) -> tuple[list[bytes], list[bytes]]:
        """What was received and not looked at, and what was not sent; no more use after that."""
        c = self._c
        first = getattr(c, "in")
        incoming = [
            bytes(ffi.buffer(first + slot * lib.TS_STREAM_SLOT, c.lengths[slot]))
            for slot in range(c.slot, c.slots)
        ]
        _, _, waiting = self.take_over()
        outgoing, at = [], 0
        while at < len(waiting):
            end = at + _LENGTH + int.from_bytes(waiting[at : at + _LENGTH], "big")
            outgoing.append(waiting[at + _LENGTH : end])
            at = end
        return incoming, outgoing

    def flush(self) -> bool:
        """Send what waits; True if nothing does any more. OSError if the stream has ended."""
        if failed := lib.ts_stream_flush(self._c):
            raise OSError(failed, os.strerror(failed))
        c = self._c
        return bool(c.out_start == c.out_end)

    def take_drops(self) -> tuple[int, int, int]:
        """How many frames were too long or too short, or had a header that cannot be, since the last call."""
        c = self._c
        counts = c.too_long, c.too_short, c.bad_header
        if any(counts):
            c.too_long = c.too_short = c.bad_header = 0
        return counts


class PortOpener:
    """Opens sockets behind one port of a `Switch`."""

    __slots__ = ("_limit", "_number", "_switch")

    def __init__(self, switch: Switch, number: int, limit: int) -> None:
        """`limit`: bytes that may wait for the port."""
        self._switch = switch
        self._number = number
        self._limit = limit

    def open_stream(
        self, fd: int, prefix: int, little: bool, most: int, *, is_trusted: bool, trains: int | None = None
    ) -> Stream:
        """See `FastPath.open_stream`."""
        owner = self._switch.owner
        c = lib.ts_switch_connect(owner.c, self._number, fd, prefix, little, most, self._limit)
        return Stream(owner, _or_error(c), is_trusted=is_trusted, trains=trains)


class Switch:
    """A switch that a fast path has as its device; see `csrc/fast_switch.h`.

    Attributes:
        owner: the fast path.
    """

    __slots__ = ("_c", "owner")

    def __init__(self, owner: FastPath, c: Any) -> None:
        self.owner = owner  # whose memory it is
        self._c = c

    def isolate(self, number: int) -> None:
        """Port `number`, which is open, reaches no other that is isolated."""
        self._c.ports[number].is_isolated = 1

    def disconnect(self, number: int) -> None:
        """Forget port `number`, if it is open."""
        lib.ts_switch_disconnect(self.owner.c, number)

    def allow(self, number: int, mac: bytes, address: bytes, until: float) -> None:
        """What `mac` sends from `address` at port `number` is believed until then (seconds)."""
        lib.ts_switch_allow(self.owner.c, number, mac, 4 if len(address) == 4 else 6, address, until)

    def locate(self, number: int, mac: bytes, until: float) -> None:
        """`mac` is behind port `number` until then."""
        lib.ts_switch_locate(self.owner.c, number, mac, until)

    def forget(self) -> None:
        """Forget all of that."""
        lib.ts_switch_forget(self.owner.c)

    def flush(self, number: int) -> None:
        """Send what waits for port `number`. OSError if that has ended it."""
        if failed := lib.ts_switch_flush_port(self.owner.c, number):
            raise OSError(failed, os.strerror(failed))

    def ended(self) -> list[tuple[int, int]]:
        """The ports that have ended and are still open, with what did that."""
        c = self._c
        if not c.ended:
            return []
        codes = [port.error for port in c.ports]
        return [(number, code) for number, code in enumerate(codes) if code]

    def take_drops(self) -> tuple[int, int, int, int]:
        """Frames for which there was no room, and as `Stream.take_drops`, since the last call."""
        c = self._c
        lib.ts_switch_count(self.owner.c)
        counts = c.full, c.too_long, c.too_short, c.bad_header
        if any(counts):
            c.full = c.too_long = c.too_short = c.bad_header = 0
        return counts


class Shape:
    """The shaping of a fast path's link; see `csrc/fast_shape.h`."""

    __slots__ = ("_c", "_owner", "_pipelines")

    def __init__(self, owner: FastPath, c: Any, pipelines: tuple[Any, Any]) -> None:
        self._owner = owner  # whose memory it is
        self._pipelines = pipelines
        self._c = c

    def put(self, packet: bytes, now: float) -> None:
        """Send `packet`, virtio-net header first, down."""
        lib.ts_shape_put(self._c, packet, len(packet), now)

    def put_up(self, packet: bytes, now: float) -> None:
        """Send it up."""
        lib.ts_shape_send_up(self._c, packet, len(packet), now)

    @property
    def has_dropped(self) -> bool:
        """Whether there is something to count: packets that a pipeline has dropped, or `take_bad`."""
        return any(pipeline.dropped for pipeline in self._pipelines) or self._c.bad != 0

    def take_bad(self) -> int:
        """How many packets did not agree with their virtio-net header, since the last call."""
        bad: int = self._c.bad
        self._c.bad = 0
        return bad

    def close(self) -> None:
        """The link is shaped no longer, or by another; the pipelines stay as they are."""
        lib.ts_shape_close(self._owner.c)


class FastPath:
    """The C side of one gateway: its flows, and the rounds in which they are served.

    Attributes:
        c: the `struct ts_fast`; its fields say what a call has left for Python.
    """

    __slots__ = ("_flows", "c")

    def __init__(self, seed: int, *, epoll_fd: int, device_fd: int, mac: bytes | None) -> None:
        """`seed`: 64 random bits, a secret. `mac`: ours, None on a link without MACs. MemoryError."""
        if not available:
            raise RuntimeError("there is no fast path on this platform")
        self.c = ffi.gc(_or_error(lib.ts_fast_new(seed)), lib.ts_fast_free)
        self._flows: set[Any] = set()
        self.c.epoll_fd = epoll_fd
        self.c.device_fd = device_fd
        self.c.l2 = mac is not None
        self.c.mac = mac or bytes(6)

    def open_stream(
        self, fd: int, prefix: int, little: bool, most: int, *, is_trusted: bool, trains: int | None = None
    ) -> Stream:
        """Let the device be the socket `fd`, whose frames stand behind lengths of `prefix` bytes.

        Without a prefix it keeps messages apart, which are frames. `most`: bytes of the largest frame to
        send; `is_trusted`: checksums are right. `trains`: a virtio-net header stands in front of each frame,
        and may leave these bits of TS_STREAM_* to the other end. MemoryError.
        """
        c = _or_error(lib.ts_stream_open(self.c, fd, prefix, little, most))
        return Stream(self, c, is_trusted=is_trusted, trains=trains)

    def open_switch(self, epoll_fd: int) -> Switch:
        """Let the device be a switch, the descriptors of whose ports are behind `epoll_fd`. MemoryError."""
        return Switch(self, _or_error(lib.ts_switch_open(self.c, epoll_fd)))

    def open_shape(self, up: Any, down: Any) -> Shape:
        """Shape the link by two `struct ts_pipeline`, which must stay as long. MemoryError."""
        return Shape(self, _or_error(lib.ts_shape_open(self.c, up, down)), (up, down))

    def __len__(self) -> int:
        """Flows that are carried in C."""
        return len(self._flows)

    def new_flow(self) -> Any:
        """A `struct ts_flow` with everything 0, to be filled in. MemoryError."""
        return _or_error(lib.ts_flow_new())

    def offer(self, flow: Any) -> bool:
        """Let C carry `flow`; False, and it is freed, if its key or its descriptor is taken."""
        if lib.ts_fast_offer(self.c, flow):
            lib.ts_flow_free(self.c, flow)
            return False
        self._flows.add(flow)
        return True

    def remove(self, flow: Any) -> None:
        """C carries `flow` no longer; it can be read until it is freed."""
        lib.ts_fast_remove(self.c, flow)
        self._flows.discard(flow)

    def free(self, flow: Any) -> None:
        """Give back what a removed flow holds."""
        lib.ts_flow_free(self.c, flow)

    def run(self, linger: float, deadline: float, rounds: int) -> int:
        """Rounds in a row; see `ts_fast_run`. Times in seconds."""
        answer: int = lib.ts_fast_run(self.c, linger, deadline, rounds)
        if answer < 0:
            raise OSError(ffi.errno, f"epoll: {os.strerror(ffi.errno)}")
        return answer

    def flush(self) -> None:
        """The second half."""
        lib.ts_fast_flush(self.c)

    def next_timeout(self) -> float:
        """When `run` wants to be called though nothing is ready (seconds); infinity if never."""
        deadline: float = lib.ts_fast_deadline(self.c)
        return deadline

    def fill(self, flow: Any, data: memoryview, *, readable: bool) -> None:
        """Append `data` to what the socket is to take (`readable`) or to what is to be sent."""
        if lib.ts_flow_fill(self.c, flow, readable, ffi.from_buffer(data), len(data)):
            raise MemoryError

    def drain(self, flow: Any) -> tuple[bytes, bytes, list[tuple[int, int, float]]]:
        """What is to be sent or is in flight, what the socket has not taken, and the records of what is in
        flight as (seq, end, at), oldest first; C forgets all three.
        """
        sent = []
        record = flow.sent_first
        while record:
            sent.append((record.seq, record.end, record.at))
            record = record.next
        queued = self._copy(flow, flow.out.length, readable=False)
        readable = self._copy(flow, lib.ts_flow_readable(flow), readable=True)
        lib.ts_flow_clear(self.c, flow)
        return queued, readable, sent

    def _copy(self, flow: Any, size: int, *, readable: bool) -> bytes:
        if not size:
            return b""
        data = ffi.new("uint8_t[]", size)
        if lib.ts_flow_copy(flow, readable, data, size):
            raise AssertionError("a queue changed its length")
        return bytes(ffi.buffer(data))

    def add_sent(self, flow: Any, seq: int, end: int, at: float) -> None:
        """A record of [seq, end), sent at `at`, at the end of those in flight."""
        if lib.ts_flow_sent(self.c, flow, seq, end, at):
            raise MemoryError

    def leave_fragments(self) -> None:
        """Leave the fragments of datagrams that are not whole to Python: `frames` are these and no others."""
        lib.ts_udp_leave_fragments(self.c)

    def frames(self) -> list[memoryview]:
        """The frames that are Python's, virtio-net header first; valid until the next call."""
        c = self.c
        return [memoryview(ffi.buffer(frame.data, frame.length)) for frame in c.frames[0 : c.frame_count]]

    def frame_ports(self) -> list[int]:
        """The port of each of them: 0, or whose switch does not know what it is."""
        c = self.c
        return [frame.port for frame in c.frames[0 : c.frame_count]]

    def refused(self) -> list[bytes]:
        """Frames that the device did not take, virtio-net header first; they are Python's to write."""
        c = self.c
        if not c.refused_count:
            return []
        data = bytes(ffi.buffer(c.refused.data, c.refused.length))
        frames = []
        place = 0
        while place < len(data):
            end = place + 4 + int.from_bytes(data[place : place + 4], sys.byteorder)
            frames.append(data[place + 4 : end])
            place = end
        return frames

    def ready(self) -> list[tuple[int, int]]:
        """Descriptors without a flow that are ready, with what epoll says of them."""
        c = self.c
        return [(ready.fd, ready.events) for ready in c.ready[0 : c.ready_count]]

    def reports(self) -> list[Any]:
        """The flows about which there is something to decide, or that are returned."""
        c = self.c
        return list(c.reports[0 : c.report_count])

    # UDP

    def open_socket(self, fd: int) -> Any | None:
        """A `struct ts_udp_socket` of descriptor `fd`, or None: it is taken, or there is no memory."""
        return lib.ts_udp_open(self.c, fd) or None

    def close_socket(self, udp_socket: Any) -> None:
        """Forget `udp_socket`, whose paths have been withdrawn."""
        lib.ts_udp_close(self.c, udp_socket)

    def new_path(self) -> Any:
        """A `struct ts_udp_path` with everything 0, to be filled in. MemoryError."""
        return _or_error(lib.ts_udp_path_new())

    def offer_path(self, udp_socket: Any, path: Any) -> bool:
        """Let C carry `path`; False, and it is freed, if its key is taken or there is no memory."""
        return not lib.ts_udp_offer(self.c, udp_socket, path)

    def withdraw_path(self, path: Any) -> None:
        """C carries `path` no longer, and it is freed."""
        lib.ts_udp_withdraw(self.c, path)

    def used_since(self) -> list[Any]:
        """The sockets that C has used since the last call, in the order of their last use."""
        sockets = []
        c = self.c.udp.recent_oldest
        if c:
            while c:
                sockets.append(c)
                c = c.newer
            lib.ts_udp_seen(self.c)
        return sockets

    def sent_since(self, udp_socket: Any) -> list[tuple[bytes, int, bytes]]:
        """The paths that C has sent on since the last call, in the order of their last use.

        Of each the destination's address and port in the guest's view, and the quote.
        """
        sent = []
        path = udp_socket.newest
        while path and path.is_used:
            size = 4 if path.family == 4 else 16
            address = bytes(path.address[size : 2 * size])
            port = path.ports[2] << 8 | path.ports[3]
            sent.append((address, port, bytes(ffi.buffer(path.quote, path.quote_length))))
            path = path.older
        lib.ts_udp_seen_paths(udp_socket)
        return sent[::-1]

    def datagrams(self) -> list[Datagram]:
        """The datagrams that are Python's, in the order in which they were received."""
        udp = self.c.udp
        return [
            Datagram(
                datagram.socket,
                bytes(ffi.buffer(datagram.data, datagram.length)),
                bytes(ffi.buffer(datagram.address, datagram.address_length)),
                datagram.port,
                datagram.scope,
                datagram.traffic_class,
                datagram.segment,
            )
            for datagram in udp.datagrams[0 : udp.datagram_count]
        ]


def _or_error(pointer: Any) -> Any:
    if not pointer:
        raise MemoryError
    return pointer
