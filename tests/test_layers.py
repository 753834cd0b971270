"""The layers of docs/architecture.md: the import contracts hold, and each of them can be broken."""

from __future__ import annotations

import ast
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import tunstack

PACKAGE = pathlib.Path(tunstack.__file__ or "").parent
CONFIG = pathlib.Path(__file__).parent.parent / "pyproject.toml"

CORE = [
    *(PACKAGE / f"{name}.py" for name in ("packet", "limits", "errors", "timers")),
    *(path for room in ("link", "ip", "tcp", "stack") for path in (PACKAGE / room).rglob("*.py")),
]


def lint_imports(root: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts for the package `tunstack` in `root`."""
    program = f"import importlinter.cli as c, sys; sys.exit(c.lint_imports({str(CONFIG)!r}, no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_contracts_hold() -> None:
    done = lint_imports(PACKAGE.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("packet.py", "import tunstack.ip", "No room imports from a room above it"),
        ("link/__init__.py", "import tunstack.tcp", "No room imports from a room above it"),
        ("nat/__init__.py", "import tunstack.gateway", "No room imports from a room above it"),
        ("stack/network.py", "import tunstack.stack.icmp", "No part of the stack knows"),
        ("newroom/__init__.py", "", "No room imports from a room above it"),
        ("timers.py", "import time", "The protocol core has no clock"),
        ("link/ethernet.py", "import socket", "The protocol core has no clock"),
        ("tcp/__init__.py", "import trio", "The protocol core has no clock"),
        ("stack/network.py", "from os import urandom", "The protocol core has no clock"),
        ("native/__init__.py", "import threading", "The native side has no clock"),
        ("nat/__init__.py", "import tunstack.link.devices.extra", "Only gateway and agent know the devices"),
        ("cli/__init__.py", "import tunstack.testing", "Nothing that runs in production"),
        ("cli/run.py", "import tunstack.testing.packetdrill", "Nothing that runs in production"),
        ("testing/packets/__init__.py", "import hypothesis", "Of the test tools only the strategies"),
    ],
)
def test_a_contract_breaks(tmp_path: pathlib.Path, file: str, line: str, contract: str) -> None:
    shutil.copytree(PACKAGE, tmp_path / "tunstack", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tunstack/link/devices/extra.py").touch()
    broken = tmp_path / "tunstack" / file
    broken.parent.mkdir(exist_ok=True)
    with broken.open("a") as out:
        out.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    verdicts = [text for text in done.stdout.splitlines() if text.startswith(contract)]
    assert any("BROKEN" in text for text in verdicts), done.stdout + done.stderr


def hidden_inputs(tree: ast.AST) -> list[str]:
    """Calls by which a module would get randomness or bytes that nobody handed to it."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="random"), attr=name)) if name != "Random":
                found.append(f"line {node.lineno}: random.{name}()")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="random"), attr="Random"), args=[]):
                found.append(f"line {node.lineno}: random.Random() without a seed")
            case ast.ImportFrom(module="random", names=names) if any(n.name != "Random" for n in names):
                found.append(f"line {node.lineno}: from random import ...")
            case ast.Call(func=ast.Name(id="open" | "print" | "input" as name)):
                found.append(f"line {node.lineno}: {name}()")
    return found


@pytest.mark.parametrize(
    "path",
    [path for path in CORE if "devices" not in path.parts],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_the_core_takes_its_randomness_and_bytes_from_the_caller(path: pathlib.Path) -> None:
    assert hidden_inputs(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import random\nrandom.randrange(5)", 1),
        ("import random\nrandom.Random()", 1),
        ("from random import choice", 1),
        ("open('x')\nprint(1)", 2),
        ("import random\nrng = random.Random(5)\nrng.random()", 0),
    ],
)
def test_hidden_inputs_are_seen(source: str, count: int) -> None:
    assert len(hidden_inputs(ast.parse(source))) == count
