"""What all tests share: hypothesis profiles, the `netns` marker, the account of skips, leak checks.

With CI=true a skip whose reason is not in allowed_skips.txt is a failure, so that a test
that could have run there cannot go quiet.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import types
from collections.abc import Generator, Iterator

import hypothesis
import pytest

import tunstack

CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")

# Speed is measured by bench/; a deadline per example would fail on a busy machine only.
hypothesis.settings.register_profile("dev", max_examples=100, deadline=None)
hypothesis.settings.register_profile(
    "ci",
    max_examples=100,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("nightly", max_examples=5000, deadline=None, print_blob=True)
# For what runs many times slower, as under a sanitizer.
hypothesis.settings.register_profile(
    "brief", hypothesis.settings.get_profile("ci"), max_examples=8, database=None
)
# For a package with a fault in it: that a test fails is the news, not how small its example can be made.
hypothesis.settings.register_profile(
    "mutants",
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if CI else "dev"))

# What a script starts in the background is born with these ignored, and a shell that is cannot trap them.
for _number, _handler in (signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

ALLOWED_SKIPS = pathlib.Path(__file__).with_name("allowed_skips.txt")

TAP_PROBE = """
import fcntl, os, struct
IFF_TAP, IFF_NO_PI, TUNSETIFF = 2, 0x1000, 0x400454CA
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"probe", IFF_TAP | IFF_NO_PI))
"""


@functools.cache
def why_no_namespaces() -> str | None:
    """Why tests in network namespaces cannot run here, or None if they can: it is tried, not guessed."""
    if os.geteuid() != 0:
        return "not root: network namespaces for tests are made as root"
    for what, command in (
        ("unshare -n true", ["unshare", "-n", "true"]),
        ("a TAP in a new namespace", ["unshare", "-n", sys.executable, "-ISc", TAP_PROBE]),
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{what} does not work here: {error}"
        if done.returncode != 0:
            reason = done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
            return f"{what} does not work here: {reason}"
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rfc",
        action="append",
        metavar="NUMBER:ID",
        help="run only tests that carry the marker of this requirement, as 9293:MUST-40; may be repeated",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Such an id is another one in each process: runs cannot be compared, and workers do not agree on it.
    if addresses := [item.nodeid for item in items if re.search(r" at 0x[0-9a-f]", item.nodeid)]:
        raise pytest.UsageError(f"a test is named by the address of an object: {addresses[0]}")
    wanted = config.getoption("--rfc")
    if wanted is None:
        return
    chosen, others = [], []
    for item in items:
        ids = {":".join(map(str, mark.args)) for mark in item.iter_markers("rfc")}
        (chosen if ids.intersection(wanted) else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = chosen


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("netns") and (why := why_no_namespaces()):
        pytest.skip(why)


def pytest_sessionstart(session: pytest.Session) -> None:
    expected = os.environ.get("TUNSTACK_EXPECT_UNDER")
    found = pathlib.Path(tunstack.__file__ or "").resolve()
    if expected and not found.is_relative_to(pathlib.Path(expected).resolve()):
        pytest.exit(f"tunstack was imported from {found}, not from under {expected}", returncode=4)


# The account of skips.


def allowed_skip_patterns(text: str) -> list[re.Pattern[str]]:
    """The patterns of allowed_skips.txt: one a line, empty lines and comments left out."""
    lines = (line.strip() for line in text.splitlines())
    return [re.compile(line) for line in lines if line and not line.startswith("#")]


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The reason as the test gave it, without pytest's "Skipped: " before it."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip that CI does not accept into a failure."""
    reason = skip_reason(report)
    if any(p.fullmatch(reason) for p in allowed_skip_patterns(ALLOWED_SKIPS.read_text())):
        return
    report.outcome = "failed"
    report.longrepr = f"skipped in CI, and the reason is not in {ALLOWED_SKIPS.name}: {reason}"


if CI:

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report: pytest.TestReport = yield
        if report.skipped and not hasattr(report, "wasxfail"):
            refuse_skip(report)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        collector: pytest.Collector,
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report: pytest.CollectReport = yield
        if report.skipped:
            refuse_skip(report)
        return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats
    passed = stats.get("passed", [])
    in_namespaces = sum("netns" in report.keywords for report in passed)
    reasons = collections.Counter(skip_reason(report) for report in stats.get("skipped", []))
    terminalreporter.section("passed and skipped")
    terminalreporter.line(f"{len(passed):6} passed, {in_namespaces} of them in network namespaces")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:6} skipped: {reason}")
    if not reasons:
        terminalreporter.line("     0 skipped")


# Fixtures.


@pytest.fixture(scope="session")
def lab() -> types.ModuleType:
    """The helpers in lab/processes.py, loaded by path: the tests are no package."""
    path = pathlib.Path(__file__).with_name("lab") / "processes.py"
    spec = importlib.util.spec_from_file_location("tunstack_lab_processes", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def open_descriptors() -> dict[int, str]:
    """The open file descriptors of this process and what they refer to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


@contextlib.contextmanager
def none_left_open() -> Iterator[None]:
    """Fail if the block leaves a file descriptor open that was not open before."""
    before = open_descriptors()
    yield
    left = {fd: what for fd, what in open_descriptors().items() if before.get(fd) != what}
    assert not left, f"left open: {left}"


@pytest.fixture
def no_descriptor_left() -> Iterator[None]:
    """Fail the test if it leaves a file descriptor open, be it for the garbage collector to close."""
    with none_left_open():
        yield


@pytest.fixture
def no_fd_leak() -> Iterator[None]:
    """Fail the test if it leaves a file descriptor open that the garbage collector does not close."""
    gc.collect()
    with none_left_open():
        yield
        gc.collect()
