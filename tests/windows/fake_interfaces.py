"""The stand-in for iphlpapi.dll: what interfaces there are, and what it was told."""

from __future__ import annotations

import uuid
from typing import Any

import cffi

from tests.windows.fake import file_of
from tunstack.link.devices import iphlpapi

_ffi: Any = cffi.FFI()
_ffi.cdef("""
void __stdcall FakeInterface(uint64_t luid, uint32_t times, uint32_t family, uint32_t code);
void __stdcall FakeAlias(const char16_t *name, uint64_t luid, const uint8_t *guid);
const char *__stdcall FakeNotes(void);
""")
NAME = "fakeiphlpapi"


class FakeInterfaces(iphlpapi.Interfaces):
    """The interfaces of a machine, of which there is one: `luid`."""

    def __init__(self, luid: int) -> None:
        super().__init__(iphlpapi.ffi.dlopen(file_of(NAME)))
        self._fake = _ffi.dlopen(file_of(NAME))
        self._luid = luid
        self.reset()
        self.name_other("", 0, uuid.UUID(int=0))

    def reset(self, *, absent_times: int = 0, absent_family: int = 0, refusal: int = 0) -> None:
        """Forget what was told. `absent_times`: so often nothing is there; `absent_family`: never is."""
        self._fake.FakeInterface(self._luid, absent_times, absent_family, refusal)

    def name_other(self, name: str, luid: int, guid: uuid.UUID) -> None:
        """Another interface has this name."""
        self._fake.FakeAlias(name, luid, guid.bytes_le)

    @property
    def notes(self) -> list[str]:
        """What it was told, in order."""
        return str(_ffi.string(self._fake.FakeNotes()).decode()).splitlines()
