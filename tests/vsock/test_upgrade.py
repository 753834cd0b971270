"""How a link begins: both sides with each other, with those who know less, and with nonsense."""

from __future__ import annotations

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vsock.test_handshakes import cut
from tunstack.nat.dialer import Refusal
from tunstack.vsock.handshakes import Conversation, Refused
from tunstack.vsock.upgrade import ALL_OFFLOADS, Terms, accept, ask, ask_plain

TERMS = st.builds(
    Terms, st.integers(576, 65520), st.sets(st.sampled_from(sorted(ALL_OFFLOADS))).map(frozenset)
)
GVFORWARDER = (
    b"POST /connect HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\r\n"
)
"""What gvproxy's own guests send."""


def talk(agent: Conversation, gateway: Conversation, first: bytes = b"") -> bytes:
    """Let them talk until both are over; what the agent sends behind its part, as the gateway finds it."""
    one, other = socket.socketpair()
    with one, other:
        for sock in (one, other):
            sock.setblocking(False)
        for _ in range(20):
            agent.advance(one)
            gateway.advance(other)
        if first:
            one.send(first)
        with contextlib.suppress(BlockingIOError):
            return other.recv(1 << 16)
    return b""


@given(TERMS, TERMS, st.binary(max_size=50))
def test_both_agree_on_what_both_can(mine: Terms, theirs: Terms, frame: bytes) -> None:
    agent, gateway = Conversation(ask(theirs)), Conversation(accept(mine))
    assert talk(agent, gateway, frame) == frame
    assert agent.result == gateway.result == Terms(mine.mtu, mine.offloads & theirs.offloads)


@given(TERMS)
def test_terms_are_read_as_they_are_written(terms: Terms) -> None:
    assert Terms.parse(bytes(terms)) == terms


def test_an_agent_that_knows_less_gets_frames_at_once() -> None:
    agent, gateway = Conversation(ask_plain()), Conversation(accept(Terms()))
    assert talk(agent, gateway, b"frame") == b"frame"
    assert gateway.is_over and gateway.result is None


def heard(
    side: str, said: bytes, places: list[int], refusal: str | None = None
) -> tuple[object, bytes, bytes]:
    """What becomes of a side that hears `said` in pieces: result or refusal, what it says, what is left."""
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        made = accept(Terms(), refusal) if side == "gateway" else ask(Terms())
        conversation = Conversation(made)
        result: object
        try:
            conversation.advance(one)
            for piece in cut(said, places):
                other.sendall(piece)
                conversation.advance(one)
            result = conversation.result if conversation.is_over else "waits"
        except Refused as error:
            result = error.refusal
        answer = left = b""
        with contextlib.suppress(BlockingIOError):
            answer = other.recv(1 << 16)
        with contextlib.suppress(BlockingIOError):
            left = one.recv(1 << 16)
    return result, answer, left


@given(st.lists(st.integers(0, 200), max_size=5), st.binary(max_size=30))
def test_gvproxys_guests_are_served_and_what_they_send_along_is_left(
    places: list[int], frames: bytes
) -> None:
    assert heard("gateway", GVFORWARDER + frames, places) == (None, b"", frames)


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", None),  # gvproxy's to a path that it has not
        (b"HTTP/1.1 405 No\r\n\r\n", None),
        (b"HTTP/1.1 503 No\r\nTunstack-Refusal: full\r\n\r\n", Refusal.PROHIBITED),
        (b"HTTP/1.1 101 Yes\r\nUpgrade: tunstack-link\r\n\r\n", Refusal.UNREACHABLE),
        (b"HTTP/1.1 101 Yes\r\nTunstack-Link: version=2, mtu=1500, offloads=\r\n\r\n", Refusal.UNREACHABLE),
        (b"HTTP/1.1 101 Yes\r\nTunstack-Link: version=1, mtu=9, offloads=\r\n\r\n", Refusal.UNREACHABLE),
        (b"SSH-2.0-something\r\n\r\n", Refusal.UNREACHABLE),
    ],
)
def test_what_an_agent_makes_of_answers(answer: bytes, result: object) -> None:
    assert heard("agent", answer, [])[0] is result


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 404"),
        (b"GET /v1/link HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 404"),
        (b"GET /v1/link HTTP/1.1\r\nHost: x\r\nUpgrade: tunstack-link\r\n\r\n", b"HTTP/1.1 503"),
        (
            b"GET /v1/link HTTP/1.1\r\nHost: x\r\nUpgrade: tunstack-link\r\nTunstack-Link: version=9\r\n\r\n",
            b"HTTP/1.1 503",
        ),
        (b"\0\1\2\r\n\r\n", b""),
        (b"x" * 20_000, b""),
    ],
)
def test_who_asks_for_something_else_is_told(said: bytes, answer: bytes) -> None:
    result, told, _ = heard("gateway", said, [])
    assert isinstance(result, Refusal) and told.startswith(answer)


def test_a_gateway_that_is_full_refuses() -> None:
    assert heard("gateway", GVFORWARDER, [], "there is no room")[0] is Refusal.PROHIBITED
    asked = next(ask(Terms()))
    assert isinstance(asked, bytes)
    result, told, _ = heard("gateway", asked, [], "there is no room")
    assert result is Refusal.PROHIBITED and b"tunstack-refusal: there is no room" in told.lower()


@given(
    st.sampled_from(["gateway", "agent"]), st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4)
)
def test_anything_ends_waits_or_refuses(side: str, said: bytes, places: list[int]) -> None:
    result = heard(side, said + b"\r\n\r\n", places)[0]
    assert result in ("waits", None) or isinstance(result, (Refusal, Terms))
