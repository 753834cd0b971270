"""wintun.dll by cffi: where it is found, its functions with errors as exceptions, and sessions.

Theory of operation. The prototypes use types of fixed width alone, so one text serves the DLL on Windows and
a library of the same functions elsewhere, with which tests run. The DLL is loaded once for the process, by
its whole path or out of the application's directory and System32, never by a plain search, and stays loaded:
threads of its own run in it.

A session is two rings. A packet that was received is copied out and given back at once, in order; one that is
sent is allocated, filled and sent in one go, for there is no way to give an allocated one back. What must not
be done - a packet above 65535 bytes, any use after the end - the DLL does not prevent, so it is done here.

Source: wintun.h 0.14 and the behaviour of its session.c.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pathlib
import sys
import sysconfig
import uuid
from collections.abc import Callable
from typing import Any

import cffi

from tunstack import dll
from tunstack.link.devices.base import DeviceClosed

log = logging.getLogger(__name__)

DEFINITIONS = """
void *__stdcall WintunCreateAdapter(const char16_t *name, const char16_t *tunnel_type, const void *guid);
void *__stdcall WintunOpenAdapter(const char16_t *name);
void __stdcall WintunCloseAdapter(void *adapter);
int32_t __stdcall WintunDeleteDriver(void);
void __stdcall WintunGetAdapterLUID(void *adapter, uint64_t *luid);
uint32_t __stdcall WintunGetRunningDriverVersion(void);
void __stdcall WintunSetLogger(void (__stdcall *logger)(int32_t, uint64_t, const char16_t *));
void *__stdcall WintunStartSession(void *adapter, uint32_t capacity);
void __stdcall WintunEndSession(void *session);
void *__stdcall WintunGetReadWaitEvent(void *session);
uint8_t *__stdcall WintunReceivePacket(void *session, uint32_t *size);
void __stdcall WintunReleaseReceivePacket(void *session, const uint8_t *packet);
uint8_t *__stdcall WintunAllocateSendPacket(void *session, uint32_t size);
void __stdcall WintunSendPacket(void *session, const uint8_t *packet);
"""
VARIABLE = "TUNSTACK_WINTUN"
"""The environment variable that names the DLL's file."""
TUNNEL_TYPE = "tunstack"
LARGEST = 0xFFFF
"""WINTUN_MAX_IP_PACKET_SIZE, bytes."""
LEAST_CAPACITY, MOST_CAPACITY = 0x20000, 0x4000000
CAPACITY = 8 << 20
"""Bytes of a ring, by default."""
NAME_LENGTH = 127
"""Characters of an adapter's name at the most."""

NOT_THERE, ACCESS_DENIED, INVALID_DATA, HANDLE_EOF, INVALID_PARAMETER = 2, 5, 13, 38, 87
BUFFER_OVERFLOW, MOD_NOT_FOUND, ALREADY_EXISTS, NO_MORE_ITEMS = 111, 126, 183, 259
NOT_FOUND, ALREADY_INITIALIZED, TAKEN = 1168, 1247, 5010
_SENTENCES = {
    NOT_THERE: "Wintun's driver is not loaded",
    ACCESS_DENIED: "Wintun needs an administrator: start the program elevated",
    INVALID_DATA: "the ring of the adapter is broken; open the adapter anew",
    HANDLE_EOF: "the adapter has gone",
    INVALID_PARAMETER: "Wintun does not take the size of the ring",
    BUFFER_OVERFLOW: "the name of the adapter is too long",
    MOD_NOT_FOUND: f"wintun.dll is not found; download it from its makers and set {VARIABLE} to its path",
    ALREADY_EXISTS: "an adapter of that identity is still there; wait some seconds, or end who uses it",
    NOT_FOUND: "there is no adapter of that name",
    TAKEN: "another interface has that name: choose another one, or rename that interface",
    ALREADY_INITIALIZED: "the adapter has a session already: somebody else uses it",
}
_NAMESPACE = uuid.UUID("7d0f4ec2-9a5b-5f0e-8a57-3f1f0c9b2d61")
_LEVELS = (logging.INFO, logging.WARNING, logging.ERROR)

ffi: Any = cffi.FFI()
ffi.cdef(DEFINITIONS)


class WintunError(dll.DllError):
    """Wintun has refused."""

    sentences = _SENTENCES


