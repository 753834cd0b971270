"""The scripts of tests/scripts: each runs for the families that it names; those of must_fail/ fail as said.

A script opens with comments: what it shows and where the RFC says so; `// rfc 9293 MUST-40` for each row of
the conformance matrix that it shows; `// families: ipv4 ipv6`, for which it runs (both, if it does not say);
`// known: reason` in known/, if the stack is known not to do it (the script has to fail then). In must_fail/
`// fails at line N: reason` and `// says: words` of the report. Together the scripts use the whole language.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import typing
from collections.abc import Iterator

import pytest

from tests.conformance import matrix
from tunstack.testing.packetdrill import Result, Verdict, parse_option, report, run_file
from tunstack.testing.packetdrill.language import syntax, values
from tunstack.testing.packetdrill.language.parser import parse
from tunstack.testing.packetdrill.system.calls import HANDLERS

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
PATHS = sorted(SCRIPTS.rglob("*.pkt"))
FAILING = [path for path in PATHS if path.parent.name == "must_fail"]
KNOWN = [path for path in PATHS if path.parent.name == "known"]
PASSING = [path for path in PATHS if path not in FAILING and path not in KNOWN]
FAMILIES = ("ipv4", "ipv6")
LIMITS = {"passing": 150, "failing": 30}

_COMMENT = re.compile(r"//[ ]?(.*)")
_ROW = re.compile(r"rfc (\d+) (.+)")
_FAMILIES = re.compile(r"families: (.+)")
_FAILS = re.compile(r"fails at line (\d+): (.+)")
_KNOWN = re.compile(r"known: (.+)")
_SAYS = re.compile(r"says: (.+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """What the comments at the head of a script say."""

    text: str
    rows: tuple[matrix.Key, ...]
    families: tuple[str, ...]
    known: str | None
    fails_at: int | None
    says: str | None


def head_of(path: pathlib.Path) -> Head:
    """The head of the script at `path`."""
    words, rows, families = [], [], FAMILIES
    known = fails_at = says = None
    for line in path.read_text().splitlines():
        comment = _COMMENT.fullmatch(line)
        if comment is None:
            break
        text = comment[1]
        if row := _ROW.fullmatch(text):
            rows.append((row[1], row[2]))
        elif named := _FAMILIES.fullmatch(text):
            families = tuple(named[1].split())
        elif reason := _KNOWN.fullmatch(text):
            known = reason[1]
        elif wanted := _SAYS.fullmatch(text):
            says = wanted[1]
        else:
            if fails := _FAILS.fullmatch(text):
                fails_at = int(fails[1])
            words.append(text)
    return Head(" ".join(words), tuple(rows), families, known, fails_at, says)


HEADS = {path: head_of(path) for path in PATHS}


def name_of(path: pathlib.Path) -> str:
    """The name of a script in test ids."""
    return str(path.relative_to(SCRIPTS).with_suffix(""))


def parameters() -> Iterator[object]:
    """Each script that must pass with each of its families, and the markers of the rows that it shows."""
    for path in PASSING:
        head = HEADS[path]
        marks = [pytest.mark.rfc(*row) for row in head.rows]
        for family in head.families:
            yield pytest.param(path, family, marks=marks, id=f"{name_of(path)}-{family}")


def play(path: pathlib.Path, family: str) -> Result:
    """The script at `path`, for one family."""
    return run_file(path, options=[parse_option(f"--ip_version={family}")])


@pytest.mark.parametrize(("path", "family"), list(parameters()))
def test_script(path: pathlib.Path, family: str) -> None:
    result = play(path, family)
    assert result.passed, report(result)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("path", KNOWN, ids=name_of)
def test_what_is_known_not_to_work_does_not(path: pathlib.Path, family: str) -> None:
    """Else the script is one of those that must pass."""
    assert play(path, family).verdict is Verdict.FAILED


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("path", FAILING, ids=name_of)
def test_script_fails_where_it_must(path: pathlib.Path, family: str) -> None:
    head = HEADS[path]
    result = play(path, family)
    text = report(result)
    assert not result.passed, text
    assert result.position.line == head.fails_at, text
    assert head.says is not None and head.says in text


# The whole language is used.


@dataclasses.dataclass(slots=True)
class Usage:
    """What scripts use: names of productions, and of system calls."""

    productions: set[str]
    calls: set[str]


def nodes(value: object) -> Iterator[object]:
    """`value` and everything in it: nodes of the syntax tree, enumerations, texts and numbers."""
    yield value
    if isinstance(value, tuple):
        for item in value:
            yield from nodes(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from nodes(getattr(value, field.name))


def packet_productions(packet: syntax.TcpPacket | syntax.UdpPacket | syntax.IcmpPacket) -> Iterator[str]:
    """Productions that the fields of a packet tell."""
    yield f"{type(packet).__name__} {packet.direction.name}"
    if isinstance(packet, syntax.IcmpPacket):
        yield f"icmp quote {type(packet.quote).__name__}"
        yield "icmp code by name" if packet.code and " " not in packet.code else "icmp without a code"
        if packet.code and re.search(r"\d", packet.code):
            yield "icmp code by number"
        if packet.mtu is not None:
            yield "icmp mtu"
        if packet.echo_id is not None:
            yield "icmp echo id"
    elif packet.ports is not None:
        yield f"ports of {type(packet).__name__}"
    if isinstance(packet, syntax.TcpPacket):
        yield from (f"flag {letter}" for letter in packet.flags or "-")
        yield "ack" if packet.ack is not None else "no ack"
        yield "win" if packet.window is not None else "no win"
        if packet.urgent is not None:
            yield "urg"
        yield "any options" if packet.options is None else f"{min(len(packet.options), 2)} options"


def call_productions(call: syntax.SystemCall, time: syntax.EventTime) -> Iterator[str]:
    """Productions of the frame of a system call."""
    if call.end is not None:
        yield f"blocking {time.kind.name}"
    yield "errno" if call.errno else "no errno"
    yield "note" if call.note else "no note"
    yield f"result {type(call.result).__name__}"
    yield "arguments" if call.arguments else "no arguments"


def usage_of(scripts: list[pathlib.Path]) -> Usage:
    """What `scripts` use, from their syntax trees."""
    used = Usage(set(), set())
    for path in scripts:
        text = path.read_text()
        used.productions.update(f"#{word}" for word in re.findall(r"^#(\w+)", text, re.M))
        used.productions.update(f"comment {mark}" for mark in ("//", "/*") if mark in text)
        script = parse(text, path=str(path))
        used.productions.update(name for name in ("setup", "cleanup") if getattr(script, name) is not None)
        for node in nodes((script.options, script.events)):
            if isinstance(node, syntax.Ecn | syntax.TimeKind):
                used.productions.add(f"{type(node).__name__} {node.name}")
            elif dataclasses.is_dataclass(node):
                used.productions.add(type(node).__name__)
            if isinstance(node, syntax.IpInfo):
                used.productions.update(
                    f"ip {field}"
                    for field in ("tos", "ttl", "flow_label")
                    if getattr(node, field) is not None
                )
            elif isinstance(node, values.Integer) and node.hexadecimal:
                used.productions.add("hexadecimal")
            elif isinstance(node, values.String) and node.more:
                used.productions.add("string and more")
            elif isinstance(node, syntax.FastOpen):
                used.productions.add(
                    "FOEXP" if node.experimental else f"FO{' cookie' if node.cookie else ''}"
                )
        for event in script.events:
            action = event.action
            if isinstance(action, syntax.SystemCall):
                used.calls.add(action.name)
                used.productions.update(call_productions(action, event.time))
            elif isinstance(action, syntax.TcpPacket | syntax.UdpPacket | syntax.IcmpPacket):
                used.productions.update(packet_productions(action))
    return used


WHOLE_LANGUAGE = (
    {f"TimeKind {kind.name}" for kind in syntax.TimeKind}
    | {f"Ecn {ecn.name}" for ecn in syntax.Ecn}
    | {kind.__name__ for kind in typing.get_args(syntax.TcpOption)}
    | {kind.__name__ for kind in typing.get_args(values.Value)}
    | {kind.__name__ for kind in typing.get_args(syntax.Action)}
    | {
        f"{kind.__name__} {direction.name}"
        for kind in typing.get_args(syntax.PacketAction)
        for direction in syntax.Direction
    }
    | {f"flag {letter}" for letter in "FSRPEWUA.-"}
    | {"ack", "no ack", "win", "no win", "urg", "any options", "0 options", "1 options", "2 options"}
    | {"ports of TcpPacket", "ports of UdpPacket", "ip tos", "ip ttl", "ip flow_label"}
    | {"icmp quote Range", "icmp quote int", "icmp quote NoneType", "icmp mtu", "icmp echo id"}
    | {"icmp code by name", "icmp code by number", "icmp without a code"}
    | {"blocking ABSOLUTE", "blocking RELATIVE", "errno", "no errno", "note", "no note"}
    | {"result Integer", "result Wildcard", "arguments", "hexadecimal", "string and more"}
    | {"FO", "FO cookie", "FOEXP", "Option", "Field", "setup", "cleanup", "comment //", "comment /*"}
    | {"#define", "#undef", "#ifdef", "#ifndef", "#else", "#endif"}
)


@pytest.fixture(scope="module")
def usage() -> Usage:
    """What the scripts that must pass use."""
    return usage_of(PASSING)


def test_every_production_is_used(usage: Usage) -> None:
    assert not WHOLE_LANGUAGE - usage.productions


def test_every_system_call_is_used(usage: Usage) -> None:
    assert set(HANDLERS) <= usage.calls


# The heads.


def test_there_are_scripts() -> None:
    assert len(PASSING) >= LIMITS["passing"] and len(FAILING) >= LIMITS["failing"]
    both = [path for path in PASSING if HEADS[path].families == FAMILIES]
    assert len(both) >= len(PASSING) / 3


def test_the_heads_are_complete() -> None:
    for path, head in HEADS.items():
        name = name_of(path)
        assert len(head.text) > 20, f"{name} says what it shows"
        assert set(head.families) <= set(FAMILIES) and head.families, name
        assert {head.fails_at is not None, head.says is not None} == {path in FAILING}, name
        assert (head.known is not None) is (path in KNOWN), name
        assert head.known is None or not head.rows, f"{name}: what is known not to work shows no requirement"


def test_the_rows_are_those_of_the_matrix() -> None:
    _, rows = matrix.load()
    applicable = {row.key for row in rows if row.applies}
    unknown = {name_of(path): set(HEADS[path].rows) - applicable for path in PASSING}
    assert not {name: keys for name, keys in unknown.items() if keys}
