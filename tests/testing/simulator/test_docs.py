"""The examples of docs/testing/simulator.md run, and the planted fault is found, shrunk and replayed."""

from __future__ import annotations

import pathlib
import re

import pytest

from tunstack.testing.simulator import Schedule

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "testing" / "simulator.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def run(source: str, names: dict[str, object] | None = None) -> dict[str, object]:
    names = {"__name__": "example"} if names is None else names
    exec(compile(source, str(PAGE), "exec"), names)
    return names


def test_the_first_example(capsys: pytest.CaptureFixture[str]) -> None:
    run(examples()[0])
    assert re.fullmatch(r"\d+\.\d Mbit/s, \d+ retransmissions\n", capsys.readouterr().out)


def test_traces(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(examples()[1])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0.000000 client>server sent    IP 10.0.0.1.")
    assert re.fullmatch(r"[0-9a-f]{64}", lines[-1])
    assert (tmp_path / "server.pcapng").stat().st_size > 20_000


def test_the_planted_fault_is_shrunk_and_replays_from_what_was_printed() -> None:
    """Stop-and-wait without sequence numbers: at most 5 impairments are left, and they fail again."""
    toy, replay = examples()[2:4]
    names = run(toy)
    test, deliver, messages = (
        names[name] for name in ("test_every_message_arrives_once", "deliver", "MESSAGES")
    )
    assert deliver(Schedule()) == messages, "without impairments it works"  # type: ignore[operator]
    with pytest.raises(AssertionError) as caught:
        test()  # type: ignore[operator]
    printed = re.search(r"Schedule\.parse\('([^']*)'\)", str(caught.value))
    assert printed is not None
    schedule = Schedule.parse(printed[1])
    assert 1 <= len(schedule.impairments) <= 5
    assert str(schedule) == printed[1]
    for _ in range(2):
        assert deliver(schedule) != messages  # type: ignore[operator]
    run(replay, names)


def test_trio() -> None:
    run(examples()[4])
    assert len(examples()) == 5
