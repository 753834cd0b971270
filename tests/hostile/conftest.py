"""A network of the test's own, so that no hostile packet can leave for anywhere."""

from __future__ import annotations

import concurrent.futures
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _unshare() -> None:
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@pytest.fixture
def in_private_network() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Runs a function in a thread that has a network namespace of its own, with `lo` up."""
    with concurrent.futures.ThreadPoolExecutor(1, initializer=_unshare) as executor:
        yield lambda function: executor.submit(function).result()
