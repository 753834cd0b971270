"""Which twin runs, what the user is told, and what an install does with and without a compiler."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROBE = """
import json, sys
{before}
from tunstack import native
print(json.dumps([native.implementation, native.warning, native.ones_sum(b"ab")]))
"""
WITHOUT_EXTENSION = "sys.modules['tunstack.native._native'] = None"


def probe(before: str = "", **environment: str) -> tuple[str, str | None]:
    """`implementation` and `warning` in a fresh interpreter where warnings are errors."""
    variables = {k: v for k, v in os.environ.items() if k != "TUNSTACK_PURE"} | environment
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE.format(before=before)],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    implementation, warning, total = json.loads(done.stdout)
    assert total == 0x6162
    return implementation, warning


def test_c_is_chosen_where_it_was_built(twins: object) -> None:
    assert probe() == ("c", None)
    assert probe(TUNSTACK_PURE="0") == ("c", None)


def test_the_twin_can_be_asked_for() -> None:
    assert probe(TUNSTACK_PURE="1") == ("python", None)
    assert probe(WITHOUT_EXTENSION, TUNSTACK_PURE="1") == ("python", None)


def test_a_missing_extension_is_told_to_the_user() -> None:
    implementation, warning = probe(WITHOUT_EXTENSION)
    assert implementation == "python"
    assert warning
    assert "slower" in warning
    assert "\n" not in warning


def build(tmp_path: pathlib.Path, **environment: str) -> tuple[int, list[pathlib.Path]]:
    """Status of `build_ext` on a copy of the sources, and the extensions that it made."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(
        ROOT / "tunstack",
        tree / "tunstack",
        ignore=shutil.ignore_patterns("*.so", "_native.c", "__pycache__"),
    )
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path / "lib")],
        cwd=tree,
        env=os.environ | environment,
        capture_output=True,
        check=False,
    )
    return done.returncode, list((tmp_path / "lib").rglob("_native*.so"))


@pytest.mark.slow
def test_without_a_compiler_the_build_succeeds(tmp_path: pathlib.Path) -> None:
    assert build(tmp_path, CC="/bin/false", TUNSTACK_STRICT_BUILD="0") == (0, [])


@pytest.mark.slow
def test_a_strict_build_without_a_compiler_fails(tmp_path: pathlib.Path) -> None:
    status, extensions = build(tmp_path, CC="/bin/false", TUNSTACK_STRICT_BUILD="1")
    assert status != 0
    assert not extensions


@pytest.mark.slow
def test_with_a_compiler_the_build_has_no_warnings(tmp_path: pathlib.Path) -> None:
    status, extensions = build(tmp_path, TUNSTACK_STRICT_BUILD="1")
    assert status == 0
    assert len(extensions) == 1
