"""
One copy of the weights behind OpenAI's interface: it chats about images, streams, draws and edits.

    python examples/serve.py MODEL [--host 127.0.0.1] [--port 8000] [--api_key KEY]

MODEL is a folder or a Hub id, whose code is run. Drawings are computed together, and so are answers; see
docs/serving.md.
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
import uvicorn  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402
from transformers import AutoModelForCausalLM, HfArgumentParser  # noqa: E402
from transformers.utils import logging  # noqa: E402

from examples.serving.app import create_app  # noqa: E402
from examples.serving.settings import Settings  # noqa: E402
from modeling_rosetta import RosettaPipeline  # noqa: E402


LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRACE = 30  # seconds for requests to end before the server does


def load(model: str, settings: Settings) -> RosettaPipeline:
    """The repository's model and processor, with this version's pipeline around them."""
    logging.set_verbosity_error()
    dtype = "auto" if settings.dtype == "auto" else getattr(torch, settings.dtype)
    given = {"revision": settings.revision, "trust_remote_code": True}
    transformer = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **given)
    loaded = DiffusionPipeline.from_pretrained(model, transformer=transformer, **given)
    pipe = RosettaPipeline(**loaded.components)
    return pipe.to(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def warn_of_the_world(options, settings: Settings):
    if options.host not in LOOPBACK and not settings.api_key:
        print(f"Whoever reaches {options.host}:{options.port} can use this server: give it an --api_key.")


def main(arguments: list[str] | None = None):
    parser = HfArgumentParser(Settings, description=__doc__.split("\n")[1])
    parser.add_argument("model", metavar="MODEL", help="a folder or a Hub id")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 is for all the world")
    parser.add_argument("--port", type=int, default=8000)
    settings, options = parser.parse_args_into_dataclasses(arguments)
    if settings.dtype != "auto" and not isinstance(getattr(torch, settings.dtype, None), torch.dtype):
        parser.error(f"--dtype must be 'auto' or a type of torch such as 'bfloat16', got '{settings.dtype}'")
    warn_of_the_world(options, settings)
    try:
        pipe = load(options.model, settings)
    except (OSError, ValueError) as error:
        parser.error(f"MODEL: '{options.model}' cannot be loaded. {error}")
    app = create_app(settings.name or Path(options.model).name, lambda: pipe, settings)
    uvicorn.run(app, host=options.host, port=options.port, timeout_graceful_shutdown=GRACE)


if __name__ == "__main__":
    main()
