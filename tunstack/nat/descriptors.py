"""How many descriptors flows may use: what the process is allowed, less a reserve."""

from __future__ import annotations

import dataclasses
import sys

from tunstack.limits import Limits

RESERVE = 128
"""Descriptors kept for everything that is no flow: devices, listeners, services, the program itself."""


def raise_descriptor_limit() -> int | None:
    """Raise the soft limit of open descriptors to the hard one; the limit, or None if there is none."""
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass  # macOS refuses more than OPEN_MAX; what there is has to do
    return None if soft == resource.RLIM_INFINITY else soft


def fit(limits: Limits, descriptors: int | None) -> Limits:
    """The limits that a process with `descriptors` descriptors can keep.

    The reserve is at most half of what there is. UDP mappings may take half of the flows
    and dials a quarter, so that none of the kinds crowds the others out.
    """
    flows = limits.flows
    if descriptors is not None:
        flows = max(4, min(flows, descriptors - min(RESERVE, descriptors // 2)))
    return dataclasses.replace(
        limits,
        flows=flows,
        udp_mappings=min(limits.udp_mappings, flows // 2),
        pending_dials=min(limits.pending_dials, flows // 4),
        pending_dials_guest=min(limits.pending_dials_guest, flows // 4),
        echo_sessions=min(limits.echo_sessions, flows // 4),
    )


class Budget:
    """Counts the descriptors of flows against their limit."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, count: int = 1) -> bool:
        """So many more; False, and none, if that is beyond the limit."""
        if self.used + count > self.limit:
            return False
        self.used += count
        return True

    def give(self, count: int = 1) -> None:
        """So many less."""
        self.used -= count
