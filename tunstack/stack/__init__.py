"""The sans-IO composition of link, IP, ICMP, UDP and TCP for one attached network.

`Stack` is what everybody above uses; its parts, and which of them may know which, are listed in
docs/architecture.md.
"""

from __future__ import annotations

from tunstack.stack.events import Event
from tunstack.stack.stack import Stack

__all__ = ["Event", "Stack"]
