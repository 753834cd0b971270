"""The conformance matrix: which test shows which requirement, and with what result.

`requirements/*.toml` holds one table for each RFC: its title, and under `requirements` an id with
`level` (must, should or may), `text` (ours), optionally `applies = false` with a `reason`, and a `note` where
we differ. Tests name rows by `@pytest.mark.rfc("9293", "MUST-40")`.

    python -m tests.conformance.matrix           run the marked tests, write docs/conformance.md
    python -m tests.conformance.matrix list      collect only: print the markers as JSON

The first fails if a marked test failed, a marker names no row (or one that does not apply), or an
applicable MUST has no test that passed. The document is written in any case.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import pathlib
import sys
import tomllib
from collections.abc import Iterable, Mapping

import pytest

ROOT = pathlib.Path(__file__).parents[2]
REQUIREMENTS = pathlib.Path(__file__).with_name("requirements")
DOCUMENT = ROOT / "docs" / "conformance.md"
LEVELS = ("must", "should", "may")

Key = tuple[str, str]
"""RFC number and id, as in the marker."""

HEAD = """# Conformance

Which test shows which requirement, and its result when this page was written. `make conformance` writes it,
from `tests/conformance/requirements/` and the markers `@pytest.mark.rfc(number, id)` of the tests. Ids are
those of the RFC where it has them, else its section; a test stands for all of its parameters.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Requirement:
    """One row. `reason` says why it does not apply, `note` where we differ."""

    rfc: str
    id: str
    level: str
    text: str
    applies: bool = True
    reason: str = ""
    note: str = ""

    @property
    def key(self) -> Key:
        """How a marker names it."""
        return self.rfc, self.id


def load(folder: pathlib.Path = REQUIREMENTS) -> tuple[dict[str, str], list[Requirement]]:
    """The titles of the RFCs, and all rows by number of the RFC, those of one in the order of its file."""
    titles: dict[str, str] = {}
    rows: list[Requirement] = []
    for path in sorted(folder.glob("*.toml")):
        for rfc, table in tomllib.loads(path.read_text()).items():
            if rfc in titles:
                raise ValueError(f"{path.name}: RFC {rfc} is in two files")
            titles[rfc] = table["title"]
            rows += [Requirement(rfc, name, **fields) for name, fields in table["requirements"].items()]
    rows.sort(key=lambda row: int(row.rfc))
    return titles, rows


