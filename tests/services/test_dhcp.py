"""The DHCP server by RFC 2131, message for message; and that no message makes it raise."""

from __future__ import annotations

import itertools
import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.services.test_dhcp_wire import MESSAGES
from tunstack.errors import DropCounters, DropReason
from tunstack.ip.addresses import Prefix
from tunstack.services.dhcp import DhcpConfig, DhcpServer, Reply
from tunstack.services.dhcp_leases import Binding, LeaseTable, Pool
from tunstack.services.dhcp_service import LeaseFileError, read_leases, write_leases
from tunstack.services.dhcp_wire import DhcpMessage, MessageType, Option, emit, parse

SERVER, DNS = bytes((10, 0, 2, 2)), bytes((10, 0, 2, 3))
CONFIG = DhcpConfig(
    server=SERVER,
    network=Prefix(bytes((10, 0, 2, 0)), 24),
    router=SERVER,
    dns=(DNS,),
    mtu=1500,
    search=("lan.example", "example"),
)
MAC, OTHER = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
EVERYBODY = b"\xff" * 4
xids = itertools.count(1)


def address(number: int) -> bytes:
    return bytes((10, 0, 2, number))


class Client:
    """What a client says, and what it is told; time is its own."""

    def __init__(self, server: DhcpServer, mac: bytes = MAC, **options: bytes) -> None:
        self.server = server
        self.mac = mac
        self.options = {Option[name]: value for name, value in options.items()}
        self.now = 0.0
        self.reply: Reply | None = None

    def say(
        self, kind: MessageType, *, ciaddr: bytes = bytes(4), flags: int = 0, **options: bytes
    ) -> DhcpMessage | None:
        given = {Option.MESSAGE_TYPE: bytes((kind,))} | self.options
        given |= {Option[name]: value for name, value in options.items()}
        message = DhcpMessage(
            xid=next(xids), ciaddr=ciaddr, flags=flags, chaddr=self.mac, options=dict(given)
        )
        self.reply = self.server.receive(emit(message), self.now)
        if self.reply is None:
            return None
        answer = parse(self.reply.payload)
        assert (answer.op, answer.xid, answer.chaddr, answer.flags) == (2, message.xid, self.mac, flags)
        assert answer.address(Option.SERVER_ID) == SERVER
        return answer

    def discover(self, **options: bytes) -> DhcpMessage | None:
        return self.say(MessageType.DISCOVER, **options)

    def select(self, wanted: bytes, server: bytes = SERVER) -> DhcpMessage | None:
        return self.say(MessageType.REQUEST, REQUESTED_ADDRESS=wanted, SERVER_ID=server)

    def boot(self) -> bytes:
        """Get an address."""
        offer = self.discover()
        assert offer is not None and offer.kind is MessageType.OFFER
        ack = self.select(offer.yiaddr)
        assert ack is not None and ack.kind is MessageType.ACK and ack.yiaddr == offer.yiaddr
        return ack.yiaddr


def kind_of(message: DhcpMessage | None) -> str | None:
    return None if message is None or message.kind is None else message.kind.name


@pytest.fixture
def drops() -> DropCounters:
    return DropCounters()


@pytest.fixture
def server(drops: DropCounters) -> DhcpServer:
    return DhcpServer(CONFIG, LeaseTable(Pool(address(100), address(102))), drops)


def test_a_client_gets_an_address_with_all_that_it_asks_for_in_its_order(server: DhcpServer) -> None:
    client = Client(server, PARAMETERS=bytes((121, 119, 6, 3, 26, 28, 15, 200, 1)), CLIENT_ID=b"\xffid")
    offer = client.discover()
    assert offer is not None and offer.yiaddr == address(100)
    assert client.reply is not None
    assert (client.reply.address, client.reply.port, client.reply.mac) == (address(100), 68, MAC)
    assert list(offer.options) == [53, 54, 51, 58, 59, 1, 121, 119, 6, 3, 26, 28, 15, 61]
    assert offer.options[Option.SUBNET_MASK] == b"\xff\xff\xff\0"
    assert offer.options[Option.ROUTES] == b"\0" + SERVER
    assert offer.options[Option.DOMAIN_SEARCH] == b"\x03lan\x07example\0\x07example\0"
    assert offer.options[Option.DOMAIN_NAME] == b"lan.example"
    assert (offer.options[Option.ROUTER], offer.options[Option.DNS]) == (SERVER, DNS)
    assert offer.number(Option.MTU) == 1500
    assert offer.options[Option.CLIENT_ID] == b"\xffid"
    times = [offer.number(code) for code in (Option.LEASE_TIME, Option.RENEWAL, Option.REBINDING)]
    assert times == [3600, 1800, 3150]
    assert len(client.reply.payload) >= 300
    assert kind_of(client.select(address(100))) == "ACK"