def guid_of(name: str, attempt: int = 0) -> uuid.UUID:
    """The identity of the adapter `name`, the same at every start, lest Windows sees a new network each time.

    `attempt`: for another one, if somebody still holds the first.
    """
    return uuid.uuid5(_NAMESPACE, name if not attempt else f"{name}/{attempt}")


def find_library(path: str | os.PathLike[str] | None = None) -> str:
    """Where the DLL is: `path`, the environment's, that of an installed package, or by name.

    A bare name is looked for in the application's directory and in System32 alone.
    """
    if path is not None or (path := os.environ.get(VARIABLE)):
        return os.path.abspath(path)
    package = importlib.util.find_spec("pytun_pmd3")
    for place in (package.submodule_search_locations or ()) if package is not None else ():
        file = pathlib.Path(place, "wintun", "bin", _architecture(), "wintun.dll")
        if file.is_file():
            return str(file)
    return "wintun.dll"


def _architecture() -> str:
    """Of this interpreter, not of the machine, by the name that Wintun gives it."""
    platform = sysconfig.get_platform()
    return {"win-amd64": "amd64", "win-arm64": "arm64", "win-arm32": "arm"}.get(platform, "x86")


class Library:
    """wintun.dll, or a library with the same functions. Made by `load`."""

    def __init__(self, functions: Any, last_error: Callable[[], int]) -> None:
        self.functions = functions
        self._last_error = last_error
        self._logger: Any = None

    def error(self, what: str) -> WintunError:
        """The error of the last call, which was about `what`."""
        return WintunError(self._last_error(), what)

    @property
    def last_error(self) -> int:
        """The code of the last call that has failed."""
        return self._last_error()

    def log_to(self, logger: logging.Logger) -> None:
        """Let Wintun say there what it does; it does so from threads of its own."""

        def say(level: int, timestamp: int, message: Any) -> None:
            text = ffi.string(message) if message else ""
            logger.log(_LEVELS[level] if 0 <= level < len(_LEVELS) else logging.INFO, "Wintun: %s", text)

        callback = ffi.callback("void __stdcall(int32_t, uint64_t, const char16_t *)", say)
        self.functions.WintunSetLogger(callback)
        self._logger = callback  # not before: the old one may be in use until now

    def create(self, name: str, guid: uuid.UUID) -> Adapter:
        """Make an adapter, which is gone when it is closed; takes up to 15 s.

        Raises:
            WintunError: no administrator, a name that is too long, an identity that is in use, …
        """
        _check_name(name)
        identity = ffi.new("uint8_t[16]", guid.bytes_le)
        handle = self.functions.WintunCreateAdapter(name, TUNNEL_TYPE, identity)
        if not handle:
            raise self.error(f"the adapter '{name}' cannot be made")
        return Adapter(self, handle, name)

    def open(self, name: str) -> Adapter:
        """An adapter that somebody else has made, which stays when it is closed; `WintunError`."""
        _check_name(name)
        handle = self.functions.WintunOpenAdapter(name)
        if not handle:
            raise self.error(f"the adapter '{name}' cannot be opened")
        return Adapter(self, handle, name)

    @property
    def driver_version(self) -> tuple[int, int] | None:
        """That of the driver, if it is loaded."""
        version = self.functions.WintunGetRunningDriverVersion()
        return (version >> 16, version & 0xFFFF) if version else None


_loaded: dict[str, Library] = {}


def load(path: str | os.PathLike[str] | None = None) -> Library:
    """The library, once for the process; see `find_library`.

    Raises:
        WintunError: there is none, or it is none.
    """
    found = find_library(path)
    library = _loaded.get(found)
    if library is None:
        library = _loaded[found] = _load(found)
    return library


def _load(path: str) -> Library:
    if sys.platform == "win32":
        library = _load_dll(path)
    else:
        try:
            library = Library(ffi.dlopen(path), lambda: ffi.errno)
        except OSError:
            raise WintunError(MOD_NOT_FOUND, path) from None
    for name in (word.split("(")[0] for word in DEFINITIONS.replace("*", " ").split() if "Wintun" in word):
        try:
            getattr(library.functions, name)
        except AttributeError:
            raise WintunError(MOD_NOT_FOUND, f"{path} has no function {name}") from None
    return library


if sys.platform == "win32":

    def _load_dll(path: str) -> Library:
        place = dll.SEARCH_DLL_DIRECTORY if os.path.isabs(path) else dll.SEARCH_APPLICATION
        try:
            return Library(dll.load_dll(ffi, path, dll.SEARCH_SYSTEM | place), dll.last_error)
        except OSError as error:
            raise WintunError(error.errno or MOD_NOT_FOUND, path) from None


