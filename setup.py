"""Builds what is not plain Python; everything else about the package is in pyproject.toml.

Two parts, both optional: the C helper (`tunstack/native/build_native.py`), in whose place `tunstack.native`
has a Python twin, and the compiled protocol core (`tunstack/native/build_core.py`), which is the same
Python, faster. An editable install leaves the core as it is written: compiled modules would hide what is
edited.

`TUNSTACK_STRICT_BUILD=1` (CI) makes a failure, and every warning of the compiler about the C helper, fatal.
`TUNSTACK_COMPILE=0` leaves the core interpreted.
"""

from __future__ import annotations

import os
import pathlib
import runpy
import shlex
import subprocess
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

STRICT = os.environ.get("TUNSTACK_STRICT_BUILD", "0") not in ("", "0")
COMPILE = os.environ.get("TUNSTACK_COMPILE", "1") not in ("", "0")


def _has_compiler() -> bool:
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    try:
        return not subprocess.run([*command, "--version"], capture_output=True, check=False).returncode
    except OSError:
        return False


def _core() -> list[Extension]:
    """The extensions of the compiled core; none if they cannot be made."""
    path = pathlib.Path(__file__).with_name("tunstack") / "native" / "build_core.py"
    try:
        made: list[Extension] = runpy.run_path(str(path))["extensions"]()
    except (ImportError, SystemExit) as error:
        if STRICT:
            raise
        print(f"tunstack: the protocol core stays interpreted: {error}")
        return []
    return made


class BuildOptionalExtensions(build_ext):
    """build_ext, for extensions that may fail to build."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self._library: Extension | None = None
        self._shims: set[str] = set()

    def finalize_options(self) -> None:
        super().finalize_options()
        for extension in self.extensions:
            extension.optional = not STRICT

    def run(self) -> None:
        # Not before: only now it is known whether the installation is editable.
        if COMPILE and not self.inplace and not self.editable_mode and _has_compiler() and (core := _core()):
            self._library = core[0]
            self._shims = {extension.name for extension in core[1:]}
            self.distribution.ext_modules = [*self.distribution.ext_modules, *core]
            self.swig_opts = None  # else it cannot be finalized twice
            self.finalize_options()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Build one; a shim only if the library that it needs has been built."""
        if ext.name in self._shims:
            assert self._library is not None
            if not os.path.exists(self.get_ext_fullpath(self._library.name)):
                return
        super().build_extension(ext)


setup(
    cffi_modules=["tunstack/native/build_native.py:ffibuilder"],
    cmdclass={"build_ext": BuildOptionalExtensions},
)
