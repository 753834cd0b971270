"""Reads the files that `trace FILE` names; the shaping itself opens none."""

from __future__ import annotations

from tunstack.link.shaping.trace import Trace, parse
from tunstack.link.shaping.units import ShapeError

MAX_FILE = 64 * 2**20
"""Characters of a file that is read."""


def load(path: str) -> Trace:
    """The trace in the file `path`; see `tunstack.link.shaping.trace`.

    Raises:
        ShapeError: it cannot be read, or is no trace.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ShapeError(f"trace: '{path}': {error.strerror}") from None
    except ValueError:  # not UTF-8, or a name with a null character
        raise ShapeError(f"trace: '{path}' is not text") from None
    if len(text) > MAX_FILE:
        raise ShapeError(f"trace: '{path}' has more than {MAX_FILE} characters")
    try:
        return parse(text)
    except ShapeError as error:
        raise ShapeError(f"trace: '{path}': {error}") from None
