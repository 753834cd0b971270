"""Networks: who reaches whom, on which way, when; and that a run depends on its seed alone."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys

import pytest
from scapy.utils import RawPcapNgReader

from tunstack.errors import DropReason
from tunstack.ip.addresses import parse_address
from tunstack.limits import Limits
from tunstack.link.shaping.delay import Constant, Delay
from tunstack.link.shaping.spec import ShapeError
from tunstack.link.shaping.stage import Memory
from tunstack.packet import Packet
from tunstack.testing.packets import dissect
from tunstack.testing.simulator import (
    Capture,
    Digest,
    Host,
    Network,
    TextTrace,
    Transfer,
    What,
)
from tunstack.testing.simulator.clock import StandsStill


class Echo:
    """A node that sends everything back after a second, and says when it was called."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, bytes]] = []
        self.called: list[float] = []
        self._held: list[tuple[float, bytes]] = []
        self._ready: list[Packet] = []

    def receive(self, packet: Packet, now: float) -> None:
        self.seen.append((now, bytes(packet.head)))
        self._held.append((now + 1.0, bytes(packet.head)))

    def poll_transmit(self, now: float) -> list[Packet]:
        ready, self._ready = self._ready, []
        return ready

    def next_timeout(self) -> float | None:
        return self._held[0][0] if self._held else None

    def handle_timeout(self, now: float) -> None:
        self.called.append(now)
        while self._held and self._held[0][0] <= now:
            self._ready.append(Packet(self._held.pop(0)[1]))


class Silent(Echo):
    """A node that only listens."""

    def receive(self, packet: Packet, now: float) -> None:
        self.seen.append((now, bytes(packet.head)))


def pair(network: Network, words: str | None = "delay 10ms", **options: object) -> tuple[Host, Host]:
    client = network.host("client", **options)  # type: ignore[arg-type]
    server = network.host("server", **options)  # type: ignore[arg-type]
    network.link(client, server, words)
    return client, server


def test_anything_with_four_methods_takes_part() -> None:
    network = Network(start=5.0)
    echo, silent = Echo(), Silent()
    a = network.attach("a", silent)
    network.link(a, network.attach("b", echo), "delay 250ms", None)
    a.emit([Packet(b"one"), Packet(b"two")], network.now)
    network.run(10)
    assert echo.seen == [(5.25, b"one"), (5.25, b"two")]
    assert echo.called == [6.25]
    assert silent.seen == [(6.25, b"one"), (6.25, b"two")]
    assert network.now == 15.0
    assert network.next_time() is None


def test_the_clock_goes_from_instant_to_instant_and_stops_where_it_was_told() -> None:
    network = Network()
    happened: list[tuple[float, str]] = []
    for time, what in [(2.0, "b"), (1.0, "a"), (2.0, "c"), (9.0, "d")]:
        network.at(time, lambda what=what: happened.append((network.now, what)))
    assert not network.run_until(lambda: False, 0.5) and network.now == 0.5
    assert network.step(until=5.0) and happened == [(1.0, "a")]
    assert network.step(until=5.0) and happened[1:] == [(2.0, "b"), (2.0, "c")]
    assert not network.step(until=5.0) and network.now == 5.0
    network.after(1.0, lambda: happened.append((network.now, "e")))
    assert network.run_until(lambda: len(happened) == 4)
    assert (network.now, happened[-1]) == (6.0, (6.0, "e"))
    network.at(3.0, lambda: happened.append((network.now, "late")))
    network.run(1.0)
    assert happened[-1] == (6.0, "late"), "what is ordered for the past happens now"
    assert not network.run_until(lambda: False) and network.now == 9.0, "nothing ever happens any more"


def test_a_node_that_is_always_due_is_found_out() -> None:
    class Busy(Silent):
        def next_timeout(self) -> float:
            return 0.0

    network = Network()
    network.attach("busy", Busy())
    with pytest.raises(StandsStill, match=r"at 0\.000000 s"):
        network.run(1.0)


@pytest.mark.parametrize("family", [4, 6])
def test_hosts_reach_each_other_over_routers(family: int) -> None:
    """A square of routers with a tail: the shortest way is taken, and each hop takes one off the limit."""
    network = Network(seed=1)
    addresses = {4: ("10.1.0.1", "10.2.0.1"), 6: ("fd00:1::1", "fd00:2::1")}[family]
    client, server = network.host("client", addresses[0]), network.host("server", addresses[1])
    r = [network.router(f"r{i}") for i in range(5)]
    for first, second in [(0, 1), (1, 2), (2, 3), (3, 0), (2, 4)]:
        network.link(r[first], r[second], "delay 5ms")
    network.link(client, r[0], "delay 1ms")
    network.link(r[4], server, "delay 1ms")
    transfer = Transfer(client, server, 100_000)
    limits = []
    network.directions["r4>server"].observers.append(
        lambda now, what, way, packet, reason: limits.append(dissect(packet.tobytes()).ip)
    )
    assert network.run_until(lambda: transfer.done, 30)
    assert {ip.ttl if family == 4 else ip.hop_limit for ip in limits} == {64 - 4}
    unused = r[3] if r[1].forwarded else r[1]
    assert r[0].forwarded == r[2].forwarded == r[4].forwarded > 0 == unused.forwarded
    assert transfer.connection.sender.rtt.srtt == pytest.approx(2 * 0.017, rel=0.5)


