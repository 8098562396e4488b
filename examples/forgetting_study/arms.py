"""The arms of the study: rows of a YAML file."""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

import yaml


ARCHITECTURES = ("rosetta", "moe", "mot", "no shared expert")
TRAINED = ("backbone", "vae", "lora")
IMPORTANCES = ("moments", "fisher", "equal")


@dataclass(frozen=True)
class Arm:
    """
    One way to add drawing to a model that reads and sees.

    Args:
        name (`str`): of the method.
        architecture (`str`): one of `ARCHITECTURES`.
        regime (`str`): the name of the shares of old and new samples.
        ratios (`dict[str, float]`): these shares.
        train (`str`): `"backbone"`, all; `"vae"`, what serves drawing alone; `"lora"`, that and adapters on the rest.
        learning_rate, generation_learning_rate, shield_steps, maop, maop_granularity, maop_second_moment,
            anchor_strength: as of [`RosettaTrainingArguments`].
        importance (`str`): what the anchor goes by: the earlier stage's `"moments"`, the diagonal of the true
            `"fisher"`, or all `"equal"`.
        num_vae_experts (`int`): of which `config.num_experts_per_tok` are active.
        averages (`tuple[float, ...]`): shares of the new weights in averages with the old ones, each evaluated.
    """

    name: str
    architecture: str
    regime: str
    ratios: tuple[tuple[str, float], ...]
    train: str
    learning_rate: float
    generation_learning_rate: float | None
    shield_steps: int
    maop: bool
    maop_granularity: str = "tensor"
    maop_second_moment: str = "projected"
    anchor_strength: float | None = None
    importance: str = "moments"
    num_vae_experts: int = 6
    averages: tuple[float, ...] = ()

    def __post_init__(self):
        for field, choices in (("architecture", ARCHITECTURES), ("train", TRAINED), ("importance", IMPORTANCES)):
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"`{field}` of the arm '{self.name}' must be one of {choices}, got {getattr(self, field)!r}."
                )

    @property
    def id(self) -> str:
        """Names the arm among all others, also as a file."""
        words = [self.name, self.architecture, self.regime, f"rate {self.learning_rate:g}"]
        if self.anchor_strength is not None:
            words.append(f"strength {self.anchor_strength:g}")
        if self.num_vae_experts != 6:
            words.append(f"{self.num_vae_experts} experts")
        return ", ".join(words)


def read_arms(file: str | Path) -> list[Arm]:
    """
    Raises:
        ValueError: if a row has a field that no arm has or a value that none may have, or two arms are the same.
    """
    stored = yaml.safe_load(Path(file).read_text())
    regimes = stored["regimes"]
    known = {field.name for field in dataclasses.fields(Arm)} - {"ratios"}
    arms = []
    for row in stored["arms"]:
        row = {**stored["defaults"], **row}
        if unknown := row.keys() - known:
            raise ValueError(f"An arm must have fields of {sorted(known)}, got {sorted(unknown)}.")
        if row["regime"] not in regimes:
            raise ValueError(
                f"`regime` of the arm '{row['name']}' must be one of {list(regimes)}, got {row['regime']!r}."
            )
        averages = tuple(row.pop("averages", ()))
        values = [value if isinstance(value, list) else [value] for value in row.values()]
        for combination in itertools.product(*values):
            fields = dict(zip(row, combination, strict=True))
            arms.append(Arm(**fields, ratios=tuple(regimes[fields["regime"]].items()), averages=averages))
    ids = [arm.id for arm in arms]
    if twice := {one for one in ids if ids.count(one) > 1}:
        raise ValueError(f"Arms must differ in what they are called by, got twice: {sorted(twice)}.")
    return arms
