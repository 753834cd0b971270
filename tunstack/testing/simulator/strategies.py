"""Schedules of impairments for hypothesis, which shrinks them to the few that matter."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from tunstack.testing.simulator.schedule import CORRUPT, DELAY, EFFECTS, Impairment, Schedule


def schedules(
    ways: Sequence[str],
    *,
    packets: int = 100,
    most: int = 20,
    effects: Sequence[str] = EFFECTS,
    longest: float = 2.0,
) -> st.SearchStrategy[Schedule]:
    """Schedules with at most `most` impairments of the first `packets` packets of each of `ways`.

    Delays are whole milliseconds up to `longest` seconds. Such a schedule is finite: what is sent often
    enough gets through. It shrinks to fewer and simpler impairments (in the order of `effects`) of earlier
    packets, and to seed 0. No packet is corrupted twice, which a checksum might not show.
    """
    return st.builds(
        lambda seed, chosen: Schedule(seed, _detectable(chosen)),
        st.integers(0, 2**32 - 1),
        st.lists(impairments(ways, packets=packets, effects=effects, longest=longest), max_size=most),
    )


def _detectable(chosen: Sequence[Impairment]) -> tuple[Impairment, ...]:
    """All but the second corruption of the same packet: two bits may leave its checksum as it is."""
    corrupted: set[tuple[str, float]] = set()
    kept = []
    for one in chosen:
        if one.effect == CORRUPT:
            if (one.way, one.at) in corrupted:
                continue
            corrupted.add((one.way, one.at))
        kept.append(one)
    return tuple(kept)


@st.composite
def impairments(
    draw: st.DrawFn,
    ways: Sequence[str],
    *,
    packets: int = 100,
    effects: Sequence[str] = EFFECTS,
    longest: float = 2.0,
) -> Impairment:
    """One impairment; see `schedules`."""
    effect = draw(st.sampled_from(list(effects)))
    value: float = 0
    if effect == DELAY:
        value = draw(st.integers(1, int(longest * 1000))) / 1000
    elif effect == CORRUPT:
        value = draw(st.integers(0, 8 * 1500 - 1))
    return Impairment(draw(st.sampled_from(list(ways))), draw(st.integers(0, packets - 1)), effect, value)