def test_a_dual_stack_host_is_reached_at_both_addresses_and_pings_are_answered() -> None:
    network = Network()
    client, server = pair(network)
    for address in server.addresses:
        connection = client.connect(address, 80)
        network.run(1.0)
        assert connection.closed, "nobody listens: refused"
    assert len({len(a) for a in server.addresses}) == 2
    assert client.connect(server, 80).remote == server.addresses[0]


def test_each_direction_has_its_own_treatment() -> None:
    network = Network()
    client, server = network.host("client"), network.host("server")
    link = network.link(client, server, "delay 30ms", "delay 70ms")
    transfer = Transfer(client, server, 1)
    network.run_until(lambda: transfer.done)
    assert network.now == pytest.approx(0.03 + 0.07 + 0.03)
    link.shape("delay 1ms", "delay 1ms")
    transfer = Transfer(client, server, 1)
    network.run_until(lambda: transfer.done)
    assert transfer.ended is not None
    assert transfer.ended - transfer.started == pytest.approx(0.003)


def test_the_same_words_serve_both_directions_with_other_seeds() -> None:
    network = Network(seed=3)
    a, b = network.attach("a", Silent()), network.attach("b", Silent())
    network.link(a, b, "loss 50%")
    for station in (a, b):
        station.emit([Packet(bytes([number])) for number in range(64)], 0.0)
    network.run(1.0)
    there, back = ({data for _, data in station.node.seen} for station in (b, a))
    assert 10 < len(there) < 54 and 10 < len(back) < 54 and there != back


def run_twice(**options: object) -> tuple[list[str], list[str]]:
    digests, traces = [], []
    for _ in range(2):
        network = Network(**options)  # type: ignore[arg-type]
        digest, lines = Digest(), io.StringIO()
        network.observers += [digest, TextTrace(lines.write, What)]
        client, server = pair(network, "delay 20ms 5ms loss 2% duplicate 1% corrupt 1%")
        transfer = Transfer(client, server, 300_000)
        assert network.run_until(lambda: transfer.done, 300)  # noqa: B023
        digests.append(digest.hexdigest())
        traces.append(lines.getvalue())
    return digests, traces


def test_the_same_seed_gives_the_same_trace_and_another_one_another() -> None:
    digests, traces = run_twice(seed=7)
    assert digests[0] == digests[1] and traces[0] == traces[1]
    others, _ = run_twice(seed=8)
    assert others[0] != digests[0]


def test_observers_change_nothing() -> None:
    times = []
    for observed in (False, True):
        network = Network(seed=5)
        if observed:
            network.observers.append(Digest())
        client, server = pair(network, "delay 20ms 5ms loss 2%")
        transfer = Transfer(client, server, 200_000)
        network.run_until(lambda: transfer.done)  # noqa: B023
        times.append((network.now, transfer.connection.hot.retransmits))
    assert times[0] == times[1]


def test_a_station_that_is_added_changes_no_other_ones_numbers() -> None:
    times = []
    for more in (False, True):
        network = Network(seed=5)
        client, server = network.host("client", "10.1.1.1"), network.host("server", "10.1.1.2")
        network.link(client, server, "delay 20ms loss 2%")
        if more:
            pair_of_others = network.host("x", "10.9.0.1"), network.host("y", "10.9.0.2")
            network.link(*pair_of_others, "loss 5%")
            Transfer(*pair_of_others, 50_000)
        transfer = Transfer(client, server, 200_000)
        network.run_until(lambda: transfer.done)  # noqa: B023
        times.append(transfer.ended)
    assert times[0] == times[1]


def test_a_trace_shows_every_packet_and_its_end() -> None:
    network = Network(seed=2)
    lines: list[str] = []
    network.observers.append(TextTrace(lines.append))
    client, server = network.host("client", "10.0.0.1"), network.host("server", "10.0.0.2")
    network.link(client, server, "delay 10ms loss 10%", "delay 10ms")
    transfer = Transfer(client, server, 30_000)
    network.run_until(lambda: transfer.done)
    assert lines[0].startswith("0.000000 client>server sent    IP 10.0.0.1.")
    assert "10.0.0.2.5001: Flags [S" in lines[0] and lines[0].endswith("\n")
    lost = [line for line in lines if " dropped (shaping-loss) IP 10.0.0.1." in line]
    way = network.directions["client>server"]
    assert len(lost) == way.drops[DropReason.SHAPING_LOSS] > 0
    assert sum(" client>server sent " in line for line in lines) == way.packets
    assert "seq 1:" in "".join(lines), "sequence numbers are relative"


