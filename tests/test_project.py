"""The project around the package: what its files say to each other must be true."""

from __future__ import annotations

import ast
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHON_FILES = sorted(
    path
    for folder in ("tunstack", "tests", "bench", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# What is not finished; this file, which has to name it, is not searched.
LEFTOVER = re.compile(r"\b(TODO|FIXME|X{3}|NotImplementedError)\b|pragma: no cover|mark\.xfail")


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PYTHON_FILES, ids=relative)
def test_file_is_small_and_finished(path: pathlib.Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 800
    if path != pathlib.Path(__file__):
        assert [f"{n}: {line}" for n, line in enumerate(lines, 1) if LEFTOVER.search(line)] == []


@pytest.mark.parametrize(
    "path",
    [path for path in PYTHON_FILES if path.is_relative_to(ROOT / "tunstack") and path.stat().st_size],
    ids=relative,
)
def test_module_opens_with_what_it_is(path: pathlib.Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "dns": "dnspython",
    "importlinter": "import-linter",
    "mypy_extensions": "mypy-extensions",
    "pytest_trio": "pytest-trio",
}


def foreign_imports(folder: str) -> set[str]:
    """The distributions that the modules of `folder` import, the standard library left out."""
    trees = [ast.parse(path.read_text()) for path in PYTHON_FILES if path.is_relative_to(ROOT / folder)]
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return {DISTRIBUTIONS.get(name, name) for name in found - sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("tunstack", ["testing"]), ("bench", ["bench"]), ("tests", ["test"]), ("examples", [])],
)
def test_imports_are_declared(folder: str, extras: list[str]) -> None:
    project = PROJECT["project"]
    declared = project["dependencies"] + [x for e in extras for x in project["optional-dependencies"][e]]
    if folder == "tunstack":
        declared += [*PROJECT["build-system"]["requires"], "mypyc"]  # of build_*.py; mypyc is a part of mypy
    names = {re.split(r"[<>=!~; \[]", requirement)[0] for requirement in declared}
    ours = {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert foreign_imports(folder) - names - ours == set()


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_documents_name_make_targets_that_exist(path: pathlib.Path) -> None:
    named = set(re.findall(r"`make ([a-z-]+)", path.read_text()))
    assert named <= make_targets()


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_documents_link_to_files_that_exist(path: pathlib.Path) -> None:
    targets = re.findall(r"\]\((?![a-z]+:|#)([^)#]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_ci_runs_the_test_command_of_the_readme() -> None:
    ci = (ROOT / ".ci/run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()
    assert re.search(r"^stage .*\bmake test$", ci, re.M)
    assert re.search(r"^stage .*\bmake check$", ci, re.M)


@pytest.mark.parametrize(
    "target", ["demo", "test", "slow", "check", "conformance", "bench", "bench-quick", "sanitize"]
)
def test_make_target_makes_its_environment(target: str) -> None:
    if shutil.which("make") is None:
        pytest.fail("make is not installed")
    plan = subprocess.run(
        ["make", "-n", target, "VENV=/nonexistent/environment"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert plan.returncode == 0, plan.stderr
    assert "-m venv /nonexistent/environment" in plan.stdout
    assert "install" in plan.stdout


def test_allowed_skips_each_say_why() -> None:
    lines = (ROOT / "tests/allowed_skips.txt").read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith("#"):
            re.compile(line)
            assert before.startswith("# "), f"no reason above {line!r}"


def test_version_is_in_the_changelog_or_has_news() -> None:
    version = PROJECT["project"]["version"]
    news = [path for path in (ROOT / "news").glob("*.md") if path.name != "README.md"]
    assert news or f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "news").glob("*")), ids=relative)
def test_news_fragment_has_a_known_kind(path: pathlib.Path) -> None:
    kinds = {kind["directory"] for kind in PROJECT["tool"]["towncrier"]["type"]}
    assert path.name == "README.md" or re.fullmatch(rf"(\d+|\+[a-z-]+)\.({'|'.join(kinds)})\.md", path.name)


def test_licence_is_apache_2() -> None:
    assert PROJECT["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
