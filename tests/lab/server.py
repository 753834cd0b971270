"""A server of tests that handles each client in a thread, as long as a block."""

from __future__ import annotations

import abc
import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class ThreadServer(abc.ABC):
    """Accepts at `listener`, which belongs to it and listens already."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._handle, args=(client,), daemon=True).start()

    def _handle(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self.handle(client)

    @abc.abstractmethod
    def handle(self, client: socket.socket) -> None:
        """Speak with a client; what is broken ends it."""


def listening_at(path: str) -> socket.socket:
    """A UNIX socket that listens at `path`."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener
