"""Measurements of tunstack beside its peers, on topologies that the measurement builds itself."""

import pathlib
import sys

_ROOT = str(pathlib.Path(__file__).resolve().parents[1])

# Behind everything else on the path: an installed tunstack is the one to measure.
sys.path[:] = [entry for entry in sys.path if entry not in ("", _ROOT)] + [_ROOT]
