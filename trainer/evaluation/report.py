"""What is left of an evaluation: one JSON, one table, and results in the Hub's format."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml


HUB_FOLDER = ".eval_results"


def write_report(results: list[dict], run: dict, output_dir: str | os.PathLike, model_folder=None) -> str:
    """
    Writes `results.json`, `results.md` and, for each result of a whole task, `.eval_results/TASK--PROTOCOL.yaml`.

    Args:
        results (`list[dict]`): from [`evaluate`].
        run (`dict`): what is true of all of them: model, versions, settings.
        output_dir (`str` or `os.PathLike`)
        model_folder (`str` or `os.PathLike`, *optional*): a saved repository, which gets its `.eval_results`, too, so
            that its card shows them.

    Returns:
        `str`: the table.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    table = results_table(results)
    whole = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **run, "results": results}
    _replace(folder / "results.json", json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    _replace(folder / "results.md", table + "\n")
    for target in {folder, *([Path(model_folder)] if model_folder is not None else [])}:
        for result in results:
            if not result.get("limit"):
                (target / HUB_FOLDER).mkdir(exist_ok=True)
                file = target / HUB_FOLDER / f"{result['task']}--{result['protocol']}.yaml"
                _replace(file, yaml.safe_dump(hub_entries(result, whole["date"]), sort_keys=False, allow_unicode=True))
    return table


def hub_entries(result: dict, date: str) -> list[dict]:
    """A result as the Hub wants it: its first figure."""
    name, figure = next(iter(result["metrics"].items()))
    dataset, task = result["dataset"] or (result["task"], "default")
    notes = (
        f"{name}, {result['protocol']} protocol, {result['num_samples']} samples, 95% interval "
        f"{interval_of(figure) or 'none'}, {result['num_missed']} answers unreadable"
    )
    entry = EvalResultEntry(dataset, task, round(figure["value"], 6), date=date[:10], notes=notes)
    return eval_result_entries_to_yaml([entry])


def interval_of(figure: dict) -> str | None:
    """A Frechet distance has none."""
    return None if figure["low"] is None else f"{figure['low']:.4g} to {figure['high']:.4g}"


def results_table(results: list[dict]) -> str:
    """A markdown table, a line for each figure."""
    cells = [["task", "protocol", "figure", "value", "95% interval", "samples", "unreadable"]]
    for result in results:
        limit = f" (the first of {result['num_all']})" if result.get("limit") else ""
        for name, figure in result["metrics"].items():
            interval = interval_of(figure) or "none"
            counts = [f"{result['num_samples']}{limit}", str(result["num_missed"])]
            cells.append([result["task"], result["protocol"], name, f"{figure['value']:.4g}", interval, *counts])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    cells.insert(1, ["-" * width for width in widths])
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    table = "\n".join(f"| {line} |" for line in lines)
    remarks = [
        f"- {result['task']} ({result['protocol']}): {remark}" for result in results for remark in result["remarks"]
    ]
    return "\n".join([table, *([""] if remarks else []), *remarks])


def _replace(file: Path, text: str):
    """Whole or not at all."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


__all__ = ["hub_entries", "results_table", "write_report"]
