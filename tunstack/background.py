"""A task that runs as long as a block."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import trio


@contextlib.asynccontextmanager
async def beside(task: Callable[[], Awaitable[object]]) -> AsyncIterator[trio.Nursery]:
    """Run `task`, and what the block starts in the nursery, as long as the block.

    What the block raises leaves it as it is, where the nursery would make a group of it.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        try:
            yield nursery
        except Exception as error:
            failure = error
        finally:
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
