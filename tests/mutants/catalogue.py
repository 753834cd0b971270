"""The faults: what each changes in the package, and which requirement it breaks.

Each `*.toml` beside this file lists the faults of one room, with `tests`, the folder inside `tests` where
their requirements are tested, and tables `[[mutant]]`:

    name          unique, what goes wrong
    file          inside the package
    original      the line that is changed, or a few lines in a row, once in the file; the common indentation
                  does not count
    replacement   what stands there instead
    requirement   number of the RFC and id, as in `@pytest.mark.rfc`

Lines are named by what they say, not by where they are, so that edits elsewhere do not disturb them; a line
that has changed is an error, since its fault would go untested.
"""

from __future__ import annotations

import dataclasses
import pathlib
import textwrap
import tomllib

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = pathlib.Path(__file__).parent


class Stale(Exception):
    """The original lines are not in their file, or more than once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Mutant:
    """One fault."""

    name: str
    file: str
    original: str
    replacement: str
    requirement: tuple[str, str]
    tests: str

    def apply(self, source: str) -> str:
        """`source` with the fault in it. Raises `Stale` unless the original lines are there exactly once."""
        lines = source.splitlines()
        original = _block(self.original)
        places = [
            index
            for index in range(len(lines) - len(original) + 1)
            if _block("\n".join(lines[index : index + len(original)])) == original
        ]
        if len(places) != 1:
            raise Stale(f"{self.name}: {len(places)} times in {self.file}: {self.original.strip()!r}")
        start = places[0]
        found = lines[start : start + len(original)]
        indent = min(len(line) - len(line.lstrip()) for line in found if line.strip())
        lines[start : start + len(original)] = [
            " " * indent + line if line else line for line in _block(self.replacement)
        ]
        return "\n".join(lines) + "\n"


def _block(text: str) -> list[str]:
    return textwrap.dedent(text.strip("\n")).rstrip().splitlines()


def load(folder: pathlib.Path = FOLDER) -> list[Mutant]:
    """All mutants. Raises `ValueError` if two have the same name."""
    mutants = []
    for path in sorted(folder.glob("*.toml")):
        room = tomllib.loads(path.read_text())
        for fields in room["mutant"]:
            rfc, name = fields.pop("requirement")
            mutants.append(Mutant(**fields, requirement=(rfc, name), tests=room["tests"]))
    names = [mutant.name for mutant in mutants]
    if len(names) != len(set(names)):
        raise ValueError(f"named twice: {sorted({name for name in names if names.count(name) > 1})}")
    return mutants
