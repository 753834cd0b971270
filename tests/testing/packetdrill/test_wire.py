"""Packets of a script on the wire: what is built reads as the same again, whatever the numbers stand for."""

from __future__ import annotations

import dataclasses

from hypothesis import assume, given
from hypothesis import strategies as st

from tests.testing.packetdrill import trees
from tunstack.testing.packetdrill.compare import differences
from tunstack.testing.packetdrill.flow import Flow
from tunstack.testing.packetdrill.language.syntax import (
    Direction,
    Ecn,
    EndOfOptions,
    IcmpPacket,
    TcpPacket,
    UdpPacket,
    UnknownOption,
)
from tunstack.testing.packetdrill.settings import Settings
from tunstack.testing.packetdrill.wire import build, ramp, read
from tunstack.testing.packets import dissect

KNOWN_KINDS = {2, 3, 4, 5, 8, 34, 172, 174, 254}
versions = st.sampled_from([4, 6])


def ends(local: int, remote: int) -> tuple[Flow, Flow]:
    """One flow as its peer sees it, who builds, and as the stack would, who is read."""
    peer, stack = Flow(80, 90, remote), Flow(90, 80, local)
    peer.local_offset, stack.local_offset = local, remote
    return peer, stack


def read_again(packet, flow_to_build: Flow, flow_to_read: Flow, settings: Settings):
    frame = dissect(build(packet, flow_to_build, settings))
    assert frame.problems == ()
    return frame, read(frame, flow_to_read, packet)


def possible(packet, settings: Settings):
    """`packet` without what the version of IP does not have; too long ones are no examples."""
    if settings.ip_version == 4:
        packet = dataclasses.replace(packet, ip=dataclasses.replace(packet.ip, flow_label=None))
    try:
        build(packet, Flow(1, 1, 0), settings)
    except (ValueError, KeyError):
        assume(False)
    return packet


@given(trees.inbound_segments, versions, trees.numbers, trees.numbers)
def test_a_segment_reads_as_it_was_written(packet: TcpPacket, version, local, remote) -> None:
    settings = Settings(ip_version=version)
    packet = possible(packet, settings)
    options = packet.options or ()
    assume(not any(isinstance(o, UnknownOption) and o.kind in KNOWN_KINDS for o in options))
    assume(EndOfOptions() not in options)  # what follows it is its data
    peer, stack = ends(local, remote)
    frame, actual = read_again(packet, peer, stack, settings)
    assert isinstance(actual, TcpPacket)
    assert frame.payload == ramp(packet.range.start, packet.range.length)
    assert (frame.tcp.src_port, frame.tcp.dst_port) == (90, 80)
    # Flags that say R. with number 0 on the wire are a reset's own 0.
    assume(frame.tcp.seq or "R" not in packet.flags)
    expected = dataclasses.replace(
        packet,
        direction=Direction.OUTBOUND,
        ack=packet.ack if "." in packet.flags else None,
        ip=dataclasses.replace(packet.ip, ecn=Ecn.ECT0 if packet.ip.ecn is Ecn.ECT01 else packet.ip.ecn),
        ports=None,
    )
    if "." not in packet.flags:
        actual = dataclasses.replace(actual, ack=None)
    assert differences(expected, actual, settings) == []


@given(st.integers(0, 3000), versions, trees.ip_infos)
def test_a_datagram_reads_as_it_was_written(length, version, ip) -> None:
    settings = Settings(ip_version=version)
    packet = possible(UdpPacket(Direction.INBOUND, length, ip), settings)
    frame, actual = read_again(packet, Flow(80, 90, 0), Flow(90, 80, 0), settings)
    assert differences(packet, actual, settings) == []
    assert len(frame.payload) == length


@given(versions, trees.ranges | st.integers(0, 1400), trees.numbers, st.integers(0, 0xFFFF), st.data())
def test_an_icmp_error_quotes_what_the_stack_sent(version, quote, isn, mtu, data) -> None:
    settings = Settings(ip_version=version)
    packet = IcmpPacket(
        Direction.INBOUND,
        "unreachable" if version == 4 else "packet_too_big",
        "frag_needed" if version == 4 else None,
        mtu,
        quote,
    )
    assume(isinstance(quote, int) or quote.length < 60_000)
    flow = Flow(80, 90, 0)
    flow.local_offset = isn
    frame = dissect(build(packet, flow, settings))
    assert frame.problems == ()
    quoted = frame.quote
    assert quoted is not None
    assert (quoted.ip.src, quoted.ip.dst) == (settings.local, settings.remote)
    header = quoted.udp or quoted.tcp
    assert (header.src_port, header.dst_port) == (80, 90)
    if quoted.tcp is not None:
        assert quoted.tcp.seq == (quote.start + isn) % 2**32
    # As if the stack had sent it: it would quote the peer's numbers.
    mirrored = Flow(90, 80, isn)
    assert differences(packet, read(frame, mirrored, packet), settings) == []


@given(st.integers(0, 2**32), st.integers(0, 1000), st.integers(0, 1000))
def test_payloads_agree_where_they_overlap(start, length, shift) -> None:
    whole = ramp(start, length + shift)
    assert len(whole) == length + shift
    assert ramp(start + shift, length) == whole[shift:]
