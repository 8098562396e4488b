"""A request between the event loop, where it is waited for, and the thread that computes it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any


class Job:
    """
    What the engine is to compute. It tells items, of which the last is an exception or the end.

    Attributes:
        size (`int`): images or answers.
        is_left (`bool`): whether nobody waits for it any more.
    """

    def __init__(self, size: int):
        self.size, self.is_left = size, False
        self._loop, self._items = asyncio.get_running_loop(), asyncio.Queue()

    def tell(self, item: Any):
        """From the engine's thread."""
        self._loop.call_soon_threadsafe(self._items.put_nowait, (item, None))

    def end(self, error: Exception | None = None):
        """From the engine's thread."""
        self._loop.call_soon_threadsafe(self._items.put_nowait, (None, error or StopAsyncIteration()))

    async def items(self) -> AsyncIterator[Any]:
        """What is told, until the end. Whoever stops listening stops the job."""
        try:
            while True:
                item, end = await self._items.get()
                if isinstance(end, StopAsyncIteration):
                    return
                if end is not None:
                    raise end
                yield item
        finally:
            self.is_left = True


__all__ = ["Job"]