class Collector:
    """A pytest plugin: the markers of the collected tests, and how the tests ended.

    A test function stands for all of its parameters: it failed if one of them did, and passed if
    at least one of them was not skipped.
    """

    def __init__(self) -> None:
        self.tests: dict[Key, set[str]] = {}
        self.results: dict[str, str] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("rfc"):
                rfc, name = map(str, mark.args)
                self.tests.setdefault((rfc, name), set()).add(function(item.nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = function(report.nodeid)
        before = self.results.get(name)
        if report.failed:
            self.results[name] = "failed"
        elif before != "failed" and report.when == "call" and report.passed:
            self.results[name] = "passed"
        elif before is None and report.skipped:
            self.results[name] = "skipped"


def function(nodeid: str) -> str:
    """The test function of a node: no parameters, and no `tests/` before the path."""
    return nodeid.partition("[")[0].removeprefix("tests/")


def verdict(names: Iterable[str], results: Mapping[str, str]) -> str:
    """What the tests `names` say together: failed before passed before skipped."""
    seen = {results.get(name, "not run") for name in names}
    return next((word for word in ("failed", "passed", "skipped") if word in seen), "not run")


def wrong_markers(rows: Iterable[Requirement], tests: Mapping[Key, set[str]]) -> list[str]:
    """Sentences about markers that name no row, or one that is said not to apply."""
    known = {row.key: row for row in rows}
    found = []
    for key, names in sorted(tests.items()):
        what = f"RFC {key[0]} {key[1]!r}, named by {', '.join(sorted(names))}"
        if key not in known:
            found.append(f"{what}, is not in the list")
        elif not known[key].applies:
            found.append(f"{what}, is listed as not applicable")
    return found


def faults(
    rows: Iterable[Requirement], tests: Mapping[Key, set[str]], results: Mapping[str, str]
) -> list[str]:
    """Sentences about all that is wrong; empty if the matrix is as it should be."""
    rows = list(rows)
    found = wrong_markers(rows, tests)
    for row in rows:
        names = tests.get(row.key, set())
        result = verdict(names, results)
        if result == "failed":
            found.append(f"RFC {row.rfc} {row.id}: a test failed")
        elif row.level == "must" and row.applies and result != "passed":
            found.append(f"RFC {row.rfc} {row.id} is a MUST without a test that passed: {row.text}")
    return found


def render(
    titles: Mapping[str, str],
    rows: list[Requirement],
    tests: Mapping[Key, set[str]],
    results: Mapping[str, str],
) -> str:
    """The document."""
    lines = [HEAD, *summary(rows, tests, results)]
    rfc = ""
    for row in rows:
        if row.rfc != rfc:
            rfc = row.rfc
            lines += ["", f"## RFC {rfc}: {titles[rfc]}", ""]
            lines += ["| id | level | requirement | tests | result |", "| --- | --- | --- | --- | --- |"]
        names = tests.get(row.key, set())
        text = row.text + (f". {row.note}." if row.note else "")
        if not row.applies:
            cells = [row.id, row.level, text, f"does not apply: {row.reason}", ""]
        elif names:
            cells = [row.id, row.level, text, by_file(names), verdict(names, results)]
        else:
            cells = [row.id, row.level, text, "", "**no test**"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def summary(rows: list[Requirement], tests: Mapping[Key, set[str]], results: Mapping[str, str]) -> list[str]:
    """The table of numbers at the head of the document."""
    lines = ["| level | requirements | do not apply | tested | passed |", "| --- | --- | --- | --- | --- |"]
    for level in LEVELS:
        of_level = [row for row in rows if row.level == level]
        applicable = [row for row in of_level if row.applies]
        tested = [row for row in applicable if row.key in tests]
        passed = [row for row in tested if verdict(tests[row.key], results) == "passed"]
        numbers = (len(of_level), len(of_level) - len(applicable), len(tested), len(passed))
        lines.append(f"| {level} | " + " | ".join(map(str, numbers)) + " |")
    return lines


def by_file(names: Iterable[str]) -> str:
    """Test functions, those of one file together."""
    files: dict[str, list[str]] = {}
    for name in sorted(names):
        path, _, test = name.partition("::")
        files.setdefault(path, []).append(f"`{test}`")
    return "<br>".join(f"{path}: {', '.join(found)}" for path, found in files.items())


def outline(document: str) -> list[list[str]]:
    """The rows of the document without their results: what may not be out of date."""
    rows = [line.strip("| ").split(" | ") for line in document.splitlines() if line.startswith("| ")]
    return [row[:4] for row in rows if len(row) >= 4 and not row[1].isdigit()]


def collect(arguments: list[str]) -> tuple[Collector, int]:
    """Run pytest on the marked tests with `arguments`; its exit status."""
    collector = Collector()
    status = pytest.main(["-m", "rfc", *arguments, str(ROOT / "tests")], plugins=[collector])
    return collector, int(status)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    if arguments == ["list"]:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            collector, status = collect(["--collect-only", "-q"])
        if status:
            print(output.getvalue(), file=sys.stderr)
        print(json.dumps([[*key, sorted(names)] for key, names in sorted(collector.tests.items())]))
        return status
    titles, rows = load()
    collector, status = collect(["-q", *arguments])
    DOCUMENT.write_text(render(titles, rows, collector.tests, collector.results))
    found = faults(rows, collector.tests, collector.results)
    print(f"{DOCUMENT.relative_to(ROOT)}: {len(rows)} requirements, {len(collector.tests)} with tests")
    for sentence in found:
        print(sentence, file=sys.stderr)
    return 1 if found or status else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