def test_a_client_that_lists_nothing_gets_what_everybody_needs(server: DhcpServer) -> None:
    offer = Client(server).discover()
    assert offer is not None
    assert list(offer.options) == [53, 54, 51, 58, 59, 1, 3, 6, 26]


def test_an_answer_goes_to_everybody_if_the_client_asks_for_that(server: DhcpServer) -> None:
    client = Client(server)
    client.say(MessageType.DISCOVER, flags=0x8000)
    assert client.reply is not None
    assert (client.reply.address, client.reply.mac) == (EVERYBODY, b"\xff" * 6)


def test_a_lease_is_renewed_and_ends_when_it_is_not(server: DhcpServer) -> None:
    client, other = Client(server), Client(server, OTHER)
    assert client.boot() == address(100)
    client.now = 1800
    ack = client.say(MessageType.REQUEST, ciaddr=address(100))
    assert ack is not None and ack.kind is MessageType.ACK and ack.ciaddr == address(100)
    assert client.reply is not None and (client.reply.address, client.reply.mac) == (address(100), MAC)
    other.now = 1800 + 3599
    assert kind_of(other.say(MessageType.REQUEST, REQUESTED_ADDRESS=address(100))) == "NAK"
    other.now = 1800 + 3600
    assert kind_of(other.say(MessageType.REQUEST, REQUESTED_ADDRESS=address(100))) == "ACK"
    client.now = other.now
    assert kind_of(client.say(MessageType.REQUEST, ciaddr=address(100))) == "NAK"
    assert client.reply is not None and client.reply.address == EVERYBODY


def test_a_client_that_reboots_keeps_its_address_even_if_nobody_knows_it(server: DhcpServer) -> None:
    client = Client(server)
    assert kind_of(client.say(MessageType.REQUEST, REQUESTED_ADDRESS=address(101))) == "ACK"
    assert client.boot() == address(101)
    assert kind_of(client.say(MessageType.REQUEST, REQUESTED_ADDRESS=bytes((192, 168, 1, 7)))) == "NAK"
    assert client.boot() == address(101)


def test_a_client_that_chooses_another_server_is_forgotten(server: DhcpServer) -> None:
    client, other = Client(server), Client(server, OTHER)
    client.discover()
    assert client.select(address(9), bytes((10, 0, 2, 77))) is None
    assert other.boot() == address(100)


def test_what_was_not_offered_is_not_selected(server: DhcpServer) -> None:
    client = Client(server)
    client.discover()
    assert kind_of(client.select(address(101))) == "NAK"
    assert kind_of(client.select(address(100))) == "ACK"


def test_an_address_is_released_and_given_to_another_when_it_is_needed(server: DhcpServer) -> None:
    clients = [Client(server, bytes((2, 0, 0, 0, 1, number))) for number in range(4)]
    assert [client.boot() for client in clients[:3]] == [address(100), address(101), address(102)]
    assert clients[3].discover() is None
    assert clients[1].say(MessageType.RELEASE, ciaddr=address(101), SERVER_ID=SERVER) is None
    assert clients[3].boot() == address(101)


def test_an_address_that_is_in_use_elsewhere_is_kept_back(server: DhcpServer) -> None:
    client = Client(server)
    client.boot()
    assert client.say(MessageType.DECLINE, REQUESTED_ADDRESS=address(100), SERVER_ID=SERVER) is None
    assert client.boot() == address(101)


def test_who_has_an_address_is_informed_and_gets_none(server: DhcpServer) -> None:
    client = Client(server)
    ack = client.say(MessageType.INFORM, ciaddr=address(50), PARAMETERS=b"\x06")
    assert ack is not None and ack.kind is MessageType.ACK and ack.yiaddr == bytes(4)
    assert Option.LEASE_TIME not in ack.options and ack.options[Option.DNS] == DNS
    assert client.reply is not None and client.reply.address == address(50)
    assert client.say(MessageType.INFORM, ciaddr=bytes((9, 9, 9, 9))) is None


def test_a_client_may_choose_the_time_within_bounds(server: DhcpServer) -> None:
    client = Client(server)
    for wanted, found in ((120, 120), (1, 60), (2**32 - 1, 86_400)):
        offer = client.discover(LEASE_TIME=wanted.to_bytes(4, "big"))
        assert offer is not None and offer.number(Option.LEASE_TIME) == found


def test_who_takes_anothers_identifier_does_not_get_at_its_lease(server: DhcpServer) -> None:
    owner = Client(server, CLIENT_ID=b"\xffone")
    liar = Client(server, bytes((2, 0, 0, 0, 0, 99)), CLIENT_ID=b"\xffone")
    assert owner.boot() == address(100)
    assert liar.say(MessageType.RELEASE, ciaddr=address(100), SERVER_ID=SERVER) is None
    assert liar.say(MessageType.DECLINE, REQUESTED_ADDRESS=address(100), SERVER_ID=SERVER) is None
    assert kind_of(liar.say(MessageType.REQUEST, ciaddr=address(100))) == "NAK"
    assert liar.boot() == address(101)
    assert kind_of(owner.say(MessageType.REQUEST, ciaddr=address(100))) == "ACK"


