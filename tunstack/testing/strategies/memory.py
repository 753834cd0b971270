"""Strategies that are made once: building one again for every value costs more than drawing from it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


def remembered(make: Callable[P, T]) -> Callable[P, T]:
    """A function that gives the same strategy again for the same arguments, which must be hashable."""
    return cast(Callable[P, T], functools.cache(make))
