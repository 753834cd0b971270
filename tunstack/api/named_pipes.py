r"""Control sockets on Windows: named pipes, `\\.\pipe\tunstack-PID`, or of a name of one's own.

Which there are is told by empty files `PID.pipe` in `%LOCALAPPDATA%\tunstack`; what a process that was killed
has left there counts for nothing.

Theory of operation. A server has an instance of the pipe that waits for a client, and makes the next one when
that has come. All I/O is overlapped, and trio's completion port tells of its end. The pipe is open to this
user, administrators and the system, and not to other machines. The first instance claims the name: whoever
has it already is an error, so nobody is talked to in our place.

A client waits neither for ever nor in a completion port: it looks whether there is something to read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from tunstack.api.unix_sockets import numbered

FOLDER = "\\\\.\\pipe\\"
PREFIX = "tunstack-"
SIZE = 65536
"""Bytes of the pipe's buffers, and of one read."""
MOST = 80
"""Clients that may be connected at once; below 255, which stands for any number."""
PAUSE = 0.01
"""Seconds between two looks of a client."""

if sys.platform == "win32":
    import msvcrt

    import cffi

    _ACCESS_DUPLEX, _FIRST_INSTANCE, _OVERLAPPED = 0x3, 0x80000, 0x40000000
    _REJECT_REMOTE = 0x8
    _READ_AND_WRITE, _OPEN_EXISTING, _ANONYMOUS = 0xC0000000, 3, 0x100000
    """The server is not to know who we are: SECURITY_SQOS_PRESENT with SECURITY_ANONYMOUS."""
    _PIPE_BUSY, _NO_DATA, _PIPE_CONNECTED, _IO_PENDING = 231, 232, 535, 997
    _NOBODY = (2, 3, 123, 161)
    """ERROR_FILE_NOT_FOUND, ERROR_PATH_NOT_FOUND, ERROR_INVALID_NAME, ERROR_BAD_PATHNAME."""

    _ffi: Any = cffi.FFI()
    _ffi.cdef("""
    typedef struct { uintptr_t internal, internal_high; uint64_t offset; void *event; } overlapped;
    intptr_t __stdcall CreateNamedPipeW(const wchar_t *name, uint32_t access, uint32_t mode, uint32_t most,
        uint32_t out, uint32_t in, uint32_t timeout, void *security);
    int32_t __stdcall WaitNamedPipeW(const wchar_t *name, uint32_t timeout);
    intptr_t __stdcall CreateFileW(const wchar_t *name, uint32_t access, uint32_t share, void *security,
        uint32_t creation, uint32_t flags, void *template);
    typedef struct { uint32_t length; void *descriptor; int32_t inherit; } security;
    intptr_t __stdcall GetCurrentProcess(void);
    int32_t __stdcall OpenProcessToken(intptr_t process, uint32_t access, intptr_t *token);
    int32_t __stdcall GetTokenInformation(intptr_t token, int32_t what, void *out, uint32_t size,
        uint32_t *used);
    int32_t __stdcall ConvertSidToStringSidW(void *sid, wchar_t **text);
    int32_t __stdcall ConvertStringSecurityDescriptorToSecurityDescriptorW(const wchar_t *text,
        uint32_t revision, void **descriptor, uint32_t *size);
    void *__stdcall LocalFree(void *memory);
    int32_t __stdcall ConnectNamedPipe(intptr_t pipe, overlapped *operation);
    int32_t __stdcall PeekNamedPipe(intptr_t pipe, void *buffer, uint32_t size, uint32_t *read,
        uint32_t *there, uint32_t *left);
    int32_t __stdcall CloseHandle(intptr_t handle);
    uint32_t __stdcall GetLastError(void);
    """)
    _kernel: Any = _ffi.dlopen("kernel32.dll")
    _rights: Any = _ffi.dlopen("advapi32.dll")
    _TOKEN_QUERY, _TOKEN_USER, _SDDL_REVISION = 0x8, 1, 1

    class NamedPipe(trio.abc.HalfCloseableStream):
        """A client, as the server sees it."""

        def __init__(self, handle: int) -> None:
            """`handle`: connected, and known to trio's completion port."""
            self._handle = handle
            self.socket = NoSocket()

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            """See `trio.abc.ReceiveStream`."""
            buffer = bytearray(max_bytes or SIZE)
            self._check()
            try:
                size = await trio.lowlevel.readinto_overlapped(self._handle, buffer)
            except BrokenPipeError:
                self._check()
                return b""  # Windows' way of saying that the other end is closed
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from None
            return bytes(buffer[:size])

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            """See `trio.abc.SendStream`."""
            self._check()
            view = memoryview(data)
            if not view:
                await trio.lowlevel.checkpoint()
            while view:
                try:
                    view = view[await trio.lowlevel.write_overlapped(self._handle, view[:SIZE]) :]
                except OSError as error:
                    self._check()
                    raise trio.BrokenResourceError(str(error)) from None

        async def wait_send_all_might_not_block(self) -> None:
            """See `trio.abc.SendStream`; nothing tells."""
            await trio.lowlevel.checkpoint()

        async def send_eof(self) -> None:
            """See `trio.abc.HalfCloseableStream`; a pipe ends in both directions at once, with `aclose`."""
            await trio.lowlevel.checkpoint()

        async def aclose(self) -> None:
            """See `trio.abc.AsyncResource`."""
            handle, self._handle = self._handle, 0
            if handle:
                _kernel.CloseHandle(handle)
            await trio.lowlevel.checkpoint()

        def _check(self) -> None:
            if not self._handle:
                raise trio.ClosedResourceError

    class PipeListener(trio.abc.Listener[NamedPipe]):
        """Waits for clients of one name."""

        def __init__(self, name: str) -> None:
            """OSError if somebody has the name, or it is none of a pipe."""
            self._name = name
            if _is_served(name):
                raise OSError(errno.EADDRINUSE, "somebody has this pipe", name)
            self._security = _ffi.new("security *")
            self._security.length = _ffi.sizeof("security")
            self._descriptor = self._security.descriptor = _only_for_us()
            self._next = self._instance(_FIRST_INSTANCE)

        async def accept(self) -> NamedPipe:
            """See `trio.abc.Listener`."""
            while True:
                while not self._next:
                    try:
                        self._next = self._instance(0)
                    except OSError as error:
                        if error.winerror != _PIPE_BUSY:
                            raise
                        await trio.sleep(PAUSE)  # all that there may be have clients
                operation = _ffi.new("overlapped *")
                code = 0
                if not _kernel.ConnectNamedPipe(self._next, operation):
                    code = _kernel.GetLastError()
                if code == _IO_PENDING:
                    await trio.lowlevel.wait_overlapped(self._next, int(_ffi.cast("intptr_t", operation)))
                elif code != _NO_DATA:
                    await trio.lowlevel.checkpoint()
                    if code not in (0, _PIPE_CONNECTED):
                        raise OSError(None, "no client can be waited for", self._name, code)
                handle, self._next = self._next, 0
                if code != _NO_DATA:
                    return NamedPipe(handle)
                _kernel.CloseHandle(handle)  # it has gone again

        async def aclose(self) -> None:
            """See `trio.abc.AsyncResource`."""
            handle, self._next = self._next, 0
            if handle:
                _kernel.CloseHandle(handle)
            await trio.lowlevel.checkpoint()

        def _instance(self, flags: int) -> int:
            access = _ACCESS_DUPLEX | _OVERLAPPED | flags
            handle = int(
                _kernel.CreateNamedPipeW(
                    self._name, access, _REJECT_REMOTE, MOST, SIZE, SIZE, 0, self._security
                )
            )
            if handle == -1:
                raise _last_error("it is no name of a pipe, or not ours", self._name)
            trio.lowlevel.register_with_iocp(handle)
            return handle

    def _only_for_us() -> Any:
        """A security descriptor for this user, administrators and the system."""
        token, size, memory = _ffi.new("intptr_t *"), _ffi.new("uint32_t *"), _ffi.new("void *[64]")
        if not _rights.OpenProcessToken(_kernel.GetCurrentProcess(), _TOKEN_QUERY, token):
            raise _last_error("this user is not known")
        try:
            # TOKEN_USER begins with a pointer to the SID, which lies behind it.
            if not _rights.GetTokenInformation(token[0], _TOKEN_USER, memory, _ffi.sizeof(memory), size):
                raise _last_error("this user is not known")
        finally:
            _kernel.CloseHandle(token[0])
        text, descriptor = _ffi.new("wchar_t **"), _ffi.new("void **")
        if not _rights.ConvertSidToStringSidW(memory[0], text):
            raise _last_error("this user is not known")
        rules = f"D:P(A;;GA;;;{_ffi.string(text[0])})(A;;GA;;;BA)(A;;GA;;;SY)"
        _kernel.LocalFree(text[0])
        make = _rights.ConvertStringSecurityDescriptorToSecurityDescriptorW
        if not make(rules, _SDDL_REVISION, descriptor, _ffi.NULL):
            raise _last_error("the rights of a pipe cannot be made")
        return _ffi.gc(descriptor[0], _kernel.LocalFree)

    def _last_error(what: str, name: str | None = None) -> OSError:
        return OSError(None, what, name, _kernel.GetLastError())

    class PipeClient:
        """A connection to a server, with what is used of a socket."""

        def __init__(self, name: str, timeout: float) -> None:
            """OSError if there is nobody, or nobody has time within `timeout` seconds."""
            self._timeout = timeout
            deadline = time.monotonic() + timeout
            while True:
                self._handle = int(
                    _kernel.CreateFileW(
                        name, _READ_AND_WRITE, 0, _ffi.NULL, _OPEN_EXISTING, _ANONYMOUS, _ffi.NULL
                    )
                )
                if self._handle != -1:
                    break
                error = _last_error("nobody answers", name)
                if error.winerror != _PIPE_BUSY or time.monotonic() > deadline:
                    raise error
                time.sleep(PAUSE)
            self._file = os.fdopen(msvcrt.open_osfhandle(self._handle, 0), "r+b", buffering=0)

        def __enter__(self) -> PipeClient:
            return self

        def __exit__(self, *error: object) -> None:
            self._file.close()

        def sendall(self, data: bytes) -> None:
            """Send all of it."""
            while data:
                data = data[self._file.write(data) :]

        def recv(self, size: int) -> bytes:
            """What is there, as soon as something is; nothing: the end. TimeoutError."""
            there = _ffi.new("uint32_t *")
            deadline = time.monotonic() + self._timeout
            while True:
                if not _kernel.PeekNamedPipe(self._handle, _ffi.NULL, 0, _ffi.NULL, there, _ffi.NULL):
                    return b""
                if there[0]:
                    return self._file.read(min(size, there[0])) or b""
                if time.monotonic() > deadline:
                    raise TimeoutError
                time.sleep(PAUSE)

    def runtime_directory() -> Path:
        """Where the files are that tell of this user's pipes; it may not be there."""
        return Path(os.environ.get("LOCALAPPDATA") or tempfile.gettempdir()) / "tunstack"

    def running() -> dict[int, Path]:
        """The pipes that somebody serves, by the number of the process."""
        found = {}
        for path in numbered(runtime_directory(), "pipe"):
            pipe = _pipe_of(int(path.stem))
            if _is_served(str(pipe)):
                found[int(path.stem)] = pipe
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
        return dict(sorted(found.items()))

    def own_place() -> Path:
        """Where this process's is to be; others are told. OSError."""
        note = _own_note()
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
        return _pipe_of(os.getpid())

    def listen(path: Path) -> PipeListener:
        """A listener at `path`. OSError."""
        return PipeListener(str(path))

    def remove(path: Path) -> None:
        """Tell nobody of it any more; the pipe goes with its listener."""
        if path == _pipe_of(os.getpid()):
            _own_note().unlink(missing_ok=True)

    def _pipe_of(pid: int) -> Path:
        return Path(f"{FOLDER}{PREFIX}{pid}")

    def _own_note() -> Path:
        return runtime_directory() / f"{os.getpid()}.pipe"

    def _is_served(name: str) -> bool:
        return bool(_kernel.WaitNamedPipeW(name, 1)) or _kernel.GetLastError() not in _NOBODY

    def connect(path: Path, timeout: float) -> PipeClient:
        """A connection to who listens at `path`; waits `timeout` seconds at most. OSError."""
        return PipeClient(str(path), timeout)


class NoSocket:
    """In the place of a socket, for who asks about addresses: a pipe has none."""

    family = -1

    def getsockname(self) -> str:
        """None."""
        return ""

    def getpeername(self) -> str:
        """None."""
        return ""
