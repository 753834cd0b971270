"""Libraries of Windows, loaded only from where nobody else can have put them, and their errors.

A plain search would also look in the current directory and in PATH. Source: LoadLibraryExW's page.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import cffi

SEARCH_DLL_DIRECTORY, SEARCH_APPLICATION, SEARCH_SYSTEM = 0x100, 0x200, 0x800
"""LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR, _APPLICATION_DIR, _SYSTEM32."""


class DllError(OSError):
    """A library has refused; the message is one sentence that says what to do.

    Attributes:
        code: the error of Windows.
    """

    sentences: ClassVar[Mapping[int, str]] = {}
    """What to say of an error."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(code, f"{what}: {self.sentences.get(code, f'Windows says error {code}')}")
        self.code = code


if sys.platform == "win32":
    _ffi: Any = cffi.FFI()
    _ffi.cdef(
        "void *__stdcall LoadLibraryExW(const wchar_t *name, void *file, uint32_t flags);"
        "uint32_t __stdcall GetLastError(void);"
    )
    _kernel: Any = _ffi.dlopen("kernel32.dll")

    def last_error() -> int:
        """The error of this thread's last call by cffi, which keeps it between its calls."""
        return int(_kernel.GetLastError())

    def load_dll(ffi: Any, path: str, flags: int) -> Any:
        """The library, with what `ffi` declares; `flags`: where it and what it needs are looked for.

        Raises:
            OSError: it cannot be loaded; `errno` is the error of Windows.
        """
        handle = _kernel.LoadLibraryExW(path, _ffi.NULL, flags)
        if not handle:
            raise OSError(last_error(), "it cannot be loaded", path)
        return ffi.dlopen(ffi.cast("void *", int(_ffi.cast("uintptr_t", handle))))
