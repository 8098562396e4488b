"""The card of an adapter: what it goes on, how it is loaded, what it was trained with."""

import os

from huggingface_hub import ModelCard, ModelCardData


CARD = """---
{metadata}
---

# An adapter of {name}

LoRA of rank {rank} on a Rosetta, trained for {steps} steps on {data}.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{base}", trust_remote_code=True)
pipeline.transformer.load_adapter("FOLDER_OR_ID_OF_THIS_ADAPTER")
pipeline("a red stone").images[0].save("stone.png")
```

| hyperparameter | value |
| --- | --- |
{hyperparameters}
"""


def adapter_card(base_model: str | os.PathLike, record: dict, rank: int) -> ModelCard:
    """
    Args:
        base_model (`str` or `os.PathLike`): Hub id of what the adapter goes on, or a folder, which is not named.
        record (`dict`): of its training, from [`training_record`].
        rank (`int`): of the adapter.
    """
    base = None if os.path.isdir(base_model) else str(base_model)
    metadata = ModelCardData(
        base_model=base, library_name="peft", pipeline_tag="text-to-image", tags=["rosetta", "lora"]
    )
    rows = [f"| `{name}` | {value} |" for name, value in record["hyperparameters"].items()]
    return ModelCard(
        CARD.format(
            metadata=metadata.to_yaml(),
            name=base or "a Rosetta",
            base=base or "FOLDER_OR_ID_OF_THAT_ROSETTA",
            rank=rank,
            steps=record["steps"],
            data=record["data"] or "data of its owner",
            hyperparameters="\n".join(rows),
        )
    )


__all__ = ["adapter_card"]
