"""What is compiled is there, and is not what interpreted code inherits from."""

from __future__ import annotations

import importlib
import pathlib
import pkgutil
from typing import Protocol

import pytest

import tunstack
from tunstack.native import build_core

NOT_IMPORTED = ("__main__", "_helper", "_kernel_user", "build_native", "build_core")
"""Programs, and what is run at the root of the source tree."""
ROOT = pathlib.Path(tunstack.__file__).parents[1]


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.chdir(ROOT)  # in a wheel the sources lie beside what was made of them
    return set(build_core.sources())


def test_all_that_is_listed_exists(sources: set[str]) -> None:
    assert all((ROOT / name).is_file() for name in sources)
    assert all((ROOT / "tunstack" / name).is_file() for name in build_core.LEFT_OUT)
    assert {"tunstack/tcp/endpoint.py", "tunstack/gateway/engine.py", "tunstack/nat/udp.py"} <= sources
    assert not sources & {f"tunstack/{name}" for name in build_core.LEFT_OUT}


def test_no_interpreted_class_inherits_from_a_compiled_one(sources: set[str]) -> None:
    """Python would refuse it at import, but only where the core is compiled."""
    compiled = {name.removesuffix(".py").replace("/", ".") for name in sources}
    seen = 0
    for info in pkgutil.walk_packages(tunstack.__path__, "tunstack."):
        if info.name in compiled or info.name.endswith(NOT_IMPORTED):
            continue
        for thing in vars(importlib.import_module(info.name)).values():
            if isinstance(thing, type) and thing.__module__ == info.name:
                seen += 1
                bases = [base for base in thing.__mro__[1:] if Protocol not in base.__bases__]
                bases = [
                    one for one in bases if f"{one.__module__}.{one.__qualname__}" not in build_core.OPEN
                ]
                assert not {base.__module__ for base in bases} & compiled, thing
    assert seen > 100
