"""The control socket of a gateway: the API for its user, and how it comes and goes.

What it is depends on the system: `unix_sockets`, and `named_pipes` on Windows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from tunstack.api.acceptor import Acceptor
from tunstack.background import beside
from tunstack.gateway.gateway import Gateway

if sys.platform == "win32":
    from tunstack.api import named_pipes as places
else:
    from tunstack.api import unix_sockets as places

log = logging.getLogger("tunstack")

running = places.running


@contextlib.asynccontextmanager
async def control_socket(
    gateway: Gateway, path: str | os.PathLike[str] | None = None
) -> AsyncIterator[Path | None]:
    """Serve the API of `gateway` on a socket of this user as long as the block; gives its path.

    Without `path` it is where `running` finds it, and there is none, which is not an error (None), if it
    cannot be made there.

    Raises:
        OSError: there is something at `path`, or it cannot be made.
    """
    try:
        chosen = places.own_place() if path is None else Path(path)
        listener = places.listen(chosen)
    except OSError as error:
        if path is not None:
            raise
        log.info("no control socket: %s: %s", error.filename, error.strerror)
        yield None
        return
    log.info("control socket %s", chosen)
    nursery: trio.Nursery

    def make_app() -> object:
        from tunstack.api.app import make_app

        return make_app(gateway, nursery)

    try:
        async with beside(lambda: Acceptor(make_app).serve(listener)) as nursery:
            yield chosen
    finally:
        await trio.aclose_forcefully(listener)
        places.remove(chosen)