class Adapter:
    """An adapter. Made by `Library.create` or `Library.open`."""

    def __init__(self, library: Library, handle: Any, name: str) -> None:
        self._library = library
        self._handle = handle
        self.name = name

    @property
    def luid(self) -> int:
        """What the functions of Windows for interfaces know it by."""
        luid = ffi.new("uint64_t *")
        self._library.functions.WintunGetAdapterLUID(self._handle, luid)
        return int(luid[0])

    def start(self, capacity: int = CAPACITY) -> Session:
        """Begin to carry packets; an adapter has one session.

        Raises:
            ValueError: `capacity` (bytes) is no power of two, or none that Wintun takes.
            WintunError: it has one already, …
        """
        if not LEAST_CAPACITY <= capacity <= MOST_CAPACITY or capacity & (capacity - 1):
            raise ValueError(f"a ring has a power of two between {LEAST_CAPACITY} and {MOST_CAPACITY} bytes")
        handle = self._library.functions.WintunStartSession(self._handle, capacity)
        if not handle:
            raise self._library.error(f"the adapter '{self.name}' cannot be used")
        return Session(self._library, handle, self.name)

    def close(self) -> None:
        """Let go of it; its session has to have ended. May take seconds."""
        handle, self._handle = self._handle, ffi.NULL
        if handle:
            self._library.functions.WintunCloseAdapter(handle)


class Session:
    """The packets of an adapter. Made by `Adapter.start`; not for several threads."""

    def __init__(self, library: Library, handle: Any, name: str) -> None:
        self._library = library
        self._handle = handle
        self._name = name
        functions = library.functions
        self._receive = functions.WintunReceivePacket
        self._release = functions.WintunReleaseReceivePacket
        self._allocate = functions.WintunAllocateSendPacket
        self._send = functions.WintunSendPacket
        self._size = ffi.new("uint32_t *")

    @property
    def read_event(self) -> int:
        """The event that is set when packets come: of one waiter, and never to be closed."""
        return int(ffi.cast("intptr_t", self._library.functions.WintunGetReadWaitEvent(self._live())))

    def receive(self, limit: int) -> list[bytes]:
        """Up to `limit` packets; fewer: there are no more now.

        Raises:
            DeviceClosed: the adapter has gone, or the session has ended.
            WintunError: the ring is broken.
        """
        handle = self._live()
        packets: list[bytes] = []
        while len(packets) < limit:
            packet = self._receive(handle, self._size)
            if not packet:
                code = self._library.last_error
                if code == NO_MORE_ITEMS or packets:
                    break  # what is wrong is found again
                raise self._end_of(code)
            packets.append(ffi.buffer(packet, self._size[0])[:])
            self._release(handle, packet)
        return packets

    def send(self, packet: bytes) -> bool:
        """Send a packet of 1 to 65535 bytes; False: the ring is full.

        Raises:
            ValueError: it is none.
            DeviceClosed: the adapter has gone, or the session has ended.
        """
        size = len(packet)
        if not 1 <= size <= LARGEST:
            raise ValueError(f"a packet has 1 to {LARGEST} bytes")
        handle = self._live()
        memory = self._allocate(handle, size)
        if not memory:
            code = self._library.last_error
            if code == BUFFER_OVERFLOW:
                return False
            raise self._end_of(code)
        ffi.memmove(memory, packet, size)
        self._send(handle, memory)
        return True

    def end(self) -> None:
        """End it; nobody may wait for its event any more."""
        handle, self._handle = self._handle, ffi.NULL
        if handle:
            self._library.functions.WintunEndSession(handle)

    def _live(self) -> Any:
        if not self._handle:
            raise DeviceClosed(f"{self._name} is closed")
        return self._handle

    def _end_of(self, code: int) -> Exception:
        if code == HANDLE_EOF:
            return DeviceClosed(f"the adapter '{self._name}' has gone")
        return WintunError(code, f"the adapter '{self._name}' is lost")


def _check_name(name: str) -> None:
    if not name or "\0" in name or len(name.encode("utf-16-le")) // 2 > NAME_LENGTH:
        raise WintunError(BUFFER_OVERFLOW if name else INVALID_PARAMETER, f"the adapter '{name}'")
