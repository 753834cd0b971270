"""The benchmark itself, run as people run it, on the topologies that it builds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.sandbox import family

ROOT = Path(__file__).parents[2]
BENCH = [
    *(sys.executable, "-c"),
    f"import sys; sys.path.append({str(ROOT)!r}); from bench.__main__ import main; main(prog_name='bench')",
]


# What each benchmark delivers: the options of a tiny run, then for each case and peer which values.
TINY = {
    "startup": (
        [],
        {
            ("attach", "tunstack"): {"first_packet", "idle_rss"},
            ("run -- true", "tunstack"): {"duration"},
            ("run -- true", "import trio"): {"duration"},
        },
    ),
    "requests": (
        ["--connections", "4"],
        {
            (4, 4, "tunstack"): {"rate", "p50", "p99", "p999", "cpu_each"},
            (4, 4, "veth"): {"rate", "p50", "p99", "p999"},
            ("requests", 1500, "tunstack"): {"share"},
        },
    ),
    "connects": (
        ["--connections", "4", "--families", "6"],
        {
            (4, 6, "tunstack"): {"rate", "p50", "p99", "p999", "cpu_each"},
            (4, 6, "veth"): {"rate", "p50", "p99", "p999"},
            ("connects", 1500, "tunstack"): {"share"},
        },
    ),
    "udp": (
        ["--sizes", "64"],
        {
            (64, direction, 4, peer): {"packets_per_second"}
            for direction in ("up", "down")
            for peer in ("tunstack", "veth")
        },
    ),
    "framed": (
        [],
        {
            ("framed", 1500, "tunstack"): {"share"},
            **{
                (1500, direction, "tunstack"): {"bits_per_second", "cpu_per_gb"}
                for direction in ("up", "down", "across")
            },
            (1500, "across", "tunstack, up"): {"bits_per_second", "cpu_per_gb"},
            **{
                (1500, direction, "tunstack at a TAP"): {"bits_per_second", "cpu_per_gb", "retransmits"}
                for direction in ("up", "down")
            },
        },
    ),
    "agent": (
        ["--directions", "up"],
        {
            (1500, link, "up", peer): {"bits_per_second", "cpu_per_gb", "retransmits"}
            for link in ("plain", "headers")
            for peer in ("tunstack", "tunstack at a TAP")
        },
    ),
    "routes": (
        [],
        {
            (1500, direction, peer): {"bits_per_second"}
            for direction in ("up", "down")
            for peer in ("tunstack", "tunstack, to TCP")
        },
    ),
    "tun": (
        ["--mtu", "1500", "--families", "4"],
        {
            (1500, 4, direction, peer): {"bits_per_second", "cpu_per_gb", "retransmits"}
            for direction in ("up", "down")
            for peer in ("tunstack", "tunstack at a TAP")
        },
    ),
    "flows": (
        ["--idle", "20"],
        {(20, "tunstack"): {"bytes_per_flow", "slowdown", "p50"}},
    ),
    "throughput": (
        ["--mtu", "1500", "--flows", "2", "--directions", "both", "--families", "4"],
        {
            (1500, "both", 2, 4, "tunstack"): {"bits_per_second", "cpu_per_gb", "retransmits"},
            (1500, "both", 2, 4, "veth"): {"bits_per_second", "retransmits"},
            ("throughput", 1500, "tunstack"): {"share"},
        },
    ),
}
MAY_BE_ZERO = {"retransmits", "cpu_each", "cpu_per_gb", "bytes_per_flow", "share"}
"""In a run this short: CPU time is counted in 10 ms, memory may be there already, flows may end at once."""


SELDOM = ("agent", "flows", "framed", "tun", "udp")
"""Those that take longest; the others use the same parts."""


@pytest.mark.netns
@pytest.mark.parametrize(
    "benchmark", [pytest.param(name, marks=[pytest.mark.slow] * (name in SELDOM)) for name in TINY]
)
def test_a_tiny_run(benchmark: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    options, expected = TINY[benchmark]
    done = subprocess.run(
        [
            *(*BENCH, benchmark, *options, "--rounds", "1", "--seconds", "0.3"),
            *("--peers", "tunstack,veth", "--json", str(file)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(file.read_text())
    assert document["errors"] == []
    found = {(*s["case"].values(), s["peer"]): s["values"] for s in document["samples"]}
    assert {key: set(values) for key, values in found.items()} == expected
    for values in found.values():
        assert all(value > 0 for name, value in values.items() if name not in MAY_BE_ZERO)
    assert f"## {benchmark}" in done.stdout
    assert "in all about" in done.stderr
    assert "round 1 tunstack" in done.stderr


@pytest.mark.netns
def test_the_files_of_a_run(tmp_path: Path) -> None:
    command = [*BENCH, "requests", "--connections", "1", "--rounds", "1", "--seconds", "0.1"]
    done = subprocess.run(
        [*command, "--peers", "veth,gvproxy", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # As on a machine that has tools in these places only; no gvproxy is among Debian's.
        env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gvproxy is left out: gvproxy is not installed" in done.stderr
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("results.json", "results.md"),
        *("requests-rate.svg", "requests-p99.svg"),
    }
    table = (tmp_path / "out" / "results.md").read_text()
    assert table in done.stdout
    assert "![requests-rate](requests-rate.svg)" in table
    assert "gvproxy is not installed" in table


@pytest.mark.netns
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_its_end_is_the_end_of_all_that_it_started(number: signal.Signals, tmp_path: Path) -> None:
    command = [*BENCH, "throughput", "--rounds", "1", "--seconds", "20", "--mtu", "1500", "--peers", "veth"]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as bench:
        assert bench.stderr is not None
        assert any("starting veth" in line for line in bench.stderr)
        deadline = time.monotonic() + 10
        started: list[int] = []
        # bench, unshare, process 1, a guest, an iperf3 server and its client through nsenter
        while len(started) < 6 and time.monotonic() < deadline:
            started = list(family(bench.pid))
            time.sleep(0.05)
        assert len(started) >= 6
        if number == signal.SIGINT:
            os.killpg(bench.pid, number)  # as a terminal does
        else:
            bench.send_signal(number)
        assert bench.wait(10) != 0
    deadline = time.monotonic() + 5
    while (left := [pid for pid in started if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    if number != signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peers", "carrier"], "no peer 'carrier'"),
        (["--flows", "0"], "1 to 128 flows"),
        (["--directions", "left"], "no direction 'left'"),
        (["--mtu", "big"], "not a list of numbers"),
        (["--mtu", "100"], "between 576 and 65520"),
        (["--rounds", "0"], "0 is not in the range"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: list[str], said: str) -> None:
    done = subprocess.run([*BENCH, "throughput", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
