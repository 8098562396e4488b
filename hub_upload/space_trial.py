"""Starts the app of a Space in a fresh process without the project, asks it and has it draw: see `run_space.py`."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from huggingface_hub import constants

from .fresh_process import SECRETS


RUN = Path(__file__).with_name("run_space.py")


def try_space(folder: Path, token: str | None, python: str = sys.executable) -> dict:
    """
    Args:
        folder (`Path`): of the Space.
        token (`str`, *optional*): with which its app loads the model from the Hub.
        python (`str`, *optional*): that of the environment to start it in.

    Returns:
        `dict`: the `answer`, and the number of `drawings` if the model draws.

    Raises:
        ValueError: if it does not start or anything of this fails, with the end of what the process said.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in SECRETS}
    with tempfile.TemporaryDirectory(prefix="stranger-") as home, tempfile.TemporaryFile("w+") as said:
        port = _free_port()
        environment = {
            "HF_HOME": home,
            "HF_HUB_CACHE": f"{home}/hub",
            "HF_MODULES_CACHE": f"{home}/modules",
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": constants.ENDPOINT,
            "GRADIO_TEMP_DIR": f"{home}/gradio",
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_SERVER_PORT": str(port),
        } | ({"HF_TOKEN": token} if token else {})
        # -I: neither the current folder nor PYTHONPATH is searched for modules. -B: nothing is written to `folder`.
        command = [python, "-I", "-B", str(RUN), str(folder)]
        process = subprocess.Popen(command, env={**inherited, **environment}, stdout=said, stderr=said)
        try:
            _wait(process, f"http://127.0.0.1:{port}/")
            return _ask(f"http://127.0.0.1:{port}/", f"{home}/answers")
        except Exception as error:  # whatever the client of Gradio raises
            said.seek(0)
            lines = [*said.read().strip().splitlines()[-12:], str(error)]
            raise ValueError(
                "The app does not work in a fresh process without the project:\n"
                + "\n".join(f"  {line}" for line in lines)
            ) from error
        finally:
            process.terminate()
            process.wait()


def _ask(url: str, downloads: str) -> dict:
    from gradio_client import Client  # with Gradio, which only a Space needs

    client = Client(url, verbose=False, download_files=downloads)
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    found = {"answer": client.predict({"text": "What is this?", "files": []}, 4, 0.0, api_name="/chat")}
    if "/draw" in endpoints:
        _, drawn, _, _ = client.predict(
            prompt="a red stone", negative="", image=None, so_far=None, steps=2, api_name="/draw"
        )
        found["drawings"] = len(drawn)
    return found


def _wait(process: subprocess.Popen, url: str):
    """Until the app answers; loading the model may take its time."""
    while process.poll() is None:
        try:
            with urlopen(url, timeout=10):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise ValueError(f"it ended with {process.returncode}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


__all__ = ["try_space"]
