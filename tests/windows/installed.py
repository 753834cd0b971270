"""Whether what is installed is the wheel for Windows; run within it as `test_installed.py`, see wine.py."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import subprocess
import sys

import tunstack
from tunstack import native
from tunstack.cli import main


def test_the_helper_is_there_and_used() -> None:
    assert pathlib.Path(tunstack.__file__).is_relative_to(os.environ["TUNSTACK_EXPECT_UNDER"])
    assert (native.implementation, native.warning) == ("c", None)


def test_the_command_is_installed() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="tunstack")
    assert script.load() is main
    (wheel,) = (file for file in importlib.metadata.files("tunstack") or () if file.name == "WHEEL")
    assert "Tag: cp311-abi3-win_amd64" in wheel.read_text()


def test_it_starts_without_a_complaint() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tunstack", "--version"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.split() and "C helper, interpreted core" in done.stdout, done.stdout + done.stderr
    assert not done.stderr
