"""Tests of `native` run on both twins."""

from __future__ import annotations

import importlib
import types

import pytest


@pytest.fixture(params=["pure", "accelerated"])
def twin(request: pytest.FixtureRequest) -> types.ModuleType:
    return pytest.importorskip(
        f"tunstack.native.{request.param}", reason="the C helper was not built", exc_type=ImportError
    )


@pytest.fixture
def twins() -> tuple[types.ModuleType, types.ModuleType]:
    """The C helper and its pure-Python twin."""
    helper = pytest.importorskip(
        "tunstack.native.accelerated", reason="the C helper was not built", exc_type=ImportError
    )
    return helper, importlib.import_module("tunstack.native.pure")
