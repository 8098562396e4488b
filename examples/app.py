"""
An app in the browser: chat about images, draw and see it come about, look at which experts the tokens go to.

    python examples/app.py [MODEL] [--device cuda] [--dtype bfloat16] [--host 127.0.0.1] [--port 7860]

MODEL is a folder or a Hub id, by default the miniature that `make quickstart` leaves. Whoever can reach the address
can use it: by default that is this machine alone.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

from transformers.utils import logging  # noqa: E402

from examples.playground import interface, launch_options, load_pipeline  # noqa: E402


QUICKSTART = Path("outputs/quickstart")


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", nargs="?")
    parser.add_argument("--revision", help="a branch, tag or commit of MODEL on the Hub")
    parser.add_argument("--device", help="by default a GPU, if there is one")
    parser.add_argument("--dtype", help="by default bfloat16 on a GPU, else float32")
    parser.add_argument("--prompt", nargs="+", default=["a red apple"], help="examples of what to draw")
    parser.add_argument("--question", nargs="+", default=["What can you do?"], help="examples of what to ask")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="to begin with")
    parser.add_argument("--guidance_scale", type=float, default=5.0, help="to begin with")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 is open to the network")
    parser.add_argument("--port", type=int, help="by default the first free one from 7860")
    options = parser.parse_args(arguments)
    name = options.model
    questions = [(question, None) for question in options.question]
    if options.model is None:
        if not (QUICKSTART / "model").is_dir():
            parser.error(f"MODEL must be given: {QUICKSTART / 'model'}, which `make quickstart` leaves, is not there")
        name, options.model = "The miniature", str(QUICKSTART / "model")
        options.num_inference_steps = 20
        options.prompt = ["a handwritten seven", "the digit three", "draw an eight"]
        questions = [
            ("Which digit is this?", str(QUICKSTART / "digit.png")),
            ("Can you read this digit?", str(QUICKSTART / "digit.png")),
        ]
    logging.set_verbosity_error()
    try:
        pipe = load_pipeline(options.model, options.revision, options.device, options.dtype)
    except (OSError, ValueError) as error:
        parser.error(f"MODEL: '{options.model}' cannot be loaded. {error}")
    page = interface(
        pipe,
        name,
        tuple(options.prompt),
        tuple(questions),
        options.num_inference_steps,
        options.guidance_scale,
    )
    page.launch(server_name=options.host, server_port=options.port, **launch_options(pipe))


if __name__ == "__main__":
    main()
