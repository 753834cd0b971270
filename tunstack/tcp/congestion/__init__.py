"""Congestion control: the interface in `base`, and who implements it."""

from __future__ import annotations

from collections.abc import Callable

from tunstack.tcp.congestion.base import AckBatch, CongestionControl, initial_window
from tunstack.tcp.congestion.cubic import Cubic
from tunstack.tcp.congestion.newreno import NewReno

ALGORITHMS: dict[str, Callable[[int], CongestionControl]] = {"cubic": Cubic, "newreno": NewReno}
"""By name; each is called with the MSS in bytes."""
DEFAULT = "cubic"

__all__ = ["ALGORITHMS", "DEFAULT", "AckBatch", "CongestionControl", "Cubic", "NewReno", "initial_window"]
