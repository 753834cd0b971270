"""The tables and plots of a run, and the description of the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.choices import FULL, QUICK, Settings, jobs
from bench.peers import PEERS
from bench.report import Document, machine, number, render
from bench.sample import Case, Sample

CASE: Case = (("mtu", 1500), ("direction", "up"), ("flows", 1), ("IPv", 4))


def document(samples: list[Sample], errors: tuple[str, ...] = ()) -> Document:
    plans = {job.name: job.plan for job in jobs(["throughput"], FULL, {"peers": ("tunstack", "pasta")})}
    return Document(
        machine=machine(["veth"]),
        plans=plans,
        samples=samples,
        errors=errors,
        notes=["gvproxy is left out: gvproxy is not installed"],
    )


def sample(peer: str, rate: float, number: int = 1) -> Sample:
    return Sample(
        benchmark="throughput", case=CASE, peer=peer, round=number, values={"bits_per_second": rate}
    )


def test_the_table_shows_what_was_measured_and_what_failed() -> None:
    run = document(
        [sample("tunstack", 7.5e9), sample("tunstack", 8.5e9, 2), sample("pasta", 2.5e9)],
        ("veth, MTU 1500: no such device",),
    )
    table = render(run)
    assert "| 1500 | up | 1 | 4 | 8 (7.5 – 8.5) | 2.5 | 3.20 | **✗ ≥ 4 × the best peer: 3.2** |" in table
    assert "- failed: veth, MTU 1500: no such device" in table
    assert "gvproxy is not installed" in table
    assert "| 0 of 1 | 3.2 (mtu 1500, up, flows 1, IPv 4) | **✗** |" in table


def test_the_json_holds_samples_summary_and_verdicts() -> None:
    run = document([sample("tunstack", 7.5e9), sample("pasta", 2.5e9)])
    found = json.loads(run.as_json())
    assert found == json.loads(json.dumps(run.as_dict()))
    assert [(s["peer"], s["values"]) for s in found["samples"]] == [
        ("tunstack", {"bits_per_second": 7.5e9}),
        ("pasta", {"bits_per_second": 2.5e9}),
    ]
    assert [(row["peer"], row["ratio"]) for row in found["summary"]] == [("tunstack", 3.0), ("pasta", 1.0)]
    assert [(v["target"], v["met"]) for v in found["verdicts"]] == [("≥ 4 × the best peer", False)]
    assert found["plans"]["throughput"]["rounds"] == FULL["throughput"]["rounds"]


def test_a_busy_machine_is_said_to_be_one() -> None:
    run = document([sample("tunstack", 1e9)])
    run.machine = {**run.machine, "load_before": 3.0}
    assert "the machine was busy" in render(run)
    run.machine = {**run.machine, "load_before": 0.1}
    assert "the machine was busy" not in render(run)


def test_the_machine_is_described() -> None:
    about = machine(["veth", "tunstack"])
    assert about["cores"] >= 1
    assert about["memory_mib"] > 0
    assert set(about["peers"]) == {"veth", "tunstack"}


@given(st.floats(0.001, 1e12))
def test_a_number_keeps_three_digits(value: float) -> None:
    text = number(value)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.006)
    assert "e" not in text


def test_plots_are_written(tmp_path: Path) -> None:
    """In a process of its own: matplotlib's warnings are not this project's."""
    program = f"""
import sys
sys.path.append({str(Path(__file__).parents[2])!r})
from pathlib import Path
from bench.plots import plot
from bench.sample import Sample, summarise
A = (("size", 64), ("direction", "up"), ("IPv", 4))
B = (("size", 64), ("direction", "down"), ("IPv", 4))
print(*plot(summarise([
    Sample(benchmark="udp", case=case, peer=peer, round=1, values={{"packets_per_second": 1e5}})
    for case in (A, B) for peer in ("tunstack", "veth")
]), Path({str(tmp_path)!r})))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["udp-packets-per-second.svg"], done.stderr
    drawing = (tmp_path / "udp-packets-per-second.svg").read_text()
    assert drawing.rstrip().endswith("</svg>")
    assert "tunstack" in drawing


@pytest.mark.parametrize(("settings", "minutes"), [(FULL, 43), (QUICK, 4)])
def test_a_run_is_estimated_to_take_as_long_as_is_said(settings: Settings, minutes: float) -> None:
    found = jobs(settings, settings, {"peers": PEERS})
    assert sum(job.plan.estimate for job in found) < minutes * 60


def test_options_change_the_plan() -> None:
    (job,) = jobs(
        ["udp"], QUICK, {"peers": ("veth",), "rounds": 7, "seconds": None, "sizes": (99,), "mtus": (1,)}
    )
    assert (job.plan.rounds, job.plan.seconds) == (7, QUICK["udp"]["seconds"])
    assert vars_of(job.plan)["sizes"] == (99,)
    assert "mtus" not in vars_of(job.plan)


def vars_of(plan: object) -> dict[str, object]:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}  # type: ignore[attr-defined]
