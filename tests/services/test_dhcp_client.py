"""The DHCP client beside our server, in virtual time over a network that loses, and before a hostile one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.ip.addresses import BROADCAST_V4
from tunstack.services.dhcp_client import DhcpClient, Lease, Sending, State
from tunstack.services.dhcp_wire import REPLY, DhcpMessage, MessageType, Option, emit, parse

MAC = b"\x02\0\0\0\0\7"
SERVER = b"\x0a\0\2\2"
ADDRESS = b"\x0a\0\2\x64"
TIME = 3600.0


class Server:
    """Gives one address, as RFC 2131 has it; `answers` says whether, and `kinds` what it has heard."""

    def __init__(self, address: bytes = ADDRESS) -> None:
        self.address = address
        self.heard: list[tuple[MessageType, bytes]] = []

    def answer(self, sending: Sending) -> bytes | None:
        message = parse(sending.payload)
        kind = message.kind
        assert kind is not None and message.chaddr == MAC
        self.heard.append((kind, sending.destination))
        asked = message.address(Option.REQUESTED_ADDRESS) or message.ciaddr
        right = asked == self.address
        if kind is MessageType.DISCOVER:
            told = MessageType.OFFER
        else:
            told = MessageType.ACK if right else MessageType.NAK
        options = {
            Option.MESSAGE_TYPE: bytes((told,)),
            Option.SERVER_ID: SERVER,
            Option.LEASE_TIME: int(TIME).to_bytes(4, "big"),
            Option.SUBNET_MASK: b"\xff\xff\xff\0",
            Option.ROUTER: SERVER,
            Option.DNS: b"\x0a\0\2\3\x0a\0\2\4",
            Option.MTU: b"\5\xdc",
            Option.DOMAIN_NAME: b"lab.example",
        }
        reply = DhcpMessage(op=REPLY, xid=message.xid, chaddr=MAC, yiaddr=self.address, options=dict(options))
        return emit(reply)


def client() -> DhcpClient:
    return DhcpClient(MAC, random.Random(1), "guest")


def run(made: DhcpClient, server: Server | None, start: float, end: float, lose: Callable[[], bool]) -> None:
    """Carry messages until `end`; `server` None: nobody is there."""
    now = start
    for _ in range(10_000):
        while sendings := made.poll_transmit(now):
            for sending in sendings:
                answer = None if server is None or lose() else server.answer(sending)
                if answer is not None and not lose():
                    made.receive(answer, now)
        deadline = made.next_timeout()
        if deadline is None or deadline > end:
            return
        assert deadline > now - 1e-6
        now = max(now, deadline)
        made.handle_timeout(now)
    pytest.fail("it sends without end")


def never() -> bool:
    return False


def test_it_gets_what_the_server_gives() -> None:
    made, server = client(), Server()
    made.link_up(100.0)
    run(made, server, 100.0, 101.0, never)
    assert made.state is State.BOUND
    assert made.lease == Lease(
        address=ADDRESS,
        bits=24,
        router=SERVER,
        dns=(b"\x0a\0\2\3", b"\x0a\0\2\4"),
        mtu=1500,
        domain="lab.example",
    )
    assert [kind for kind, _ in server.heard] == [MessageType.DISCOVER, MessageType.REQUEST]


def test_it_renews_with_its_server_and_rebinds_with_any() -> None:
    made, server = client(), Server()
    made.link_up(0.0)
    run(made, server, 0.0, 1.0, never)
    server.heard.clear()
    run(made, server, 1.0, TIME * 0.6, never)
    assert server.heard == [(MessageType.REQUEST, SERVER)] and made.state is State.BOUND
    asked: list[bytes] = []

    class Silent(Server):
        def answer(self, sending: Sending) -> bytes | None:
            asked.append(sending.destination)
            return None

    run(made, Silent(), TIME * 0.6, TIME * 1.45, never)
    assert SERVER in asked and BROADCAST_V4 in asked and made.lease is not None  # it ends at 1.5 times
    run(made, None, TIME * 1.45, TIME * 2, never)
    assert made.lease is None and made.state is State.SELECTING


def test_a_link_that_comes_back_asks_for_the_same_address() -> None:
    made, server = client(), Server()
    made.link_up(0.0)
    run(made, server, 0.0, 1.0, never)
    before = made.lease
    made.link_up(10.0)
    assert made.state is State.REBOOTING
    run(made, None, 10.0, 90.0, never)
    assert made.lease == before and made.state is State.BOUND  # nobody says no, RFC 2131 3.2
    made.link_up(100.0)
    server.heard.clear()
    run(made, server, 100.0, 101.0, never)
    assert server.heard == [(MessageType.REQUEST, BROADCAST_V4)] and made.lease == before
    made.link_up(110.0)
    run(made, Server(b"\x0a\0\2\x70"), 110.0, 120.0, never)
    assert made.lease is not None and made.lease.address == b"\x0a\0\2\x70"  # after a NAK


@given(st.integers(0, 1 << 32), st.floats(0, 0.4))
def test_it_gets_there_over_a_network_that_loses(seed: int, loss: float) -> None:
    made, rng = client(), random.Random(seed)
    made.link_up(0.0)
    run(made, Server(), 0.0, 10_000.0, lambda: rng.random() < loss)
    assert made.lease is not None and made.lease.address == ADDRESS


def test_messages_leave_at_growing_intervals() -> None:
    made = client()
    made.link_up(0.0)
    times, now = [0.0], 0.0
    made.poll_transmit(now)
    while now < 500:
        deadline = made.next_timeout()
        assert deadline is not None
        now = deadline
        made.handle_timeout(now)
        times += [now] * len(made.poll_transmit(now))
    waits = [later - sooner for sooner, later in itertools.pairwise(times)]
    for wait, nominal in zip(waits, (4, 8, 16, 32, 64, 64, 64), strict=False):
        assert abs(wait - nominal) <= 1  # RFC 2131 4.1


OPTIONS = st.dictionaries(
    st.sampled_from([int(option) for option in Option if option not in (0, 255, 52)]), st.binary(max_size=20)
)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=400),
            st.builds(
                lambda kind, options, address, right: (kind, options, address, right),
                st.sampled_from(list(MessageType)),
                OPTIONS,
                st.binary(min_size=4, max_size=4),
                st.booleans(),
            ),
        ),
        max_size=20,
    ),
    st.lists(st.floats(0.1, 5000), max_size=20),
)
def test_a_hostile_server_gives_a_lease_or_none(said: list[object], waits: list[float]) -> None:
    made = client()
    now = 0.0
    made.link_up(now)
    xid = 0
    for number, one in enumerate(said):
        for sending in made.poll_transmit(now):
            xid = parse(sending.payload).xid
        if isinstance(one, bytes):
            made.receive(one, now)
        else:
            kind, options, address, right = one  # type: ignore[misc]
            head = {int(Option.MESSAGE_TYPE): bytes((kind,)), int(Option.SERVER_ID): SERVER}
            message = DhcpMessage(
                op=REPLY, xid=xid if right else 1, chaddr=MAC, yiaddr=address, options=head | options
            )
            made.receive(emit(message, 2000), now)
        lease = made.lease
        assert lease is None or (len(lease.address) == 4 and 1 <= lease.bits <= 32)
        assert lease is None or lease.domain is None or "\n" not in lease.domain
        if waits:
            now += waits[number % len(waits)]
            made.handle_timeout(now)
            deadline = made.next_timeout()
            assert deadline is None or deadline > now or made.state is not State.BOUND
        assert len(made.poll_transmit(now)) <= 2


def test_answers_to_somebody_else_do_not_count() -> None:
    made, server = client(), Server()
    made.link_up(0.0)
    (sending,) = made.poll_transmit(0.0)
    answer = server.answer(sending)
    assert answer is not None
    for changed in (
        answer[:4] + b"xxxx" + answer[8:],  # the transaction
        answer[:28] + b"xxxxxx" + answer[34:],  # the hardware address
        b"\1" + answer[1:],  # a request
    ):
        made.receive(changed, 0.0)
        assert made.state is State.SELECTING
    made.receive(answer, 0.0)
    assert made.state is State.REQUESTING
