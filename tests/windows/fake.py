"""The stand-in for wintun.dll: built where a compiler is, and steered as its driver would be."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import cffi

from tunstack.link.devices import wintun_api

SOURCE = pathlib.Path(__file__).with_name("fakewintun.c")
VARIABLE = "TUNSTACK_FAKE_WINTUN"
"""Names the file where there is no compiler, which is on Windows."""
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


def build(compiler: str = "cc", suffix: str = ".so") -> str:
    """Compile it; gives the file."""
    folder = tempfile.mkdtemp(prefix="fakewintun-")
    file = os.path.join(folder, f"fakewintun{suffix}")
    extra = () if suffix == ".dll" else ("-fPIC", "-pthread", "-fvisibility=hidden")
    subprocess.run([compiler, *FLAGS, *extra, "-o", file, str(SOURCE)], check=True)
    return file


_file = ""


def library() -> wintun_api.Library:
    """It, as the code under test loads wintun.dll."""
    global _file
    if not _file:
        _file = os.environ.get(VARIABLE) or build()
    return wintun_api.load(_file)


class Fake:
    """The driver's side of an adapter."""

    def __init__(self, name: str) -> None:
        self.name = name
        library()
        self._functions = _ffi.dlopen(_file)
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
