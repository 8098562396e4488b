"""
lm-eval with Rosetta: its own tasks, with `hf`, and those of the authors' protocol, with `rosetta`.

    python -m trainer.evaluation.lm_harness run --model rosetta \\
        --model_args pretrained=REPO,trust_remote_code=True,dtype=bfloat16 \\
        --tasks rosetta_mmlu --metadata '{"data": "DATA"}'
"""

import sys
from pathlib import Path

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM


TASKS = Path(__file__).parent / "lm_tasks"
# What the harness has of Table 1: its name for a task, how many examples to give, its figure.
STOCK = {
    "mmlu": ("mmlu", 5, "acc,none"),
    "bbh": ("bbh_fewshot", None, "exact_match,none"),
    "arc_challenge": ("arc_challenge", None, "acc_norm,none"),
    "mbpp": ("mbpp", None, "pass_at_1,none"),
}


@register_model("rosetta")
class BareLetters(HFLM):
    """
    `hf` of lm-eval, but for continuations that begin without white space: these are tokenised apart from the prompt,
    so that the letter behind `Answer:` is the token `A`, as the authors score it. Together, `:A` would be one token.
    """

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if continuation[:1].isspace() or context[-1:].isspace():
            return super()._encode_pair(context, continuation)
        return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)


def check_stock(names: list[str]):
    """
    Raises:
        ValueError: if one has no task of the harness's own.
    """
    if unknown := [name for name in names if name not in STOCK]:
        raise ValueError(f"{unknown[0]!r} has no stock task in lm-eval, only {[*STOCK]} have.")


def stock_results(
    model, names: list[str], limit: int | None = None, batch_size: int = 8, allow_code: bool = False, **arguments
) -> list[dict]:
    """
    The harness's own tasks, as results of [`evaluate`].

    Args:
        model ([`ModelUnderTest`])
        names (`list[str]`): of [`STOCK`].
        limit (`int`, *optional*): the first samples of each subtask.
        batch_size (`int`, defaults to 8)
        allow_code (`bool`, defaults to `False`): whether tasks may run what the model writes; the harness runs it
            without the limits of [`passes`].
        arguments: further ones of lm-eval's `simple_evaluate`.

    Raises:
        ValueError: if a task is none of the harness's, or runs code that is not allowed, or its data cannot be had.
    """
    from lm_eval import __version__, simple_evaluate

    check_stock(names)
    harness = HFLM(pretrained=model.model, tokenizer=model.pipe.processor.tokenizer, batch_size=batch_size)
    results = []
    for name in names:
        task, num_fewshot, figure = STOCK[name]
        try:
            found = simple_evaluate(
                harness,
                tasks=[task],
                num_fewshot=num_fewshot,
                limit=limit,
                confirm_run_unsafe_code=allow_code,
                log_samples=False,
                **arguments,
            )
        except (ConnectionError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"Task {name} (lm-eval's {task}) cannot be evaluated: {reason}") from error
        if found is not None:  # on the main rank
            results.append(_result(name, task, figure, found, f"lm-eval {__version__}"))
    return results


def _result(name: str, task: str, figure: str, found: dict, harness: str) -> dict:
    values, counts = found["results"][task], found["n-samples"]
    value, error = values[figure], values.get(figure.replace(",", "_stderr,"))
    half = 1.96 * error if isinstance(error, float) else float("nan")
    subtasks = [key for key in counts if key == task or task in found["group_subtasks"]]
    return {
        "task": name,
        "protocol": "stock",
        "metrics": {figure.split(",")[0]: {"value": value, "low": value - half, "high": value + half}},
        "higher_is_better": True,
        "num_samples": sum(counts[key]["effective"] for key in subtasks),
        "num_all": sum(counts[key]["original"] for key in subtasks),
        "num_missed": 0,
        "seed": None,
        "dataset": None,
        "remarks": [f"{harness}'s task {task}; the interval is 1.96 of its standard errors."],
    }


def main():
    """lm-eval's own command, which finds the tasks of the authors' protocol."""
    if "--include_path" not in sys.argv and sys.argv[1:2] in (["run"], ["ls"], ["validate"]):
        sys.argv += ["--include_path", str(TASKS)]
    cli_evaluate()


if __name__ == "__main__":
    main()


__all__ = ["BareLetters", "STOCK", "TASKS", "check_stock", "main", "stock_results"]
