"""Reads the files that the words of shaping name; the shaping itself opens none."""

from __future__ import annotations

from tunstack.link.shaping.units import ShapeError

MAX_FILE = 64 * 2**20
"""Characters of a file that is read."""


def read(path: str) -> str:
    """The text in the file `path`.

    Raises:
        ShapeError: it cannot be read, or is no text.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ShapeError(f"'{path}': {error.strerror}") from None
    except ValueError:  # not UTF-8, or a name with a null character
        raise ShapeError(f"'{path}' is not text") from None
    if len(text) > MAX_FILE:
        raise ShapeError(f"'{path}' has more than {MAX_FILE} characters")
    return text
