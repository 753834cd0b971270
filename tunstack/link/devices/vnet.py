"""What TAP and TUN share: one descriptor of /dev/net/tun, the virtio-net header, offload negotiation.

With IFF_VNET_HDR each read and write carries a virtio-net header in front of the frame (`vnet_header`).

The interface usually lives in another network namespace than we do; everything here works on the
descriptor alone. The kernel answers a write with EIO while the interface is down, which is a refusal (the
descriptor polls writable again when it comes up), and with EBADFD once the interface has been deleted,
which is the end. An open descriptor keeps its network namespace alive, so the end of the last process in
there is not seen here. Whoever attached the descriptor must have asked for IFF_NO_PI: TUNGETIFF cannot tell
(the same bit says in its answer that no filter is attached).
"""

from __future__ import annotations

import errno
import io
import os
import struct
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

from tunstack.errors import BadPacket, DropCounters, DropReason
from tunstack.limits import DEFAULT_LIMITS, MAX_FRAME
from tunstack.link.devices.base import DeviceClosed, Offloads
from tunstack.link.devices.linux import OPEN_FLAGS, ioctl, unblock, writev
from tunstack.link.devices.vnet_header import VNET_LENGTH, pack_header, parse_frame
from tunstack.packet import Checksum, Packet

TUNSETIFF = 0x400454CA
TUNGETIFF = 0x800454D2
TUNSETOFFLOAD = 0x400454D0
TUNSETSNDBUF = 0x400454D4
TUNSETVNETHDRSZ = 0x400454D8

IFF_TUN = 0x0001
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000

TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_USO4 = 0x20
TUN_F_USO6 = 0x40

_NO_OFFLOAD = bytes(VNET_LENGTH)
_IFREQ = struct.Struct("16sH22x")

_TSO = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
_USO = TUN_F_USO4 | TUN_F_USO6

_PARTIAL = int(Checksum.PARTIAL)

_REFUSED = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EIO))
_GONE = frozenset((getattr(errno, "EBADFD", errno.EBADF), errno.EBADF, errno.ENODEV, errno.ENXIO))


def read_flags(fd: int) -> tuple[str, int]:
    """Name and IFF_* flags of the interface that `fd` is attached to; ValueError if it is not."""
    request = bytearray(_IFREQ.size)
    try:
        ioctl(fd, TUNGETIFF, request)
    except OSError as error:
        raise ValueError(
            f"descriptor {fd} is not attached to a TAP or TUN interface: {error.strerror}"
        ) from None
    name, flags = _IFREQ.unpack(request)
    return name.rstrip(b"\0").decode("ascii", "replace"), flags


def parse(buffer: bytearray, view: memoryview, count: int) -> Packet:
    """The packet in the first `count` bytes of `buffer`, virtio-net header first, as a part of `view`.

    `view` is one of `buffer`. A buffer filled to its last byte may hold a packet that was cut. `csum_start`
    and `csum_offset` are set when the checksum is PARTIAL.
    """
    if not VNET_LENGTH < count < len(buffer):
        raise BadPacket(DropReason.FRAME_TOO_SHORT if count <= VNET_LENGTH else DropReason.FRAME_TOO_LONG)
    return parse_frame(view[:count])


def _parse_plain(view: memoryview, count: int) -> Packet:
    if not 0 < count < len(view):
        raise BadPacket(DropReason.FRAME_TOO_LONG if count else DropReason.FRAME_TOO_SHORT)
    return Packet(view[:count])


