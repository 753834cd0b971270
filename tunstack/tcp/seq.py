"""Arithmetic on sequence numbers, modulo 2**32 (RFC 9293 section 3.4).

Sequence numbers are never compared with `<`: the order of two of them is that of their
distance, which is meaningful while they are less than 2**31 apart.
"""

from __future__ import annotations

MASK = 0xFFFFFFFF
_HALF = 0x80000000


def add(seq: int, count: int) -> int:
    """`seq` moved by `count` bytes, which may be negative."""
    return (seq + count) & MASK


def diff(a: int, b: int) -> int:
    """How many bytes `a` is after `b`; negative if it is before."""
    return ((a - b + _HALF) & MASK) - _HALF


def lt(a: int, b: int) -> bool:
    """`a` is before `b`."""
    return (a - b) & _HALF != 0


def le(a: int, b: int) -> bool:
    """`a` is before `b`, or equal."""
    return (b - a) & _HALF == 0


def between(low: int, seq: int, high: int) -> bool:
    """`seq` lies in the half-open interval [low, high)."""
    return (seq - low) & MASK < (high - low) & MASK
