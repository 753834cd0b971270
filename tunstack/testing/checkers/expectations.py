"""Expectations: a packet, all packets, packets in their order, no packet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunstack.testing.checkers.base import Checker, Difference, Seen, together
from tunstack.testing.checkers.layers import Problems, problems
from tunstack.testing.checkers.report import line_for
from tunstack.testing.packets import Frame, Relative, describe, dissect

Packet = Frame | bytes | bytearray | memoryview
"""A packet taken apart already, or its bytes from the IP header on."""

_SHOWN = 20
"""Packets that a report shows at most."""


class Mismatch(AssertionError):
    """A packet is not as expected. The text shows both; `differences` names the fields."""

    def __init__(self, text: str, differences: Sequence[Difference] = ()) -> None:
        super().__init__(text)
        self.differences = tuple(differences)


def matches(packet: Packet, *checkers: Checker, relative: Relative | None = None) -> bool:
    """Whether `packet` passes all of `checkers`; see `expect`."""
    return not _complete(checkers).differences(_see(packet, relative))


def expect(packet: Packet, *checkers: Checker, relative: Relative | None = None) -> Frame:
    """`packet` passes all of `checkers`, and nothing is wrong with it unless `problems(...)` is among them.

    With `relative`, which sees the packet, sequence numbers count from the initial ones. Returns the packet
    taken apart.

    Raises:
        Mismatch: it does not.
    """
    seen = _see(packet, relative)
    checker = _complete(checkers)
    differences = checker.differences(seen)
    if differences:
        raise Mismatch(report(seen.frame, checker, differences, relative), differences)
    return seen.frame


def report(
    frame: Frame, checker: Checker, differences: Iterable[Difference], relative: Relative | None = None
) -> str:
    """The text of a `Mismatch`."""
    fields = "".join(f"\n  {difference}" for difference in differences)
    return f"\nexpected: {line_for(checker)}\nbut got:  {describe(frame, relative=relative)}{fields}"


def expect_all(
    packets: Iterable[Packet], *checkers: Checker, relative: Relative | None = None
) -> list[Frame]:
    """There are packets, and each passes all of `checkers`.

    Raises:
        Mismatch: one does not, or there is none.
    """
    frames = _frames(packets)
    if not frames:
        raise Mismatch(f"\nexpected: {line_for(together(checkers))}\nbut there was no packet")
    checker = _complete(checkers)
    for place, frame in enumerate(frames):
        seen = _see(frame, relative)
        differences = checker.differences(seen)
        if differences:
            text = report(frame, checker, differences, relative)
            raise Mismatch(f"\npacket {place + 1} of {len(frames)}:{text}", differences)
    return frames


def expect_in_order(
    packets: Iterable[Packet], *checkers: Checker, gaps: bool = False, relative: Relative | None = None
) -> list[Frame]:
    """The first packet passes the first checker, and so on, and there is no other; a checker may be `a & b`.

    With `gaps` there may be others before, between and after. Returns the packets that passed.

    Raises:
        Mismatch: one does not pass, is missing or is one too many.
    """
    frames = _frames(packets)
    chosen: list[Frame] = []
    wanted = [_complete((checker,)) for checker in checkers]
    last: list[Difference] = []
    for frame in frames:
        seen = _see(frame, relative)
        if len(chosen) == len(wanted):
            if gaps:
                break
            raise Mismatch(_listing("one packet too many", wanted, frames, len(chosen), relative))
        last = wanted[len(chosen)].differences(seen)
        if not last:
            chosen.append(frame)
        elif not gaps:
            place = len(chosen)
            text = report(frame, wanted[place], last, relative)
            raise Mismatch(_listing(f"packet {place + 1}:{text}", wanted, frames, place, relative), last)
    if len(chosen) < len(wanted):
        missing = f"no packet for expectation {len(chosen) + 1}"
        raise Mismatch(_listing(missing, wanted, frames, len(chosen), relative), last if gaps else ())
    return chosen


def expect_nothing(packets: Iterable[Packet], *checkers: Checker, relative: Relative | None = None) -> None:
    """No packet passes all of `checkers`; without any, there is no packet at all.

    Raises:
        Mismatch: there is one.
    """
    checker = together(checkers)
    found = [frame for frame in _frames(packets) if not checker.differences(_see(frame, relative))]
    if found:
        lines = "".join(f"\n  {describe(frame, relative=relative)}" for frame in found[:_SHOWN])
        more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise Mismatch(f"\nexpected no packet like: {line_for(checker)}\nbut got:{lines}{more}")


def _see(packet: Packet, relative: Relative | None) -> Seen:
    frame = packet if isinstance(packet, Frame) else dissect(packet)
    if relative is None:
        relative = Relative()
    else:
        relative.see(frame)
    return Seen(frame, relative)


def _frames(packets: Iterable[Packet]) -> list[Frame]:
    return [packet if isinstance(packet, Frame) else dissect(packet) for packet in packets]


def _complete(checkers: tuple[Checker, ...]) -> Checker:
    """All of `checkers`, and a right packet unless they speak of problems."""
    checker = together(checkers)
    if any(isinstance(part, Problems) for part in checker.parts()):
        return checker
    return checker & problems()


def _listing(
    what: str, wanted: Sequence[Checker], frames: Sequence[Frame], place: int, relative: Relative | None
) -> str:
    lines = [what, "expected in this order:"]
    lines += [f" {'>' if n == place else ' '} {n + 1}. {line_for(one)}" for n, one in enumerate(wanted)]
    lines.append("but got:")
    lines += [f"   {n + 1}. {describe(one, relative=relative)}" for n, one in enumerate(frames[:_SHOWN])]
    if len(frames) > _SHOWN:
        lines.append(f"   and {len(frames) - _SHOWN} more")
    if not frames:
        lines.append("   nothing")
    return "\n" + "\n".join(lines)
