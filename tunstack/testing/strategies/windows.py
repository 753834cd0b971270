"""Segments around the windows of a live connection, drawn without knowing it.

A stateful test draws a `Shot`, whose numbers count from the edges of the windows, and aims it when it
knows where they are:

    shot = data.draw(shots(receive_window=20_000))
    peer.send(**shot.aim(rcv_nxt=…, snd_una=…))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from tunstack.testing.strategies.tcp import flags

MOD = 1 << 32


@dataclasses.dataclass(frozen=True, slots=True)
class Shot:
    """A segment for a connection.

    Attributes:
        flags: letters of FSRPAU.
        seq: from the next number that the receiver waits for.
        ack: from the oldest number of the receiver that is not acknowledged.
        size: bytes of payload.
        window: the window field.
    """

    flags: str = "A"
    seq: int = 0
    ack: int = 0
    size: int = 0
    window: int = 65535

    def aim(self, rcv_nxt: int, snd_una: int) -> dict[str, Any]:
        """The arguments of `Peer.send`, but for the data, for a connection with these numbers."""
        return {
            "flags": self.flags,
            "seq": (rcv_nxt + self.seq) % MOD,
            "ack": (snd_una + self.ack) % MOD,
            "win": self.window,
        }


def offsets(*edges: int, most: int = 3000) -> st.SearchStrategy[int]:
    """Distances from an edge of a window: at it, near it, near the other `edges`, and half of the space away.

    Shrinks to 0.
    """
    far = st.sampled_from([2**31 - 1, 2**31, -(2**31), 2**30, -(2**16)])
    at_edges = [st.integers(edge - 10, edge + 10) for edge in edges]
    return st.one_of(st.integers(-3, 3), st.integers(-most, most), *at_edges, far)


def shots(
    *,
    receive_window: int = 65535,
    in_flight: int = 0,
    sizes: Sequence[int] = (0, 1, 2, 700, 1460),
    windows: Sequence[int] = (65535, 0, 1, 100, 1460),
    right: bool = False,
) -> st.SearchStrategy[Shot]:
    """Segments for a connection that has a window of `receive_window` bytes and has sent `in_flight`.

    `right`: only combinations of flags that TCP sends. Shrinks to the ACK that is expected next.
    """
    return st.builds(
        Shot,
        flags=flags(right=right),
        seq=offsets(receive_window),
        ack=offsets(*([in_flight] if in_flight else [])),
        size=st.sampled_from(list(sizes)),
        window=st.sampled_from(list(windows)),
    )
