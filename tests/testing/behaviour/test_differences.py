"""The table of differences holds nothing that is no difference, and nothing that no test looks at."""

from __future__ import annotations

from pathlib import Path

from tests.testing.behaviour.differences import DIFFERENCES


def test_each_entry_is_a_difference_with_a_reason() -> None:
    for name, entry in DIFFERENCES.items():
        assert entry.tunstack != entry.linux, name
        assert len(entry.reason.split()) >= 5, name


def test_each_entry_is_looked_at() -> None:
    here = Path(__file__).parent
    text = "".join(file.read_text() for file in here.glob("test_*.py") if file.name != Path(__file__).name)
    for name in DIFFERENCES:
        assert f'differs("{name}")' in text, name
