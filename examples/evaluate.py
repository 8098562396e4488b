"""
How good a model is, on benchmarks by name.

    python examples/evaluate.py MODEL --tasks miniature [--limit N] [--output DIR] [--batch_size N]
    accelerate launch examples/evaluate.py MODEL --tasks table1 --data DATA --allow_code
    accelerate launch examples/evaluate.py MODEL --tasks prompts --prompts FILE --judges hps=HPS_v2.1_compressed.pt

`table1` are the tasks of the paper's Table 1 in the authors' protocol, of data sets in DATA. What is drawn is kept in
DIR, with a manifest of its seeds. With `--protocol stock` the language tasks are lm-eval's own and drawings are
drawn and scored as is usual elsewhere, which compares with other models' figures.

MODEL is a folder or a Hub id. DIR gets `results.json`, the table `results.md`, the outcome of each sample, and the
results in the Hub's format, which a MODEL that is a folder gets too, for its card. An evaluation that was ended goes
on where it was. docs/evaluation.md says what each figure means.
"""

import argparse
import dataclasses
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402
from transformers.utils import logging  # noqa: E402

from examples.miniature.benchmarks import BENCHMARKS  # noqa: E402
from examples.miniature.threads import use_one_thread  # noqa: E402
from examples.stoppable import stoppable  # noqa: E402
from trainer.evaluation import Task, evaluate, library_versions, table1, write_report  # noqa: E402
from trainer.evaluation.drawing import Judges  # noqa: E402
from trainer.evaluation.drawing import tasks as drawing_tasks  # noqa: E402
from trainer.evaluation.drawing.draw import check_draws  # noqa: E402
from trainer.evaluation.drawing.evaluate import evaluate_drawing  # noqa: E402
from trainer.evaluation.drawing.tasks import DRAWING_TASKS, DrawingTask  # noqa: E402
from trainer.evaluation.loading import load_model_under_test  # noqa: E402


PROMPTS = "prompts"  # the task of one's own
GROUPS = {"miniature": [*BENCHMARKS], "table1": [*table1.TABLE1, *DRAWING_TASKS]}
NAMES = [*GROUPS, *BENCHMARKS, *table1.TABLE1, *DRAWING_TASKS, PROMPTS]


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--protocol", choices=["authors", "stock"], default="authors", help="of Table 1's tasks")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="a folder with one for each data set of Table 1"
    )
    parser.add_argument("--allow_code", action="store_true", help="run the programs that the model writes (mbpp)")
    parser.add_argument(
        "--authors_bugs",
        type=int,
        metavar="RANKS",
        help="show beside each figure of Table 1 what the bugs of the authors' evaluation on so many ranks make of it",
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="what the task `prompts` draws")
    parser.add_argument(
        "--judges",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="of drawings, such as clip=FOLDER, hps=FILE; docs/evaluation.md has them all",
    )
    parser.add_argument("--reference", type=Path, help="folder of images or file of statistics that FID is taken to")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="of drawings by judges")
    parser.add_argument("--guidance_scale", type=float, default=5.0, help="of drawings by judges")
    parser.add_argument("--revision")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N samples of each task")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("outputs/evaluation"))
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", help="by default the GPU of this process, or the CPU")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    use_one_thread()
    state = PartialState(cpu=options.device == "cpu" or not torch.cuda.is_available())
    try:
        names = task_names(options.tasks)
        device = options.device or state.device
        model = load_model_under_test(options.model, device, options.dtype, options.revision)
        judges = Judges.named(options.judges, str(device))
        stock = [name for name in names if options.protocol == "stock" and name in table1.TABLE1]
        own = [name for name in names if name not in stock]
        if stock:
            from trainer.evaluation.lm_harness import check_stock, stock_results

            check_stock(stock)
        tasks = [task_of(name, options, model.pipe.processor.tokenizer, judges) for name in own]
        asked, drawn = ([task for task in tasks if isinstance(task, kind)] for kind in (Task, DrawingTask))
        if drawn:
            check_draws(model.pipe)
        run = {
            "model": options.model,
            "revision": options.revision,
            "dtype": str(model.model.dtype).removeprefix("torch."),
            "device": model.model.device.type,
        }
        common = (options.batch_size, options.output, options.seed)
        results = evaluate(
            model, [first(task, options.limit) for task in asked], *common, {**run, "seed": options.seed}, tell
        )
        for task in drawn:
            results.append(evaluate_drawing(model.pipe, first(task, options.limit), options.model, *common, tell))
        for task, result in zip([*asked, *drawn], results, strict=True):
            result["num_all"] = task.num_samples
        if stock:
            results += stock_results(model, stock, options.limit, options.batch_size, options.allow_code)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for result in results:
        result["limit"] = options.limit if result["num_samples"] < result["num_all"] else None
    if state.is_main_process:
        run |= {"versions": library_versions(), "num_processes": state.num_processes, "batch_size": options.batch_size}
        folder = options.model if Path(options.model, "config.json").is_file() else None
        print(f"\n{write_report(results, run, options.output, folder)}\n\nAll of it is in {options.output}.")
    state.destroy_process_group()


def task_names(given: list[str]) -> list[str]:
    names = [name for group in given for name in GROUPS.get(group, [group])]
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"--tasks: there is no {unknown[0]!r}, only {', '.join(NAMES)}.")
    return [*dict.fromkeys(names)]


def tell(line: str):
    print(line, file=sys.stderr, flush=True)


def task_of(name: str, options, tokenizer, judges: Judges) -> Task | DrawingTask:
    if name in BENCHMARKS:
        return BENCHMARKS[name]()
    if name == PROMPTS or name in DRAWING_TASKS:
        return drawing_task_of(name, options, judges)
    task = table1.load(name, options.data, tokenizer, options.allow_code)
    return task if options.authors_bugs is None else table1.with_authors_bugs(task, options.authors_bugs)


def drawing_task_of(name: str, options, judges: Judges) -> DrawingTask:
    if name in DRAWING_TASKS:
        task = drawing_tasks.load(name, options.data, judges, options.protocol, options.reference)
    elif options.prompts is None:
        raise ValueError(f"--prompts: the task {PROMPTS!r} needs a file of them.")
    else:
        task = drawing_tasks.own_prompts(options.prompts, judges, options.reference)
    steps = {"num_inference_steps": options.num_inference_steps, "guidance_scale": options.guidance_scale}
    return dataclasses.replace(task, settings={**task.settings, **steps})


def first(task: Task | DrawingTask, limit: int | None) -> Task | DrawingTask:
    """Of its first samples, or prompts, if not of all."""
    if limit is None:
        return task
    if limit < 1:
        raise ValueError(f"--limit must be at least 1, got {limit}.")
    if isinstance(task, DrawingTask):
        return dataclasses.replace(task, prompts=task.prompts[:limit])
    return dataclasses.replace(task, samples=task.samples[:limit])


if __name__ == "__main__":
    with stoppable("The same command goes on from the last batch that was answered."):
        main()
