"""What Ctrl-C does to a command that has nothing to put in order: it ends with a sentence, not with a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.checkpoints.interruption import BY_KEYBOARD


@contextmanager
def stoppable(left: str) -> Iterator[None]:
    """
    Args:
        left (`str`): what is left of the work, as a sentence.

    Raises:
        SystemExit: of status 130, after Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nInterrupted by the keyboard. {left}", file=sys.stderr, flush=True)
        raise SystemExit(BY_KEYBOARD) from None


__all__ = ["stoppable"]
