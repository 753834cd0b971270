"""Frames in a stream: whatever the stream is cut into, the same frames are found."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import DropCounters, DropReason
from tunstack.link.framings import QEMU, Deframer, Framing

FRAMINGS = (QEMU, Framing(2, "little"))
MOST = 300


def find_all(framing: Framing, stream: bytes, cuts: list[int], drops: DropCounters) -> list[bytes]:
    """Feed `stream`, cut at `cuts`, as a device does: what is left stands in front of what comes next."""
    deframer = Deframer(framing, MOST, drops)
    found: list[bytes] = []
    edges = [0, *sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]
    left = b""
    for start, end in itertools.pairwise(edges):
        data = left + stream[start:end]
        frames, used = deframer.find(memoryview(data))
        found += [bytes(frame) for frame in frames]
        left = data[used:]
        assert deframer.wanted > len(left)
        assert len(left) < framing.prefix + MOST
    return found


CUTS = st.lists(st.integers(0, 4000), max_size=12)


@given(st.sampled_from(FRAMINGS), st.lists(st.binary(min_size=1, max_size=MOST), max_size=8), CUTS)
def test_what_was_framed_is_found(framing: Framing, frames: list[bytes], cuts: list[int]) -> None:
    drops = DropCounters()
    stream = b"".join(framing.header(len(frame)) + frame for frame in frames)
    assert find_all(framing, stream, cuts, drops) == frames
    assert not drops.as_dict()


@given(
    st.sampled_from(FRAMINGS),
    st.lists(st.integers(0, 2 * MOST) | st.integers(1, 60_000), max_size=6),
    CUTS,
    st.randoms(use_true_random=False),
)
def test_what_is_no_frame_is_skipped_and_counted(
    framing: Framing, sizes: list[int], cuts: list[int], rng
) -> None:
    drops = DropCounters()
    frames = [rng.randbytes(size) for size in sizes]
    stream = b"".join(framing.header(len(frame)) + frame for frame in frames)
    assert find_all(framing, stream, cuts, drops) == [frame for frame in frames if 0 < len(frame) <= MOST]
    counted = drops.as_dict()
    assert counted.get(DropReason.FRAME_TOO_LONG.value, 0) == sum(size > MOST for size in sizes)
    assert counted.get(DropReason.FRAME_TOO_SHORT.value, 0) == sum(size == 0 for size in sizes)


@given(st.sampled_from(FRAMINGS), st.binary(max_size=2000), CUTS)
def test_any_bytes_are_the_same_frames_however_they_are_cut(
    framing: Framing, stream: bytes, cuts: list[int]
) -> None:
    assert find_all(framing, stream, cuts, DropCounters()) == find_all(framing, stream, [], DropCounters())
