"""The checker of the ramp: it must accept the ramp however it is cut, and nothing else."""

from __future__ import annotations

import hashlib
import socket

from hypothesis import given
from hypothesis import strategies as st

from tunstack.demo.servers import LOOPBACK, TrafficServer, UdpEchoServer
from tunstack.demo.traffic import (
    MODES,
    PERIOD,
    Order,
    RampChecker,
    echo,
    exchange,
    many,
    ramp,
    ramp_blocks,
    ramp_digest,
    refused,
    share,
)


def verdict(stream: bytes, expected: int, cut: int = 1000) -> str | None:
    checker = RampChecker()
    for start in range(0, len(stream), cut):
        checker.feed(stream[start : start + cut])
    error: str | None = checker.finish(expected)["error"]
    return error


@given(st.integers(0, 10**12), st.integers(0, 3000))
def test_the_ramp_is_its_definition(offset: int, length: int) -> None:
    assert ramp(offset, length) == bytes((offset + i) % PERIOD for i in range(length))


@given(st.integers(0, 600_000))
def test_blocks_and_digest_are_those_of_the_ramp(length: int) -> None:
    whole = b"".join(ramp_blocks(length))
    assert whole == ramp(0, length)
    assert ramp_digest(length) == hashlib.sha256(whole).hexdigest()


@given(st.integers(0, 20_000), st.integers(1, 5000))
def test_the_ramp_is_accepted_however_it_is_cut(length: int, cut: int) -> None:
    assert verdict(ramp(0, length), length, cut) is None


@given(st.data())
def test_damage_of_any_kind_is_noticed(data: st.DataObject) -> None:
    length = data.draw(st.integers(2, 20_000))
    stream = ramp(0, length)
    start = data.draw(st.integers(0, length - 1))
    size = data.draw(st.integers(1, length - start))
    kind = data.draw(st.sampled_from(["lost", "doubled", "swapped", "flipped"]))
    before, block, after = stream[:start], stream[start : start + size], stream[start + size :]
    damaged = {
        "lost": before + after,
        "doubled": before + block + block + after,
        "swapped": before + after[:size] + block + after[size:],
        "flipped": before + bytes(byte ^ 1 for byte in block) + after,
    }[kind]
    if damaged != stream:
        assert verdict(damaged, length) is not None


def test_a_swap_of_blocks_of_any_power_of_two_is_noticed() -> None:
    for power in range(17):
        size = 1 << power
        stream = ramp(0, 2 * size)
        assert verdict(stream[size:] + stream[:size], 2 * size) is not None


def test_the_first_wrong_byte_is_named() -> None:
    stream = bytearray(ramp(0, 1000))
    stream[777] = 250
    assert verdict(bytes(stream), 1000) == f"byte 777 is 250 and should be {777 % PERIOD}"


@given(st.integers(0, 10**9), st.integers(1, 100))
def test_shares_add_up(total: int, parts: int) -> None:
    shares = [share(total, parts, index) for index in range(parts)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


def test_client_and_server_agree_over_loopback() -> None:
    with TrafficServer() as server:
        for mode in MODES:
            order = Order(id=mode, up=300_001, down=200_003, mode=mode)
            found = exchange((LOOPBACK, server.port), order, flows=3)
            assert (found["bytes"], found["error"]) == (200_003, None)
            records = [server.wait_record(f"{mode}.{index}") for index in range(3)]
            assert [record["error"] for record in records] == [None] * 3
            assert sum(record["bytes"] for record in records) == 300_001
        found = many((LOOPBACK, server.port), 20, 2000)
        assert (found["flows"], found["error"]) == (20, None)


def test_the_server_notices_what_a_broken_gateway_would_do() -> None:
    """A stream with two segments swapped, and one that ends a byte early."""
    stream = ramp(0, 10_000)
    swapped = stream[:1448] + stream[2896:4344] + stream[1448:2896] + stream[4344:]
    with TrafficServer() as server:
        for name, sent in (("swapped", swapped), ("short", stream[:-1])):
            with socket.create_connection((LOOPBACK, server.port)) as client:
                client.sendall(Order(id=name, up=len(stream)).line() + sent)
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
            assert server.wait_record(name)["error"] is not None


def test_echo_reports_what_did_not_come_back() -> None:
    with UdpEchoServer() as server:
        assert echo((LOOPBACK, server.port), [1, 1472, 65507])["wrong"] == {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((LOOPBACK, 0))
        assert set(echo(silent.getsockname(), [1, 2], patience=0.05)["wrong"]) == {1, 2}


def test_refused_tells_a_refusal_from_a_connection() -> None:
    with TrafficServer() as server:
        assert refused((LOOPBACK, server.port))["heard"] == "connected"
    assert refused((LOOPBACK, server.port))["heard"] == "ConnectionRefusedError"
