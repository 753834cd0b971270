"""The test tools work where hypothesis is not installed, but for the strategies."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import tunstack.testing

WITHOUT = """
import importlib, sys
sys.modules["hypothesis"] = None
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_only_the_strategies_need_hypothesis() -> None:
    found = pkgutil.walk_packages(tunstack.testing.__path__, "tunstack.testing.", onerror=lambda name: None)
    names = [module.name for module in found]
    others = [name for name in names if "strategies" not in name]
    assert len(others) > 10 and len(names) > len(others)
    subprocess.run([sys.executable, "-c", WITHOUT, *others], check=True)
    alone = subprocess.run(
        [sys.executable, "-c", WITHOUT, "tunstack.testing.strategies"], capture_output=True
    )
    assert b"ModuleNotFoundError: import of hypothesis" in alone.stderr