class VnetDevice:
    """A TAP or TUN interface, from the descriptor's side. Implements `Device`.

    Attributes:
        offloads: what was negotiated; replaced by `set_offloads`.
        drops: frames that were read and not understood, by reason.
        write_errors: packets that the kernel did not want and never will.
    """

    KIND: ClassVar[int]
    """IFF_TAP or IFF_TUN."""
    L2: ClassVar[bool]

    def __init__(
        self,
        fd: int,
        *,
        mtu: int,
        batch: int = DEFAULT_LIMITS.device_batch,
        drops: DropCounters | None = None,
    ) -> None:
        """Take over `fd`, which is attached to an interface of this kind; it is made non-blocking.

        `mtu`: IP MTU of the interface in bytes. `batch`: read buffers, 64 KiB each. ValueError if the
        descriptor is something else; it is then still the caller's.
        """
        name, flags = read_flags(fd)
        if not flags & self.KIND:
            kinds = ("TUN", "TAP") if self.L2 else ("TAP", "TUN")
            raise ValueError(f"interface {name} is a {kinds[0]}, not a {kinds[1]}")
        unblock(fd)
        self._vnet = bool(flags & IFF_VNET_HDR)
        if self._vnet:
            ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_LENGTH))
        self.name = name
        self.mtu = mtu
        self.drops = DropCounters() if drops is None else drops
        self.write_errors = 0
        self.on_ready: Callable[[], None] | None = None
        self.offloads = self._plain_offloads()
        self._fd = fd
        self.set_offloads(True)
        # FileIO.readinto answers EAGAIN with None: an empty read costs no exception.
        self._file = io.FileIO(fd, "r+")
        size = VNET_LENGTH + MAX_FRAME + 1
        buffers = [bytearray(size) for _ in range(batch)]
        self._buffers = [(buffer, memoryview(buffer)) for buffer in buffers]

    @classmethod
    def from_fd(
        cls, fd: int, *, mtu: int, batch: int = DEFAULT_LIMITS.device_batch, drops: DropCounters | None = None
    ) -> Self:
        """A device on a descriptor that is already attached; see `__init__`."""
        return cls(fd, mtu=mtu, batch=batch, drops=drops)

    @classmethod
    def open(
        cls,
        name: str = "",
        *,
        mtu: int,
        vnet: bool = True,
        batch: int = DEFAULT_LIMITS.device_batch,
        drops: DropCounters | None = None,
    ) -> Self:
        """Make or attach to interface `name` in the network namespace of the calling thread.

        An empty name lets the kernel choose. Addresses, MTU and state are not touched. OSError if the kernel
        refuses, ValueError for a name that is none.
        """
        encoded = name.encode()
        if len(encoded) > 15 or b"/" in encoded or b"\0" in encoded:
            raise ValueError(f"not an interface name: {name!r}")
        fd = os.open("/dev/net/tun", OPEN_FLAGS)
        try:
            flags = cls.KIND | IFF_NO_PI | (IFF_VNET_HDR if vnet else 0)
            ioctl(fd, TUNSETIFF, _IFREQ.pack(encoded, flags))
            return cls(fd, mtu=mtu, batch=batch, drops=drops)
        except BaseException:
            os.close(fd)
            raise

    def fileno(self) -> int:
        """The descriptor; -1 after `close`."""
        return self._fd

    @property
    def has_header(self) -> bool:
        """Whether a virtio-net header stands in front of each frame."""
        return self._vnet

    def set_offloads(self, enabled: bool) -> None:
        """Negotiate every offload that the kernel has, or none; possible at any time.

        What the guest had already queued when they were turned off may still come as trains.
        """
        if not self._vnet:
            return
        if not enabled:
            ioctl(self._fd, TUNSETOFFLOAD, 0)
            self.offloads = self._plain_offloads()
            return
        uso = True
        try:
            ioctl(self._fd, TUNSETOFFLOAD, _TSO | _USO)
        except OSError:  # kernels before 6.2 have no USO
            uso = False
            ioctl(self._fd, TUNSETOFFLOAD, _TSO)
        max_frame = MAX_FRAME if self.L2 else MAX_FRAME - 14
        self.offloads = Offloads(
            l2=self.L2, mtu=self.mtu, checksum=True, tso4=True, tso6=True, uso=uso, max_frame=max_frame
        )

    def read_batch(self, limit: int) -> list[Packet]:
        """See `Device`; at most `batch` packets at once."""
        packets: list[Packet] = []
        readinto = self._file.readinto
        vnet = self._vnet
        for buffer, view in self._buffers if limit >= len(self._buffers) else self._buffers[:limit]:
            try:
                count = readinto(buffer)
            except OSError as error:
                if not self._read_failed(error):
                    break
                continue
            except ValueError:
                raise DeviceClosed(f"{self.name} is closed") from None
            if count is None:
                break
            try:
                packets.append(parse(buffer, view, count) if vnet else _parse_plain(view, count))
            except BadPacket as error:
                self.drops.add(error.reason)
        return packets

    def take_frames(self, frames: Sequence[memoryview]) -> list[Packet]:
        """The packets of frames that somebody else has read from the descriptor, virtio-net header first."""
        packets: list[Packet] = []
        for frame in frames:
            try:
                packets.append(parse_frame(frame))
            except BadPacket as error:
                self.drops.add(error.reason)
        return packets

    def write_batch(self, packets: Sequence[Packet]) -> int:
        """See `Device`. The packets carry only what `offloads` allow."""
        fd = self._fd
        vnet = self._vnet
        taken = 0
        for packet in packets:
            try:
                if packet.checksum == _PARTIAL or packet.gso_size:
                    if not vnet:
                        raise ValueError("the device has no offloads")
                    writev(fd, (pack_header(packet), packet.head, *packet.payload))
                elif vnet:
                    writev(fd, (_NO_OFFLOAD, packet.head, *packet.payload))
                else:
                    writev(fd, (packet.head, *packet.payload))
            except OSError as error:
                if error.errno in _REFUSED:
                    return taken
                if error.errno in _GONE:
                    raise DeviceClosed(f"{self.name} is gone: {error.strerror}") from None
                self.write_errors += 1
            except (struct.error, ValueError, IndexError):
                self.write_errors += 1
            taken += 1
        return taken

    def flush(self) -> bool:
        """See `Device`; nothing waits here."""
        return True

    def close(self) -> None:
        """Close the descriptor; an interface that is not persistent goes with it."""
        self._fd = -1
        self._file.close()

    def _plain_offloads(self) -> Offloads:
        return Offloads(l2=self.L2, mtu=self.mtu, max_frame=self.mtu + (14 if self.L2 else 0))

    def _read_failed(self, error: OSError) -> bool:
        """Whether there is a point in reading on; `DeviceClosed` if the interface is gone."""
        if error.errno == errno.EINVAL:
            # The kernel had a packet for which there is no virtio-net header; it has thrown it away.
            self.drops.add(DropReason.BAD_VNET_HEADER)
            return True
        if error.errno in _GONE or error.errno == errno.EFAULT:
            # EFAULT: the driver's word for a queue that is being detached.
            raise DeviceClosed(f"{self.name} is gone: {error.strerror}") from None
        return False
