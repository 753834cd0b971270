"""Builds the C helper; everything else about the package is in pyproject.toml.

The extension is optional: without a working compiler the install succeeds and
`tunstack.native` runs its Python twin. `TUNSTACK_STRICT_BUILD=1` (CI) makes a
failure, and every compiler warning, fatal.
"""

from __future__ import annotations

import os

from setuptools import setup
from setuptools.command.build_ext import build_ext


class BuildOptionalExtension(build_ext):
    """build_ext, for extensions that may fail to build."""

    def finalize_options(self) -> None:
        super().finalize_options()
        strict = os.environ.get("TUNSTACK_STRICT_BUILD", "0") not in ("", "0")
        for extension in self.extensions:
            extension.optional = not strict


setup(
    cffi_modules=["tunstack/native/build_native.py:ffibuilder"],
    cmdclass={"build_ext": BuildOptionalExtension},
)