def test_a_capture_is_read_by_another_program_and_shows_one_station() -> None:
    network = Network(seed=2, start=1_000_000.0)
    client, server = pair(network, "delay 10ms loss 5%")
    file = io.BytesIO()
    network.observers.append(Capture(file.write, server))
    transfer = Transfer(client, server, 20_000)
    network.run_until(lambda: transfer.done)
    network.run(1)
    packets = [data for data, _ in RawPcapNgReader(io.BytesIO(file.getvalue()))]
    there, back = (network.directions[name] for name in ("client>server", "server>client"))
    assert len(packets) == there.packets - there.drops.total + back.packets
    assert dissect(packets[0]).tcp.dst_port == 5001 and not dissect(packets[0]).problems


def test_a_cut_link_loses_everything() -> None:
    network = Network()
    client, server = network.host("client"), network.host("server")
    link = network.link(client, server, "delay 100ms")
    transfer = Transfer(client, server)
    network.run(1.05)
    assert transfer.received > 0
    before = transfer.received
    link.cut()
    assert link.forth.drops[DropReason.SHAPING_DETACHED] > 0
    network.run(5)
    assert transfer.received == before
    link.shape("delay 100ms", "delay 100ms")
    assert network.run_until(lambda: transfer.received > before, 60), "the connection survives"


def test_what_is_larger_than_the_link_is_dropped_and_counted() -> None:
    network = Network()
    a, b = network.attach("a", Silent()), network.attach("b", Silent())
    network.link(a, b, mtu=100)
    a.emit([Packet(bytes(100)), Packet(bytes(101))], 0.0)
    network.run(1)
    assert [len(data) for _, data in b.node.seen] == [100]
    assert network.directions["a>b"].drops[DropReason.PACKET_TOO_BIG] == 1


def test_arrivals_of_one_instant_are_joined_if_so_wanted() -> None:
    """With `coalesce` the receiver acknowledges a train once, and delivers the same bytes."""
    acks = []
    for coalesce in (False, True):
        network = Network()
        client, server = pair(network, "delay 50ms", coalesce=coalesce)
        transfer = Transfer(client, server, 1_000_000)
        assert network.run_until(lambda: transfer.done, 60)  # noqa: B023
        acks.append(network.directions["server>client"].packets)
    assert acks[1] <= acks[0]


def test_stages_are_taken_as_they_are() -> None:
    network = Network()
    a, b = network.attach("a", Silent()), network.attach("b", Silent())
    draws = iter([0.5, 0.1])
    stages = [Delay(lambda: next(draws), Memory(1 << 20))]
    with pytest.raises(ValueError, match="stages serve one direction"):
        network.link(a, b, stages)
    network.link(a, b, stages, [Delay(Constant(1.0), Memory(1 << 20))])
    a.emit([Packet(b"late"), Packet(b"soon")], 0.0)
    b.emit([Packet(b"back")], 0.0)
    network.run(2)
    assert b.node.seen == [(0.1, b"soon"), (0.5, b"late")]
    assert a.node.seen == [(1.0, b"back")]


def test_mistakes_are_told() -> None:
    network = Network()
    a = network.host("a")
    with pytest.raises(ValueError, match="there is a station a already"):
        network.host("a")
    b = network.host("b")
    with pytest.raises(ShapeError):
        network.link(a, b, "dealy 5ms")
    assert not a.directions and not network.directions, "nothing is left of a link that could not be"
    network.link(a, b)
    with pytest.raises(ValueError, match="a has a link already"):
        network.link(a, network.host("c"))
    with pytest.raises(ValueError, match="link layer"):
        network.link(network.attach("f", Silent(), l2=True), network.attach("g", Silent()))
    r, s = network.router("r"), network.router("s")
    network.link(r, s)
    with pytest.raises(ValueError, match="a link between r and s already"):
        network.link(r, s)
    with pytest.raises(ValueError, match="no link from r to a"):
        r.route("10.0.0.0/8", a)


def test_ports_run_out_only_when_all_are_taken() -> None:
    network = Network(seed=1)
    client, server = pair(network, limits=Limits(connections=20_000))
    ports = {client.connect(server, 80).local_port for _ in range(1000)}
    assert len(ports) == 1000 and min(ports) >= 49152
    fixed = client.connect(server, 80, local_port=1234)
    assert fixed.local_port == 1234


def test_addresses_that_nobody_chose_differ() -> None:
    network = Network()
    stations = [network.host("a"), network.router("b"), network.host("c"), network.router("d")]
    addresses = list(itertools.chain.from_iterable(station.addresses for station in stations))
    assert len(set(addresses)) == len(addresses) == 8
    assert network.host("e", "192.0.2.1").addresses == (parse_address("192.0.2.1"),)


def test_only_the_strategies_need_hypothesis() -> None:
    program = "import sys; sys.modules['hypothesis'] = None; import tunstack.testing.simulator{}"
    for module, works in (("", True), (".driver", True), (".strategies", False)):
        done = subprocess.run([sys.executable, "-c", program.format(module)], capture_output=True, text=True)
        assert (done.returncode == 0) is works, done.stderr
