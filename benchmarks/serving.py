"""
What serving costs and gains, as ratios within one run, and what malformed requests do to the server.

    python benchmarks/serving.py [--model outputs/quickstart/model] [--rounds 9] [--malformed 1000] [--output FILE]

- The server's step of drawings that came apart over the pipeline's own step of as many, at the layer shapes of
  `inference.py`, images of 256 x 256: while the batch stays, and when it has to be put together anew, as after each
  drawing that comes or leaves.
- Images a second of requests that are sent at once over one after another, through the openai client to a process.
- Malformed requests of every kind: their statuses, whether the server answers correctly afterwards, and its memory.

Prints tables and writes them as JSON; exits with 1 if a malformed request got a 5xx or an answer changed.
"""

import argparse
import asyncio
import base64
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


sys.path[:0] = [str(Path(__file__).parents[1])]

import psutil  # noqa: E402
import torch  # noqa: E402
from training_step import EXPERT_WIDTH, SIZES  # noqa: E402
from turns import ratio, seconds_in_turns, write  # noqa: E402

from examples.serving.drawing import DrawingJob, Drawings  # noqa: E402
from examples.serving.metrics import Metrics  # noqa: E402
from modeling_rosetta import RosettaPipeline  # noqa: E402
from tests.examples.malformed_requests import request, send  # noqa: E402
from tests.examples.serving_process import ServerProcess, serving, serving_pipeline  # noqa: E402
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline  # noqa: E402


BATCHES = (1, 2, 4, 8)
AT_ONCE = (2, 4, 8, 16)
STEPS = 1000  # more than are taken
MAX_BODY = 300_000


def arguments(number: int, **others) -> dict:
    """Of a drawing; each has a prompt of its own length."""
    return {
        "prompt": "a red stone " + "and another " * (number % 4),
        "generator": [torch.Generator().manual_seed(number)],
        "num_images_per_prompt": 1,
        "num_inference_steps": STEPS,
        "guidance_scale": 5.0,
        "height": 256,
        "width": 256,
        "output_type": "latent",
        **others,
    }


def pipelines_step(pipe: RosettaPipeline, images: int) -> Callable[[], None]:
    given = [arguments(number) for number in range(images)]
    together = {"prompt": [one["prompt"] for one in given], "generator": [one["generator"][0] for one in given]}
    own = RosettaPipeline(**{**pipe.components, "scheduler": pipe.scheduler.from_config(pipe.scheduler.config)})
    own.set_progress_bar_config(disable=True)
    drawing = own.steps(**{**given[0], **together})
    waiting = [drawing.send(None)]

    @torch.no_grad()
    def step():
        waiting[0] = drawing.send(own.predict_velocity(*waiting[0]))

    return step


def servers_step(pipe: RosettaPipeline, images: int, is_joined_anew: bool) -> Callable[[], None]:
    batch = Drawings(pipe, images, Metrics())

    @torch.no_grad()
    def step(new=()):
        if is_joined_anew:
            batch._joined.clear()
        batch.step(new)

    async def begin():  # jobs belong to an event loop
        step([DrawingJob(arguments(number)) for number in range(images)])

    asyncio.run(begin())
    return step


def step_ratios(rounds: int) -> dict[str, dict[str, float]]:
    sizes = {key: value for key, value in SIZES.items() if key not in ("vocab_size", "tie_word_embeddings")}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "patch_size": 4}
    vision |= {"out_hidden_size": SIZES["hidden_size"], "num_position_embeddings": 16, "deepstack_visual_indexes": []}
    pipe = tiny_pipeline(**sizes, intermediate_size=EXPERT_WIDTH, vision_config=vision, initializer_range=0.02)
    rows = {}
    for images in BATCHES:
        timed = {
            "own": pipelines_step(pipe, images),
            "served": servers_step(pipe, images, is_joined_anew=False),
            "joined anew": servers_step(pipe, images, is_joined_anew=True),
        }
        seconds = seconds_in_turns(timed, rounds)
        rows[f"step of {images} over the pipeline's"] = ratio(seconds["served"], seconds["own"])
        rows[f"step of {images}, joined anew, over the pipeline's"] = ratio(seconds["joined anew"], seconds["own"])
    return rows


