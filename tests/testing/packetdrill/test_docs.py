"""docs/testing/packetdrill.md: its examples run, and its tables say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tunstack.testing.packetdrill import UnsupportedSyntax, parse, settings
from tunstack.testing.packetdrill.language.packet_parser import ENCAPSULATIONS, TCP_OPTIONS
from tunstack.testing.packetdrill.language.syntax import TimeKind
from tunstack.testing.packetdrill.system.calls import HANDLERS

PAGE = Path(__file__).parents[3] / "docs/testing/packetdrill.md"
TEXT = PAGE.read_text()


def section(title: str) -> str:
    """What stands below a heading."""
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in `text`, heads left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    heads = {index for index, row in enumerate(cells[1:]) if set(row[0]) == {"-"}}
    return [row for index, row in enumerate(cells) if index not in heads and set(row[0]) != {"-"}]


PRODUCTIONS = [
    (name, cell.strip("`").strip().replace("\\|", "|") if "``" not in cell else cell[2:-2].strip(), verdict)
    for name, cell, verdict in rows(section("The language"))
]


@pytest.mark.parametrize(("name", "example", "verdict"), PRODUCTIONS, ids=[row[0] for row in PRODUCTIONS])
def test_a_production_is_supported_or_not_as_it_says(name, example, verdict) -> None:
    if verdict.startswith("no"):
        with pytest.raises(UnsupportedSyntax):
            parse(example)
    else:
        assert len(parse(example).events) == 1


def test_the_table_of_productions_is_complete() -> None:
    examples = "\n".join(example for _, example, _ in PRODUCTIONS)
    for word in [*TCP_OPTIONS, *ENCAPSULATIONS, "noecn"]:
        assert re.search(rf"\b{word}\b", examples + section("The language")), word
    times = [example for name, example, _ in PRODUCTIONS if re.search("time|range", name)]
    assert {event.time.kind for example in times for event in parse(example).events} == set(TimeKind)


def test_the_calls_are_those_of_the_system() -> None:
    named = re.findall(r"`(\w+)`", section("System calls").partition("\n\nWhat")[0])
    assert named == sorted(HANDLERS)


def test_the_options_are_those_of_the_code() -> None:
    expected = {name: description for name, (_, description) in settings.SUPPORTED.items()}
    expected |= settings.WITHOUT_EFFECT | settings.UNSUPPORTED
    found = {name.strip("`-"): text for name, text in rows(section("Options of a script"))}
    assert found == expected


def test_the_example_in_python_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["result"].passed  # type: ignore[attr-defined]


def test_the_report_is_what_it_shows() -> None:
    from tunstack.testing.packetdrill import report, run_text

    (shown,) = re.findall(r"```text\n(.*?)```", TEXT, re.S)
    (code,) = re.findall(r'SCRIPT = """\n(.*?)"""', TEXT, re.S)
    script = "\n" + code.replace("<mss 1460>", "<mss 1400>")
    assert report(run_text(script, "handshake.pkt")) == shown.rstrip("\n")
