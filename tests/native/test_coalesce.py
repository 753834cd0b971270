"""GRO: what merges, what must not, and that C and Python agree on every batch."""

from __future__ import annotations

import types
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tunstack.limits import COALESCE_FLOWS
from tunstack.packet import Checksum, GsoType, Packet

from .frames import (
    ACK,
    HARMLESS,
    HINDERING,
    OTHER,
    PSH,
    VAGUE,
    VAGUE_CHANGES,
    Tcp,
    batches,
    hostile,
    ipv6_other,
    nearly_valid,
    other,
    rfc1071,
)

LINKS = pytest.mark.parametrize("l2", [True, False], ids=["l2", "l3"])
VERSIONS = pytest.mark.parametrize("version", [4, 6])
LIMITS = st.one_of(st.just(65535), st.integers(-1, 120), st.just(2**40))
per_twin = hypothesis.settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def seen(packets: list[Packet]) -> list[tuple[object, ...]]:
    """All there is to a packet, comparable."""
    return [
        (bytes(p.head), [bytes(view) for view in p.payload], p.gso_size, p.gso_type, p.checksum, p.csum_start)
        for p in packets
    ]


def train(count: int, size: int = 100, **changes: object) -> list[Tcp]:
    """`count` frames of one flow that merge."""
    first = Tcp(**changes)  # type: ignore[arg-type]
    return [
        first.but(seq=first.seq + i * size, ident=first.ident + i, payload=bytes([65 + i]) * size)
        for i in range(count)
    ]


@per_twin
@given(data=st.data(), l2=st.booleans(), limit=LIMITS)
def test_c_and_python_agree(
    twins: tuple[types.ModuleType, types.ModuleType], data: st.DataObject, l2: bool, limit: int
) -> None:
    packets = data.draw(st.one_of(nearly_valid(l2), hostile(), nearly_valid(not l2)))
    results = [twin.coalesce(packets, l2, limit) for twin in twins]
    assert seen(results[0]) == seen(results[1])
    known = {id(packet) for packet in packets}
    untouched = [[id(p) for p in result if id(p) in known] for result in results]
    assert untouched[0] == untouched[1]


@per_twin
@given(data=st.data(), l2=st.booleans(), limit=LIMITS)
def test_cut_again_each_flow_has_the_frames_it_had(
    twin: types.ModuleType, data: st.DataObject, l2: bool, limit: int
) -> None:
    """Nothing is lost, made up or reordered, neither in a flow nor with respect to vague packets."""
    batch = data.draw(batches(l2))
    tags = {id(packet): tag for packet, tag in batch}
    keys = {flow: Tcp(l2=l2, version=v, flow=flow).key for flow in range(3) for v in (4, 6)}
    keys |= {flow + 10: Tcp(l2=l2, version=4, flow=flow).key for flow in range(3)}
    after: list[tuple[bytes, int | None]] = []
    for packet in twin.coalesce([packet for packet, _ in batch], l2, limit):
        if id(packet) in tags:
            after.append((bytes(packet.head).removesuffix(b"xyz"), tags[id(packet)]))
            continue
        assert packet.checksum == Checksum.VALID
        assert len(packet.head) - 14 * l2 <= limit
        cut = twin.segment(packet, l2)
        assert len(cut) > 1
        flow = next(flow % 10 for flow, key in keys.items() if key in bytes(packet.head[:80]))
        after += [(frame, flow) for frame in cut]
    before = [(bytes(packet.head).removesuffix(b"xyz"), tag) for packet, tag in batch]
    for flow in (0, 1, 2):
        assert [x for x in after if x[1] in (flow, VAGUE)] == [x for x in before if x[1] in (flow, VAGUE)]
    assert [x for x in after if x[1] == OTHER] == [x for x in before if x[1] == OTHER]


