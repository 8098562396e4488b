"""
Runs a program that a model wrote, in a process of its own, within limits of time, memory, files and network.

They keep accidents from doing harm. They are no jail for an attacker: that is the container around the evaluation.
"""

import json
import subprocess
import sys
from pathlib import Path


SECONDS = 10
MEGABYTES = 1024


def passes(program: str, tests: list[str], seconds: float = SECONDS, megabytes: int = MEGABYTES) -> bool:
    """
    Whether a program and, after it, all lines of its tests run to their end, in a new interpreter that neither writes
    files, nor starts processes, nor opens connections.

    Args:
        program (`str`): Python.
        tests (`list[str]`): lines of it, such as assertions.
        seconds (`float`, defaults to 10), megabytes (`int`, defaults to 1024): what it may take.
    """
    if not program:
        return False
    task = {"source": "\n".join([program, "", *tests]), "seconds": seconds, "megabytes": megabytes}
    # -I: nothing of the user's environment and folders; a session of its own, so that it can be ended as a whole.
    command = [sys.executable, "-I", str(Path(__file__).with_name("limited_child.py"))]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(task),
            text=True,
            encoding="utf-8",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds + 5,  # the child ends itself, and this is for one that does not
            env={},
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return False
    return ended.returncode == 0


__all__ = ["passes"]
