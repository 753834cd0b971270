"""Makes `bench` importable, no part of the package: last on the path, so that nothing else changes."""

from __future__ import annotations

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2]))
