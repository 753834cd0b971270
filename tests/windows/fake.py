"""The stand-ins for DLLs, built where a compiler is; that of wintun.dll is steered as its driver would be."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import cffi

from tunstack.link.devices import wintun_api

HERE = pathlib.Path(__file__).parent
VARIABLE = "TUNSTACK_FAKES"
"""Names the folder of the built libraries where there is no compiler, which is on Windows."""
FLAGS = ("-shared", "-Wall", "-Wextra", "-Werror", "-O1", "-g")

_ffi: Any = cffi.FFI()
_ffi.cdef("""
int32_t __stdcall FakeInject(const char16_t *name, const uint8_t *packet, uint32_t size);
int32_t __stdcall FakeCollect(const char16_t *name, uint8_t *packet, uint32_t room);
void __stdcall FakeWake(const char16_t *name);
void __stdcall FakeTerminate(const char16_t *name);
void __stdcall FakeCorrupt(const char16_t *name);
void __stdcall FakeFail(uint32_t times, uint32_t code);
uint64_t __stdcall FakeCount(uint32_t which);
void __stdcall FakeLog(int32_t level, const char16_t *text);
""")


def build(name: str, folder: str, compiler: str = "cc", suffix: str = ".so") -> str:
    """Compile the library `name` into `folder`; gives the file."""
    file = os.path.join(folder, name + suffix)
    extra = () if suffix == ".dll" else ("-fPIC", "-pthread")
    subprocess.run([compiler, *FLAGS, *extra, "-o", file, str(HERE / f"{name}.c")], check=True)
    return file


@functools.cache
def file_of(name: str) -> str:
    """The file of the library `name`."""
    folder = os.environ.get(VARIABLE)
    return os.path.join(folder, f"{name}.dll") if folder else build(name, tempfile.mkdtemp(prefix="fakes-"))


def library() -> wintun_api.Library:
    """The stand-in for wintun.dll, as the code under test loads that."""
    return wintun_api.load(file_of("fakewintun"))


class Fake:
    """The driver's side of an adapter."""

    def __init__(self, name: str) -> None:
        self.name = name
        library()
        self._functions = _ffi.dlopen(file_of("fakewintun"))
        self._buffer = _ffi.new("uint8_t[]", 65536)

    def inject(self, packet: bytes) -> bool:
        """A packet for the application; False: it was lost."""
        return bool(self._functions.FakeInject(self.name, packet, len(packet)))

    def collect(self) -> bytes | None:
        """The application's next packet."""
        size = self._functions.FakeCollect(self.name, self._buffer, 65536)
        return None if size < 0 else bytes(_ffi.buffer(self._buffer, size))

    def collect_all(self) -> list[bytes]:
        """All that there are."""
        return list(iter(self.collect, None))

    def wake(self) -> None:
        """Set the event, without a packet."""
        self._functions.FakeWake(self.name)

    def terminate(self) -> None:
        """Take the adapter away."""
        self._functions.FakeTerminate(self.name)

    def corrupt(self) -> None:
        """Break the ring."""
        self._functions.FakeCorrupt(self.name)

    def fail(self, times: int, code: int) -> None:
        """Let attempts to make an adapter fail."""
        self._functions.FakeFail(times, code)

    def log(self, level: int, text: str) -> None:
        """Say something from a thread of the DLL's."""
        self._functions.FakeLog(level, text)

    @property
    def lost(self) -> tuple[int, int]:
        """Packets that were lost to the application, and those of it that were no IP."""
        return self._functions.FakeCount(0), self._functions.FakeCount(1)

    @property
    def open(self) -> tuple[int, int]:
        """Sessions and adapters."""
        return self._functions.FakeCount(2), self._functions.FakeCount(3)


def handles() -> int:
    """Descriptors of this process, or on Windows handles."""
    if sys.platform == "win32":
        ffi: Any = cffi.FFI()
        ffi.cdef("int32_t GetProcessHandleCount(void *, uint32_t *); void *GetCurrentProcess(void);")
        kernel, count = ffi.dlopen("kernel32.dll"), ffi.new("uint32_t *")
        kernel.GetProcessHandleCount(kernel.GetCurrentProcess(), count)
        return int(count[0])
    return len(os.listdir("/proc/self/fd"))
