"""The outcome of each sample on disk, so that an evaluation that was killed goes on."""

import json
from pathlib import Path


FOLDER = "samples"


class Outcomes:
    """
    The outcomes of one task, a line each, in a file for each rank. A line that a kill has cut short is none.

    Args:
        folder (`str` or `Path`): the output of the evaluation.
        key (`str`): of the task.
        rank (`int`): this process.
        facts (`dict`): what the outcomes depend on, as JSON.

    Raises:
        ValueError: if what the folder holds depends on something else.
    """

    def __init__(self, folder: str | Path, key: str, rank: int, facts: dict):
        self.folder = Path(folder, FOLDER, key)
        self.file = self.folder / f"rank-{rank}.jsonl"
        self.facts = facts

    def read(self) -> dict[str, dict]:
        """Of each sample that is done, whoever did it, its outcome."""
        found = {}
        for file in sorted(self.folder.glob("rank-*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if "facts" in record:
                    self._check(record["facts"])
                else:
                    found[record["id"]] = record["outcome"]
        return found

    def write(self, outcomes: dict[str, dict]):
        """Adds those of a batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        is_new = not self.file.exists()
        with self.file.open("a", encoding="utf-8") as file:
            if is_new:
                file.write(json.dumps({"facts": self.facts}) + "\n")
            elif not _ends_a_line(self.file):
                file.write("\n")
            for name, outcome in outcomes.items():
                file.write(json.dumps({"id": name, "outcome": outcome}, ensure_ascii=False) + "\n")

    def _check(self, facts: dict):
        changed = [name for name in {**facts, **self.facts} if facts.get(name) != self.facts.get(name)]
        if changed:
            was, now = ({name: them.get(name) for name in changed} for them in (facts, self.facts))
            raise ValueError(
                f"`output_dir`: {self.folder} holds outcomes of another evaluation, {was} and not {now}: choose "
                "another folder, or delete it."
            )


def _ends_a_line(file: Path) -> bool:
    with file.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1) == b"\n"


__all__ = ["Outcomes"]
