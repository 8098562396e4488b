"""What the server allows, and how much of it at once."""

import os
from dataclasses import dataclass, field


def _setting(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class Settings:
    """Each is an option of `serve.py`; those in pixels count height times width."""

    name: str | None = _setting(None, "what the model is called in requests; by default its folder's name or Hub id")
    revision: str | None = _setting(None, "of the repository on the Hub")
    device: str | None = _setting(None, "such as 'cuda' or 'cpu'; by default a GPU if there is one")
    dtype: str = _setting("auto", "'auto' or a type of torch such as 'bfloat16'")
    api_key: str | None = _setting(
        os.environ.get("ROSETTA_API_KEY"), "that requests must carry; by default ROSETTA_API_KEY of the environment"
    )
    max_requests: int = _setting(256, "that are computed or wait; others are told to come back later (429)")
    max_drawings: int = _setting(8, "images that are drawn together, and the most of one request")
    max_answers: int = _setting(32, "answers that are written together, and the most of one request")
    max_tokens: int = _setting(1024, "the most tokens of an answer, and their number where a request gives none")
    max_steps: int = _setting(100, "the most denoising steps of a drawing")
    max_drawn_pixels: int = _setting(2048 * 2048, "of an image to draw")
    max_images: int = _setting(8, "that a request may give")
    max_pixels: int = _setting(4096 * 4096, "of an image that is given")
    max_body: int = _setting(32 * 2**20, "bytes of a request")
    time_limit: float = _setting(600.0, "seconds that a request may take, with its time in the queue")
    allow_remote_images: bool = _setting(False, "fetches images by their URL, from public addresses only")


__all__ = ["Settings"]
