"""The list of requirements is well formed, the markers name its rows, and the document is up to date."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conformance import matrix
from tests.conformance.matrix import Key, Requirement

TITLES, ROWS = matrix.load()


@pytest.fixture(scope="module")
def marked() -> dict[Key, set[str]]:
    """The markers of all tests, by collection."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.conformance.matrix", "list"],
        cwd=matrix.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return {(rfc, name): set(names) for rfc, name, names in json.loads(done.stdout)}


def test_rows_are_whole() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.rfc.isdigit() and row.level in matrix.LEVELS, row.key
        assert row.text and "|" not in row.id + row.text + row.reason + row.note, row.key
        assert row.applies is not bool(row.reason), f"{row.key}: a reason if it does not apply, else none"


def test_every_must_of_rfc_9293_is_in_the_list() -> None:
    ids = {row.id for row in ROWS if row.rfc == "9293"}
    assert {f"MUST-{n}" for n in range(1, 70)} <= ids
    assert {f"SHLD-{n}" for n in range(1, 32)} <= ids


def test_markers_name_rows(marked: dict[Key, set[str]]) -> None:
    assert len(marked) > 100
    assert matrix.wrong_markers(ROWS, marked) == []


def test_the_document_is_up_to_date(marked: dict[Key, set[str]]) -> None:
    """If it is not: make conformance."""
    wanted = matrix.outline(matrix.render(TITLES, ROWS, marked, {}))
    assert len(wanted) > len(ROWS)
    assert matrix.outline(matrix.DOCUMENT.read_text()) == wanted


# What `make conformance` says of a small matrix.

MUST = Requirement("1", "A", "must", "Something")
SHOULD = Requirement("1", "B", "should", "Something else")
NEVER = Requirement("1", "C", "must", "Nothing of ours", applies=False, reason="not here")
GOOD: dict[Key, set[str]] = {MUST.key: {"t.py::a"}}


def test_a_matrix_that_is_as_it_should_be() -> None:
    assert matrix.faults([MUST, SHOULD, NEVER], GOOD, {"t.py::a": "passed"}) == []


@pytest.mark.parametrize(
    ("tests", "results", "words"),
    [
        ({}, {}, "MUST without a test"),
        (GOOD, {}, "MUST without a test"),
        (GOOD, {"t.py::a": "skipped"}, "MUST without a test"),
        (GOOD, {"t.py::a": "failed"}, "a test failed"),
        ({**GOOD, SHOULD.key: {"t.py::b"}}, {"t.py::a": "passed", "t.py::b": "failed"}, "a test failed"),
        ({**GOOD, ("1", "D"): {"t.py::d"}}, {"t.py::a": "passed"}, "is not in the list"),
        ({**GOOD, ("2", "A"): {"t.py::d"}}, {"t.py::a": "passed"}, "is not in the list"),
        ({**GOOD, NEVER.key: {"t.py::c"}}, {"t.py::a": "passed"}, "not applicable"),
    ],
)
def test_what_is_wrong_is_told(tests: dict[Key, set[str]], results: dict[str, str], words: str) -> None:
    (sentence,) = matrix.faults([MUST, SHOULD, NEVER], tests, results)
    assert words in sentence


def test_the_outline_is_the_document_without_results() -> None:
    tests = {MUST.key: {"t.py::a", "t.py::b", "u.py::a"}}
    rows = [MUST, SHOULD, NEVER]
    passed = matrix.render({"1": "One"}, rows, tests, dict.fromkeys(tests[MUST.key], "passed"))
    failed = matrix.render({"1": "One"}, rows, tests, dict.fromkeys(tests[MUST.key], "failed"))
    assert passed != failed
    assert matrix.outline(passed) == matrix.outline(failed)
    other = matrix.render({"1": "One"}, rows, {MUST.key: {"t.py::a", "t.py::b"}}, {})
    assert matrix.outline(passed) != matrix.outline(other)
    fewer = matrix.render({"1": "One"}, [MUST, NEVER], tests, {})
    assert matrix.outline(passed) != matrix.outline(fewer)


def test_results_of_parameters_are_put_together() -> None:
    collector = matrix.Collector()
    for nodeid, when, outcome in (
        ("tests/x.py::mixed[1]", "call", "skipped"),
        ("tests/x.py::mixed[2]", "call", "passed"),
        ("tests/x.py::broken[1]", "call", "passed"),
        ("tests/x.py::broken[2]", "call", "failed"),
        ("tests/x.py::broken[3]", "call", "passed"),
        ("tests/x.py::leaves", "call", "passed"),
        ("tests/x.py::leaves", "teardown", "failed"),
        ("tests/x.py::never", "setup", "skipped"),
    ):
        report = pytest.TestReport(nodeid, ("", 0, ""), {}, outcome, None, when)
        collector.pytest_runtest_logreport(report)
    assert collector.results == {
        "x.py::mixed": "passed",
        "x.py::broken": "failed",
        "x.py::leaves": "failed",
        "x.py::never": "skipped",
    }