def draw(server: ServerProcess, model: str, seed: int) -> bytes:
    body = {"seed": seed, "num_inference_steps": 20}
    drawn = server.client().images.generate(model=model, prompt="a handwritten seven", extra_body=body)
    return base64.b64decode(drawn.data[0].b64_json)


def throughput(server: ServerProcess, model: str, rounds: int) -> dict[str, dict[str, float]]:
    """Images a second over those of requests one after another."""

    def drawn_at_once(number: int) -> Callable[[], None]:
        def run():
            with ThreadPoolExecutor(number) as threads:
                list(threads.map(lambda seed: draw(server, model, seed), range(max(AT_ONCE))))

        return run

    seconds = seconds_in_turns({str(number): drawn_at_once(number) for number in (1, *AT_ONCE)}, rounds)
    rows = {f"images a second, {n} at once over 1": ratio(seconds["1"], seconds[str(n)]) for n in AT_ONCE}
    most = max(AT_ONCE)
    rows["images a second, 1 after another"] = {"median": most / statistics.median(seconds["1"])}
    rows[f"images a second, {most} at once"] = {"median": most / statistics.median(seconds[str(most)])}
    return rows


def malformed(server: ServerProcess, model: str, number: int) -> dict:
    """Statuses, and megabytes of memory before, in between and after; the first tenth warms up."""
    address, rng, process = ("127.0.0.1", int(server.url.rsplit(":", 1)[1])), random.Random(0), psutil.Process
    memory, statuses = [], Counter()
    expected = draw(server, model, 0)
    for i in range(number):
        if i % max(number // 10, 1) == 0:
            memory.append(process(server.process.pid).memory_info().rss / 1e6)
        statuses[send(address, *request(rng, MAX_BODY))] += 1
    memory.append(process(server.process.pid).memory_info().rss / 1e6)
    deadline = time.monotonic() + 30
    while server.metric("rosetta_requests_in_flight") and time.monotonic() < deadline:
        time.sleep(0.1)
    return {
        "statuses": {str(status): count for status, count in sorted(statuses.items(), key=str)},
        "unplanned": sum(count for status, count in statuses.items() if status and status >= 500),
        "answers as before": draw(server, model, 0) == expected,
        "left in flight": server.metric("rosetta_requests_in_flight"),
        "megabytes": [round(figure) for figure in memory],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a repository; by default one of tiny random parts")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/serving.json"))
    parser.add_argument("--rounds", type=int, default=9, help="in each, everything is timed once")
    parser.add_argument("--malformed", type=int, default=1000)
    options = parser.parse_args()

    rows = step_ratios(options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder) / "tiny"
        if options.model is None:
            serving_pipeline().save_pretrained(model)
        name = "tiny"  # what malformed requests call it
        settings = (f"--name={name}", f"--max_body={MAX_BODY}", "--max_drawings=16")
        with serving(model, Path(folder) / "log", *settings) as server:
            rows |= throughput(server, name, max(options.rounds // 3, 1))
            found = malformed(server, name, options.malformed)
    print(f"{'':50}{'median':>9}{'min':>9}{'max':>9}")
    for label, row in rows.items():
        print(f"{label:50}" + "".join(f"{figure:9.3f}" for figure in row.values()))
    for label, figure in found.items():
        print(f"{label:30}{figure}")
    write(options.output, {"ratios": rows, "malformed": found, "threads": torch.get_num_threads()})
    return 1 if found["unplanned"] or not found["answers as before"] else 0


if __name__ == "__main__":
    sys.exit(main())
