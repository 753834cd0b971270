"""The catalogue is true: each fault can be made, and some test carries the requirement that it breaks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.mutants import catalogue
from tests.mutants.catalogue import ROOT, Mutant, Stale
from tests.mutants.run import verdict_of

MUTANTS = catalogue.load()

COLLECT = """
import contextlib, json, os, sys
import pytest

class Collector:
    found = []

    def pytest_collection_finish(self, session):
        for item in session.items:
            for mark in item.iter_markers("rfc"):
                self.found.append([item.path.parent.name, *map(str, mark.args)])

with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
    arguments = ["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[1:]]
    status = pytest.main(arguments, plugins=[Collector()])
print(json.dumps([int(status), Collector.found]))
"""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_can_be_made(mutant: Mutant) -> None:
    path = ROOT / "tunstack" / mutant.file
    source = path.read_text()
    changed = mutant.apply(source)
    assert changed != source
    compile(changed, str(path), "exec")


def test_its_requirement_is_carried_by_a_test() -> None:
    folders = sorted({mutant.tests for mutant in MUTANTS})
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, *(f"tests/{folder}" for folder in folders)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    status, found = json.loads(done.stdout)
    assert status == 0
    carried = {tuple(one) for one in found}
    assert [m.name for m in MUTANTS if (m.tests, *m.requirement) not in carried] == []


def test_there_are_enough_in_every_room() -> None:
    rooms = {mutant.file.partition("/")[0] for mutant in MUTANTS}
    assert rooms == {"tcp", "ip", "nat"}
    assert len(MUTANTS) >= 80


SOURCE = "def f():\n    if a:\n        b()\n    b()\n    c()\n"


@pytest.mark.parametrize(
    ("original", "replacement", "changed"),
    [
        ("if a:", "if not a:", "def f():\n    if not a:\n        b()\n    b()\n    c()\n"),
        ("b()\nc()", "b()", "def f():\n    if a:\n        b()\n    b()\n"),
        ("if a:\n    b()", "if a:\n    b(1)", "def f():\n    if a:\n        b(1)\n    b()\n    c()\n"),
        ("\nc()\n", "", "def f():\n    if a:\n        b()\n    b()\n"),
        ("b()", "d()", None),
        ("d()", "b()", None),
        ("if a:\nb()", "b()", None),
    ],
)
def test_lines_are_found_by_what_they_say(original: str, replacement: str, changed: str | None) -> None:
    mutant = Mutant("name", "file", original, replacement, ("1", "A"), "tcp")
    if changed is None:
        with pytest.raises(Stale):
            mutant.apply(SOURCE)
    else:
        assert mutant.apply(SOURCE) == changed


@pytest.mark.parametrize(
    ("status", "output", "verdict"),
    [
        (
            1,
            "F\n=== short summary ===\nFAILED tests/tcp/a.py::b[1] - assert\n1 failed",
            "killed",
        ),
        (0, "..\n2 passed, 3 deselected in 0.1s", "survived"),
        (0, "ss\n2 skipped, 3 deselected in 0.1s", "broken"),
        (5, "3 deselected in 0.1s", "broken"),
        (2, "ERROR tests/tcp/a.py - NameError\n1 error in 0.1s", "broken"),
        (1, "ERROR tests/tcp/a.py::b - NameError\n1 error in 0.1s", "broken"),
        (4, "", "broken"),
    ],
)
def test_only_a_failed_test_kills(status: int, output: str, verdict: str) -> None:
    assert verdict_of(status, output)[0] == verdict
