"""What a program says whose training ended before its last step."""

import sys
from typing import NoReturn

from accelerate import PartialState

from .folders import last_complete_checkpoint


BY_KEYBOARD, BY_SIGTERM = 130, 143  # exit statuses, as shells have them


def end_interrupted(args, how: str, status: int) -> NoReturn:
    """
    Ends the program, and says how to go on.

    Args:
        args ([`RosettaTrainingArguments`]): of the run.
        how (`str`): what interrupted it, e.g. `"by the keyboard"`.
        status (`int`): of the program.
    """
    if PartialState().is_main_process:
        checkpoint = last_complete_checkpoint(args.output_dir) or "the start: no checkpoint is complete yet"
        command = "The same command" + (" without `--resume_from_checkpoint`" * bool(args.resume_from_checkpoint))
        print(f"Interrupted {how}. {command} goes on from {checkpoint}.", file=sys.stderr, flush=True)
    raise SystemExit(status)


__all__ = ["BY_KEYBOARD", "BY_SIGTERM", "end_interrupted"]
