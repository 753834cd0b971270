"""Builds a wheel for Windows on x86-64 by mingw: `python -m tests.windows.wheel [FOLDER]`, by default dist.

It is the wheel of this machine with another C helper in it: the portable part, by the stable ABI, so that one
file serves all Pythons from 3.11 on. The protocol core stays interpreted. `python3.dll`, which it is linked
to, need not be here: what the helper takes from it is known from the helper.
"""

from __future__ import annotations

import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from unittest import mock

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
COMPILER, SYMBOLS, LIBRARIAN = (f"x86_64-w64-mingw32-{tool}" for tool in ("gcc", "nm", "dlltool"))
FLAGS = ("-O3", "-std=c99", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-DPy_LIMITED_API=0x030b0000")
TAGS = ("--python-tag", "cp311", "--abi-tag", "abi3", "--platform-tag", "win_amd64")


def build(folder: pathlib.Path) -> pathlib.Path:
    """Make the wheel in `folder`; gives its file."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        helper = build_helper(work)
        for part in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            shutil.copy(ROOT / part, work)
        # A copy: what earlier builds have left in the tree must not get into this one.
        shutil.copytree(
            ROOT / "tunstack", work / "tunstack", ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps")
        run(*pip, "--wheel-dir", work / "own", work, environment={"TUNSTACK_COMPILE": "0"})
        (own,) = (work / "own").glob("*.whl")
        run(sys.executable, "-m", "wheel", "unpack", "--dest", work / "tree", own)
        (tree,) = (work / "tree").iterdir()
        for file in tree.rglob("*.so"):
            file.unlink()
        shutil.copy(helper, tree / "tunstack" / "native" / helper.name)
        (work / "packed").mkdir()
        run(sys.executable, "-m", "wheel", "pack", "--dest-dir", work / "packed", tree)
        (packed,) = (work / "packed").glob("*.whl")
        run(sys.executable, "-m", "wheel", "tags", "--remove", *TAGS, packed)
        (made,) = (work / "packed").glob("*.whl")
        return pathlib.Path(shutil.copy(made, folder / made.name))


def build_helper(work: pathlib.Path) -> pathlib.Path:
    """The extension module, in `work`."""
    headers = work / "include"
    shutil.copytree(sysconfig.get_paths()["include"], headers)
    shutil.copy(HERE / "pyconfig.h", headers)  # beside Python.h, which looks there first
    with mock.patch.object(sys, "platform", "win32"):
        builder = runpy.run_path(str(ROOT / "tunstack" / "native" / "build_native.py"))["ffibuilder"]
    _, _, _, options = builder._assigned_source
    builder.emit_c_code(str(work / "_native.c"))
    objects = []
    for source in (work / "_native.c", *(ROOT / source for source in options["sources"])):
        objects.append(work / f"{source.stem}.o")
        includes = ("-isystem", headers, *(f"-I{ROOT / folder}" for folder in options["include_dirs"]))
        run(COMPILER, *FLAGS, *includes, "-c", source, "-o", objects[-1])
    run(LIBRARIAN, "-d", definitions(work, objects), "-l", work / "libpython3.a")
    module = work / "_native.pyd"
    run(COMPILER, "-shared", "-s", "-o", module, *objects, work / "libpython3.a")
    return module


def definitions(work: pathlib.Path, objects: list[pathlib.Path]) -> pathlib.Path:
    """What python3.dll has that `objects` want."""
    said = subprocess.run(
        [SYMBOLS, "--undefined-only", "--format=posix", *objects], check=True, capture_output=True
    )
    names = {
        line.split()[0].removeprefix("__imp_") for line in said.stdout.decode().splitlines() if " U" in line
    }
    wanted = sorted(name for name in names if name.startswith(("Py", "_Py")))
    file = work / "python3.def"
    file.write_text("\n".join(["LIBRARY python3.dll", "EXPORTS", *wanted, ""]))
    return file


def run(*words: object, environment: dict[str, str] | None = None) -> None:
    """Run a program in the root of the tree that has to succeed."""
    subprocess.run(list(map(str, words)), check=True, cwd=ROOT, env={**os.environ, **(environment or {})})


if __name__ == "__main__":
    print(build(pathlib.Path(*sys.argv[1:2] or ("dist",)).resolve()))
