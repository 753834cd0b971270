"""Initial sequence numbers and timestamp offsets (RFC 6528, RFC 7323 5.4).

ISN = M + F(connection, secret): M is a clock of 4 us, F a keyed hash of addresses and ports. Successive
incarnations of one connection therefore get growing numbers, while different
connections are independent of each other to anybody who does not know the secret.
"""

from __future__ import annotations

import hashlib
import struct

_PORTS = struct.Struct("!HH")


class SequenceSource:
    """Makes ISNs and timestamp offsets from a secret of at least 16 bytes."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("the secret must have at least 16 bytes")
        self._secret = secret

    @property
    def secret(self) -> bytes:
        """For an accelerator that makes the same numbers."""
        return self._secret

    def _hash(self, purpose: bytes, local: bytes, local_port: int, remote: bytes, remote_port: int) -> int:
        text = local + remote + _PORTS.pack(local_port, remote_port)
        digest = hashlib.blake2s(text, key=self._secret, person=purpose, digest_size=4)
        return int.from_bytes(digest.digest(), "big")

    def isn(self, local: bytes, local_port: int, remote: bytes, remote_port: int, now: float) -> int:
        """The ISN of a connection opened at `now` (seconds)."""
        clock = int(now * 250_000)
        return (clock + self._hash(b"isn", local, local_port, remote, remote_port)) & 0xFFFFFFFF

    def timestamp_offset(self, local: bytes, local_port: int, remote: bytes, remote_port: int) -> int:
        """What is added to the millisecond clock in the timestamps of this connection."""
        return self._hash(b"ts", local, local_port, remote, remote_port)