def test_what_a_relay_agent_adds_goes_back_to_it(server: DhcpServer) -> None:
    def ask(relay: bytes) -> Reply | None:
        options: dict[int, bytes] = {Option.MESSAGE_TYPE: b"\x01", Option.RELAY: b"\x01\x02ab"}
        return server.receive(emit(DhcpMessage(giaddr=relay, chaddr=MAC, options=options)), 0.0)

    reply = ask(address(200))
    assert reply is not None and (reply.address, reply.port, reply.mac) == (address(200), 67, None)
    assert parse(reply.payload).options[Option.RELAY] == b"\x01\x02ab"
    for relay in (SERVER, bytes((9, 9, 9, 9)), address(255), address(0)):
        assert ask(relay) is None


def test_an_exhausted_pool_is_told_of_and_answered_by_silence(
    server: DhcpServer, drops: DropCounters
) -> None:
    told: list[int] = []
    server.on_exhausted = lambda: told.append(1)
    for number in range(5):
        Client(server, bytes((2, 0, 0, 0, 1, number))).discover()
    assert len(told) == drops[DropReason.DHCP_POOL_EXHAUSTED] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"op": 2},
        {"htype": 6},
        {"chaddr": b"\x01\0\0\0\0\x01"},
        {"chaddr": bytes(6)},
        {"chaddr": b""},
        {"options": {}},
    ],
)
def test_what_is_no_request_of_a_client_is_dropped(
    server: DhcpServer, drops: DropCounters, change: dict[str, object]
) -> None:
    fields: dict[str, object] = {"chaddr": MAC, "options": {Option.MESSAGE_TYPE: b"\x01"}}
    assert server.receive(emit(DhcpMessage(**(fields | change))), 0.0) is None  # type: ignore[arg-type]
    assert drops.as_dict() == {"bad-dhcp": 1}


@given(st.lists(st.tuples(MESSAGES, st.integers(0, 9), st.booleans()), max_size=8))
def test_no_message_makes_it_raise_and_replies_stay_on_the_link(
    messages: list[tuple[DhcpMessage, int, bool]],
) -> None:
    server = DhcpServer(CONFIG, LeaseTable(Pool(address(100), address(102))), DropCounters())
    for message, kind, is_plain in messages:
        message.options[Option.MESSAGE_TYPE] = bytes((kind,))
        if is_plain:
            message.op, message.htype, message.chaddr, message.giaddr = 1, 1, MAC, bytes(4)
        reply = server.receive(emit(message, 2048), 0.0)
        if reply is not None:
            assert len(reply.payload) <= 1472
            assert reply.mac in (MAC, b"\xff" * 6) or CONFIG.network.contains(reply.address)
            parse(reply.payload)


HOST_NAMES = {
    b"vm-1": "vm-1",
    b"VM.lan": "vm",
    b"a b": "",
    b"-x": "",
    b"\xff": "",
    b"x" * 64: "",
    b"x\0": "x",
}


@pytest.mark.parametrize("name", HOST_NAMES)
def test_a_host_name_is_a_label_or_nothing(server: DhcpServer, name: bytes) -> None:
    Client(server, HOST_NAME=name).boot()
    assert [one.name for one in server.table.leases(0.0)] == [HOST_NAMES[name]]


BINDINGS = st.builds(
    Binding,
    client=st.binary(min_size=1, max_size=20),
    mac=st.binary(min_size=6, max_size=6),
    address=st.binary(min_size=4, max_size=4),
    expires=st.integers(0, 10**6).map(float),
    is_leased=st.just(True),
    name=st.sampled_from(["", "vm-1"]),
)


@given(bindings=st.lists(BINDINGS, max_size=5))
def test_leases_survive_in_their_file(
    tmp_path_factory: pytest.TempPathFactory, bindings: list[Binding]
) -> None:
    path = tmp_path_factory.mktemp("leases") / "file"
    write_leases(path, bindings, 1e9)
    assert read_leases(path, 1e9) == bindings
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"leases": [{"address": 1}]}', '{"leases": [], "more": 1}']
    + [
        json.dumps(
            {"leases": [dict(zip(("address", "mac", "client"), words, strict=True), name="", expires=1)]}
        )
        for words in (("x", "02:0:0:0:0:1", "00"), ("10.0.2.1", "x", "00"), ("10.0.2.1", "02:0:0:0:0:1", "x"))
    ],
)
def test_a_file_that_is_none_is_refused_in_one_sentence(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "leases"
    path.write_text(text)
    with pytest.raises(LeaseFileError, match=str(path)):
        read_leases(path, 0.0)


def test_no_file_is_no_lease(tmp_path: pathlib.Path) -> None:
    assert read_leases(tmp_path / "none", 0.0) == []
