"""The demonstration: its table and exit status, its verdicts, and the guest over memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunstack.demo import __main__ as demo
from tunstack.demo import in_memory, in_namespace


def test_over_memory_everything_works() -> None:
    reports: list[dict[str, Any]] = []
    in_memory.demonstrate(reports.append, bulk=2 * in_memory.MIB)
    assert len(reports) == 6
    assert [report for report in reports if not report["ok"]] == []


@pytest.mark.netns
def test_with_a_namespace_guest_everything_works(tmp_path: Path) -> None:
    """As `make demo` runs it; the small sizes only save time here."""
    script = (
        "import sys; from tunstack.demo import __main__ as d, in_namespace as n; "
        "n.BULK = n.FETCH = 4 << 20; n.PUBLISHED = 1 << 20; sys.exit(d.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a network namespace of this kernel" in done.stdout
    assert "all 13 ok" in done.stdout


def test_a_failure_is_shown_and_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def demonstrate(tried: Any) -> None:
        tried({"what": "one thing", "ok": True, "result": "[fine]"})
        tried({"what": "another", "ok": False, "result": "no answer"})

    monkeypatch.setattr(in_namespace, "why_not", lambda: None)
    monkeypatch.setattr(in_namespace, "demonstrate", demonstrate)
    assert demo.main() == 1
    out = capsys.readouterr().out
    assert "[fine]" in out
    assert "1 of 2 failed" in out


def test_no_namespace_means_the_guest_over_memory_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(in_namespace, "why_not", lambda: "/dev/net/tun: Permission denied")
    monkeypatch.setattr(
        in_memory, "demonstrate", lambda tried: tried({"what": "a", "ok": True, "result": "b"})
    )
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert "/dev/net/tun: Permission denied" in out
    assert "a second tunstack in this process" in out


@pytest.mark.netns
def test_why_not_tries_what_is_needed() -> None:
    assert in_namespace.why_not() is None
    # Without unshare on the path there is no namespace, and the reason names it.
    script = "from tunstack.demo import in_namespace as n; print(n.why_not())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("unshare")