@LINKS
@VERSIONS
def test_a_train_is_one_packet(twin: types.ModuleType, l2: bool, version: int) -> None:
    frames = train(4, l2=l2, version=version, seq=2**32 - 150)
    frames[-1] = frames[-1].but(payload=b"end", flags=ACK | PSH)
    (packet,) = twin.coalesce([frame.packet() for frame in frames], l2)
    whole = frames[0].but(payload=b"".join(frame.payload for frame in frames), flags=ACK | PSH)
    field = len(whole.ethernet) + len(whole.ip) + 16
    expected = bytes(whole)
    pseudo = rfc1071(whole.key[:-4] + b"\0\x06" + len(whole.l4).to_bytes(2, "big"))
    assert bytes(packet.head[:field]) == expected[:field], "lengths and IP checksum included"
    assert int.from_bytes(packet.head[field : field + 2], "big") == pseudo
    assert bytes(packet.head[field + 2 :]) == expected[field + 2 :]
    assert not packet.payload
    assert packet.gso_size == 100
    assert packet.gso_type == (GsoType.TCPV4 if version == 4 else GsoType.TCPV6)
    assert packet.checksum == Checksum.VALID


def sizes(twin: types.ModuleType, packets: list[Packet], l2: bool = True, limit: int = 65535) -> list[int]:
    """How many packets went into each that comes out, told by the TCP payload of 100 bytes each."""
    header = len(bytes(Tcp()))
    return [(len(p.head) - header) // 100 for p in twin.coalesce(packets, l2, limit)]


@pytest.mark.parametrize("change", HARMLESS, ids=repr)
def test_joins(twin: types.ModuleType, change: dict[str, object]) -> None:
    frames = train(3)
    frames[1] = frames[1].but(**change)
    assert sizes(twin, [frame.packet() for frame in frames]) == [3]


@pytest.mark.parametrize("change", (*HINDERING, *VAGUE_CHANGES, {"seq": 100}, {"flow": 9}), ids=repr)
def test_does_not_join(twin: types.ModuleType, change: dict[str, object]) -> None:
    first, second = train(2)
    packets = [first.packet(), second.but(**change).packet()]
    assert twin.coalesce(packets, True) == packets


@pytest.mark.parametrize(
    "change", [{"reserved": 1}, {"flags": ACK | 0x40}, {"flags": 0}, {"fragment": 0xC000}], ids=repr
)
def test_what_does_not_merge_does_not_start_a_train(
    twin: types.ModuleType, change: dict[str, object]
) -> None:
    packets = [frame.but(**change).packet() for frame in train(2)]
    assert twin.coalesce(packets, True) == packets


def ethertype(frame: bytes) -> bytes:
    return frame[:12] + b"\x08\x06" + frame[14:]


def cut_short(frame: bytes) -> bytes:
    return frame[:-1]


def tcp_header_too_short(frame: bytes) -> bytes:
    return frame[:46] + b"\x40" + frame[47:]


def tcp_header_too_long(frame: bytes) -> bytes:
    return frame[:46] + b"\xf0" + frame[47:70]


def ip_length_too_short(frame: bytes) -> bytes:
    return frame[:16] + b"\0\x27" + frame[18:]


@pytest.mark.parametrize(
    ("spoil", "apparent_size"),
    [
        (ethertype, 100),
        (cut_short, 100),
        (tcp_header_too_short, 116),
        (tcp_header_too_long, 100),
        (ip_length_too_short, 100),
    ],
)
def test_broken_lengths_do_not_merge(
    twin: types.ModuleType, spoil: Callable[[bytes], bytes], apparent_size: int
) -> None:
    """Not even if the device vouches for the checksum, and the sequence numbers fit what seems to be data."""
    frames = [frame.but(seq=1 + i * apparent_size) for i, frame in enumerate(train(3))]
    packets = [Packet(spoil(bytes(frame)), checksum=Checksum.VALID) for frame in frames]
    for packet in packets:
        head = bytearray(packet.head)
        head[24:26] = b"\0\0"
        head[24:26] = (rfc1071(bytes(head[14:34])) ^ 0xFFFF).to_bytes(2, "big")
        packet.head = bytes(head)
    assert twin.coalesce(packets, True) == packets


@pytest.mark.parametrize("version", [4, 6])
def test_an_ip_header_alone(twin: types.ModuleType, version: int) -> None:
    """It says TCP and that it ends here; there is nothing behind it to read."""
    header = bytearray(Tcp(l2=False, version=version).ip)
    header[2:6] = b"\0\x14\0\0" if version == 4 else bytes([header[2], header[3], 0, 0])
    packets = [Packet(bytes(header)), Packet(bytes(header))]
    assert twin.coalesce(packets, False) == packets


def test_a_good_copy_does_not_overtake_a_bad_one(twin: types.ModuleType) -> None:
    first, good = (frame.packet() for frame in train(2))
    bad = Packet(bytes(good.head[:-1]) + b"\0")
    packets = [first, bad, good]
    assert twin.coalesce(packets, True) == packets


@VERSIONS
@pytest.mark.parametrize("change", [{"ttl": 63}, {"tos": 1}, {"window": 1}], ids=repr)
def test_does_not_join_in_either_family(
    twin: types.ModuleType, version: int, change: dict[str, object]
) -> None:
    first, second = train(2, version=version)
    packets = [first.packet(), second.but(**change).packet()]
    assert twin.coalesce(packets, True) == packets


def test_push_ends_a_train(twin: types.ModuleType) -> None:
    frames = train(5)
    frames[1] = frames[1].but(flags=ACK | PSH)
    assert sizes(twin, [frame.packet() for frame in frames]) == [2, 3]
    frames = train(3)
    frames[0] = frames[0].but(flags=ACK | PSH)
    assert sizes(twin, [frame.packet() for frame in frames]) == [1, 2]


def test_a_longer_one_does_not_join_and_a_shorter_one_ends(twin: types.ModuleType) -> None:
    first, second, third = train(3)
    shorter = second.but(payload=second.payload[:50])
    after = third.but(seq=shorter.seq + 50)
    merged = twin.coalesce([first.packet(), shorter.packet(), after.packet()], True)
    assert [packet.gso_size for packet in merged] == [100, 0]
    longer = second.but(payload=b"x" * 101)
    packets = [first.packet(), longer.packet()]
    assert twin.coalesce(packets, True) == packets


@VERSIONS
@LINKS
def test_max_bytes_bounds_the_ip_packet(twin: types.ModuleType, l2: bool, version: int) -> None:
    frames = train(4, l2=l2, version=version)
    packets = [frame.packet() for frame in frames]
    ip = len(frames[0].ip) + len(frames[0].l4)
    merged = twin.coalesce(packets, l2, ip + 200)
    assert [len(packet.head) - 14 * l2 for packet in merged] == [ip + 200, ip]
    merged = twin.coalesce(packets, l2, ip + 199)
    assert [len(packet.head) - 14 * l2 for packet in merged] == [ip + 100, ip + 100]
    assert twin.coalesce(packets, l2, 0) == packets


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize("place", ["ip", "tcp"])
def test_a_wrong_checksum_passes_unmerged(twin: types.ModuleType, bad: int, place: str) -> None:
    packets = [frame.packet() for frame in train(4)]
    head = bytearray(packets[bad].head)
    head[14 + 10 if place == "ip" else -1] ^= 0x40
    packets[bad].head = bytes(head)
    result = twin.coalesce(packets, True)
    assert packets[bad] in result
    assert sizes(twin, packets) == {0: [1, 3], 1: [1, 1, 2], 2: [2, 1, 1]}[bad]


@pytest.mark.parametrize("checksum", [Checksum.PARTIAL, Checksum.VALID])
def test_a_trusted_checksum_is_not_verified_but_that_of_ip_is(
    twin: types.ModuleType, checksum: Checksum
) -> None:
    packets = [frame.packet(checksum) for frame in train(3)]
    for packet in packets:
        packet.head = bytes(packet.head[:-1]) + b"\0"
    assert sizes(twin, packets) == [3]
    head = bytearray(packets[1].head)
    head[14 + 10] ^= 1
    packets[1].head = head
    assert sizes(twin, packets) == [1, 1, 1]


def test_ethernet_padding_does_not_get_into_the_stream(twin: types.ModuleType) -> None:
    frames = [frame.but(padding=bytes(6)) for frame in train(3, size=1)]
    (packet,) = twin.coalesce([frame.packet() for frame in frames], True)
    assert packet.tobytes().endswith(b"ABC")
    assert len(packet) == len(bytes(Tcp())) + 3


def test_a_train_does_not_overtake_its_own_flow(twin: types.ModuleType) -> None:
    data = [frame.packet() for frame in train(4)]
    ack = train(1)[0].but(payload=b"", ack=99).packet()
    assert sizes(twin, [*data[:2], ack, *data[2:]]) == [2, 0, 2]
    vague = Tcp(flow=5, fragment=0x2000).packet()
    assert sizes(twin, [*data[:2], vague, *data[2:]]) == [2, 0, 2]


def test_other_traffic_does_not_disturb_a_train(twin: types.ModuleType) -> None:
    data = [frame.packet() for frame in train(2)]
    others = [Packet(other(True, 4)), Packet(other(True, 6)), Packet(b"\xff" * 12 + b"\x08\x06" + bytes(28))]
    others.append(Packet(ipv6_other(Tcp(version=6), 58)))
    result = twin.coalesce([data[0], *others, data[1]], True)
    assert len(result) == 5
    assert result[1:] == others


def test_an_extension_header_might_be_of_any_flow(twin: types.ModuleType) -> None:
    data = [frame.packet() for frame in train(2, version=6)]
    packets = [data[0], Packet(ipv6_other(Tcp(version=6), 44)), data[1]]
    assert twin.coalesce(packets, True) == packets


def test_flows_interleave(twin: types.ModuleType) -> None:
    flows = [train(3, flow=flow, version=4 + 2 * (flow % 2)) for flow in range(4)]
    packets = [flow[i].packet() for i in range(3) for flow in flows]
    assert [packet.gso_size for packet in twin.coalesce(packets, True)] == [100] * 4


def test_the_oldest_train_gives_way(twins: tuple[types.ModuleType, ...]) -> None:
    """One flow more than may be open: the first has been closed, the others still merge."""
    flows = [train(2, flow=flow) for flow in range(COALESCE_FLOWS + 1)]
    packets = [flow[0].packet() for flow in flows] + [flow[1].packet() for flow in flows[1:]]
    packets.append(flows[0][1].packet())
    for twin in twins:
        counts = sizes(twin, packets)
        assert counts == [1] + [2] * COALESCE_FLOWS + [1]


def test_a_packet_that_is_a_train_is_left_alone(twin: types.ModuleType) -> None:
    packets = [frame.packet(Checksum.PARTIAL) for frame in train(3)]
    packets[1].gso_size, packets[1].gso_type = 50, GsoType.TCPV4
    assert twin.coalesce(packets, True) == packets


@pytest.mark.parametrize(
    "packets",
    [[], [Packet(b"")], [Packet(b""), Packet(b"")], [Packet(bytes(14)), Packet(bytes(14))]],
    ids=repr,
)
def test_nothing_to_do(twin: types.ModuleType, packets: list[Packet]) -> None:
    result = twin.coalesce(packets, True)
    assert result == packets
    assert result is not packets


def test_c_and_python_have_the_same_table(twins: tuple[types.ModuleType, ...]) -> None:
    assert twins[0]._lib.TS_COALESCE_FLOWS == COALESCE_FLOWS
