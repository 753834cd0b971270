"""Run the tests on a package with one fault at a time: a fault that no test notices is a gap in the tests.

    python -m tests.mutants.run                  all mutants
    python -m tests.mutants.run paws-off ...     these
    python -m tests.mutants.run --list           their names

Package and tests are copied to temporary folders, one for each of `--jobs` workers; the tree itself is not
touched. For each mutant only the tests run that carry the marker of its requirement, and one of
them must fail: then the mutant is killed. It survived if they pass, and is broken if nothing could be
said: no such test, all skipped, or the package cannot even be imported. First the same tests must
pass without a fault. The exit status is 0 if every mutant was killed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time

from tests.mutants.catalogue import ROOT, Mutant, Stale, load

TIMEOUT = 20.0
"""Seconds for one test. A fault may make one run for ever; pytest-timeout ends it, which is a failure."""
GIVE_UP = 300.0
"""Seconds for all tests of one mutant."""
COPIED = ("tunstack", "tests", "pyproject.toml")
IGNORED = shutil.ignore_patterns("__pycache__", ".hypothesis", "*.orig")

PASSED, FAILED, NO_TESTS = 0, 1, 5
"""Of the exit statuses of pytest; the others say that it could not run them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant: killed, survived or broken; by which test or why; in how many seconds."""

    mutant: Mutant
    verdict: str
    detail: str
    seconds: float


def copy_tree(folder: pathlib.Path) -> None:
    """What the tests need, in `folder`."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=IGNORED)
        else:
            shutil.copy(source, folder / name)


def write(path: pathlib.Path, source: str) -> None:
    """Write a module. Its compiled form would look current if size and second are the same, so it goes."""
    path.write_text(source)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def pytest_in(folder: pathlib.Path, tests: list[str], requirements: list[str], *more: str) -> tuple[int, str]:
    """Exit status and output of pytest in a copy of the tree."""
    command = [
        sys.executable,
        "-bb",
        "-m",
        "pytest",
        "-q",
        "--tb=no",
        "--no-header",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-m", "not slow", f"--timeout={TIMEOUT:g}", *more]
    command += [f"--rfc={requirement}" for requirement in requirements]
    environment = os.environ | {
        "TUNSTACK_EXPECT_UNDER": str(folder),
        "HYPOTHESIS_PROFILE": "mutants",
        "PYTHONPATH": str(folder),
    }
    done = subprocess.run(
        [*command, *(f"tests/{place}" for place in tests)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=GIVE_UP,
    )
    return done.returncode, done.stdout + done.stderr


def option(mutant: Mutant) -> str:
    """Its requirement as `--rfc` takes it."""
    return ":".join(mutant.requirement)


def carriers(folder: pathlib.Path, mutant: Mutant) -> list[str]:
    """Where the marker of its requirement is written: to collect no more than that saves half of the time."""
    room = folder / "tests" / mutant.tests
    marker = 'rfc("{}", "{}")'.format(*mutant.requirement)
    found = [
        str(path.relative_to(folder / "tests"))
        for path in sorted(room.rglob("test_*.py"))
        if marker in path.read_text()
    ]
    return found or [mutant.tests]


def baseline(folder: pathlib.Path, mutants: list[Mutant]) -> str | None:
    """Why the tests say nothing, if they fail without any fault; None if they pass."""
    places = sorted({mutant.tests for mutant in mutants})
    status, output = pytest_in(folder, places, sorted({option(mutant) for mutant in mutants}))
    return None if status == PASSED else output[-2000:]


def judge(folder: pathlib.Path, mutant: Mutant) -> Outcome:
    """Run the tests of `mutant` in `folder`, which is left as it was."""
    start = time.monotonic()
    path = folder / "tunstack" / mutant.file
    source = path.read_text()
    try:
        write(path, mutant.apply(source))
        verdict, detail = verdict_of(*pytest_in(folder, carriers(folder, mutant), [option(mutant)], "-x"))
    except Stale as error:
        verdict, detail = "broken", str(error)
    except subprocess.TimeoutExpired:
        verdict, detail = "broken", f"the tests took more than {GIVE_UP:g} s"
    finally:
        write(path, source)
    return Outcome(mutant, verdict, detail, time.monotonic() - start)


def verdict_of(status: int, output: str) -> tuple[str, str]:
    """The verdict and its reason from what pytest said."""
    failed = re.search(r"^FAILED (\S+)", output, re.MULTILINE)
    if status == FAILED and failed:
        return "killed", failed[1].removeprefix("tests/")
    if status == PASSED:
        if re.search(r"\b\d+ passed\b", output.rpartition("\n=")[2]):
            return "survived", "its tests pass"
        return "broken", "its tests are skipped here"
    if status == NO_TESTS:
        return "broken", "no test carries its requirement"
    return "broken", f"pytest ended with status {status}: {output.strip().splitlines()[-1:]}"


def run(mutants: list[Mutant], jobs: int) -> list[Outcome]:
    """Judge all, `jobs` at a time, with a line for each as it ends."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="tunstack-mutants-") as top:
        free: queue.SimpleQueue[pathlib.Path] = queue.SimpleQueue()
        for index in range(jobs):
            folder = pathlib.Path(top, str(index))
            folder.mkdir()
            copy_tree(folder)
            free.put(folder)
        folder = free.get()
        failure = baseline(folder, mutants)
        if failure is not None:
            sys.exit(f"without any fault the tests do not pass:\n{failure}")
        free.put(folder)

        def work(mutant: Mutant) -> Outcome:
            folder = free.get()
            try:
                return judge(folder, mutant)
            finally:
                free.put(folder)

        with concurrent.futures.ThreadPoolExecutor(jobs) as executor:
            for future in concurrent.futures.as_completed([executor.submit(work, one) for one in mutants]):
                outcome = future.result()
                outcomes.append(outcome)
                rfc, name = outcome.mutant.requirement
                print(
                    f"[{len(outcomes)}/{len(mutants)}] {outcome.verdict:8} {outcome.mutant.name} "
                    f"(RFC {rfc} {name}) {outcome.seconds:.1f} s: {outcome.detail}",
                    flush=True,
                )
    return outcomes


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants.run", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("names", nargs="*", help="which mutants (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    parser.add_argument("--list", action="store_true", help="print their names")
    options = parser.parse_args(arguments)
    mutants = load()
    if unknown := set(options.names) - {mutant.name for mutant in mutants}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    mutants = [mutant for mutant in mutants if not options.names or mutant.name in options.names]
    if options.list:
        print("\n".join(mutant.name for mutant in mutants))
        return 0
    start = time.monotonic()
    outcomes = run(mutants, options.jobs)
    counts = dict.fromkeys(("killed", "survived", "broken"), 0)
    for outcome in outcomes:
        counts[outcome.verdict] += 1
        if outcome.verdict != "killed":
            print(f"{outcome.verdict}: {outcome.mutant.name}: {outcome.detail}", file=sys.stderr)
    numbers = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    print(f"{len(outcomes)} mutants: {numbers}, in {time.monotonic() - start:.0f} s")
    return 0 if counts["killed"] == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
