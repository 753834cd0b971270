"""The kinds of access: each can be built, and is told of where people look."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tunstack.link.shaping.pipeline import build
from tunstack.link.shaping.profiles import PROFILES, find
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.packet import Packet

DOCS = Path(__file__).parents[3] / "docs" / "shaping.md"


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_delays_and_is_in_the_help_and_in_the_docs(name: str) -> None:
    profile = find(name.upper())
    text = DOCS.read_text()
    for words in (profile.up, profile.down):
        spec = ShapeSpec.parse(words)
        pipeline = build(spec, 1)
        pipeline.push(Packet(bytes(1514)), 0.0)
        due = pipeline.next_timeout()
        assert spec.rate and (due is None or due >= 1514 * 8 / spec.rate - 1e-9)
    row = f"| `{name}` | {profile.what} | `{profile.up}` | `{profile.down}` | {profile.source} |"
    assert row in text


def test_an_unknown_profile_is_told_with_all_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown profile 'isdn'; there are fiber, .*geo$"):
        find("isdn")


@pytest.mark.parametrize("command", ["run", "attach", "gateway"])
def test_all_profiles_are_in_the_help(command: str) -> None:
    words = [sys.executable, "-m", "tunstack", command, "--help"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    _, _, told = " ".join(said.split()).partition("a kind of access does: ")
    assert told.partition(".")[0].split(", ") == list(PROFILES)
