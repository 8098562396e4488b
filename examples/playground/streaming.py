"""What a model does, item by item, to whoever listens."""

import queue
import threading
from collections.abc import Callable, Iterator


# The model does one thing at a time: what was stopped ends its step before the next thing begins.
MODEL_IN_USE = threading.Lock()


def stream(run: Callable[[Callable[[object], None]], None]) -> Iterator:
    """
    Runs `run(put)` in a thread, and yields what it puts, as it comes. Once nobody listens any more, the next `put`
    ends it.

    Raises:
        What `run` raises.
    """
    items: queue.Queue = queue.Queue()
    left = threading.Event()

    def put(item: object):
        if left.is_set():
            raise _Left
        items.put((item, None))

    def work():
        end = None
        try:
            with MODEL_IN_USE:
                put(None) if left.is_set() else run(put)
        except BaseException as error:  # raised where it is listened to
            end = error
        items.put((_END, end))

    threading.Thread(target=work, daemon=True).start()
    try:
        while (found := items.get())[0] is not _END:
            yield found[0]
        if found[1] is not None:
            raise found[1]
    finally:
        left.set()


class _Left(Exception):
    """Nobody listens any more."""


_END = object()


__all__ = ["MODEL_IN_USE", "stream"]
