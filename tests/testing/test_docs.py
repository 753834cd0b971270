"""The Python examples of docs/testing run, page by page, each page's blocks in their order.

A block that is marked `python netns` needs a namespace.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "testing"
BLOCK = re.compile(r"^```python( netns)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OTHERS = {"packetdrill.md", "simulator.md", "system_calls.md"}
"""Pages that the tests of their own room run."""
NAMES = sorted(page.name for page in PAGES.glob("*.md") if page.name not in OTHERS)


def test_there_are_pages() -> None:
    assert {"index.md", "packets.md", "checkers.md", "peer.md", "strategies.md"} <= set(NAMES)


def run(name: str, *, namespaces: bool) -> None:
    """Run the blocks of a page, those that need namespaces only if they may."""
    text = (PAGES / name).read_text()
    found: dict[str, Any] = {"__name__": "documentation"}
    for block in BLOCK.finditer(text):
        if block[1] and not namespaces:
            continue
        line = text.count("\n", 0, block.start(2))
        exec(compile("\n" * line + block[2], str(PAGES / name), "exec"), found)


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert BLOCK.search((PAGES / name).read_text())
    monkeypatch.chdir(tmp_path)
    run(name, namespaces=False)


@pytest.mark.netns
@pytest.mark.parametrize("name", [name for name in NAMES if "```python netns" in (PAGES / name).read_text()])
def test_examples_that_need_a_namespace_run(name: str) -> None:
    run(name, namespaces=True)
