"""
Pretrains one stage of a recipe, on one process or many.

    accelerate launch --config_file examples/accelerate_configs/single_gpu.yaml examples/pretrain.py \
        examples/recipes/1_lm.yaml [--architecture moe] [--max_steps 100] [...]

Every line of a recipe can be changed on the command line. The data are in the recipe: to train on your own, write one
that `extends` a recipe and has other `data`. The same command, given again after an interruption, goes on from the
last complete checkpoint in `output_dir`. In the end `output_dir/model` holds a repository, which the next stage
starts from, and which `AutoModelForCausalLM` and, once it draws, `DiffusionPipeline` load.
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderKLFlux2
from transformers import set_seed


sys.path.insert(0, str(Path(__file__).parents[1]))

from modeling_rosetta import RosettaForCausalLMAndImageGeneration, RosettaProcessor  # noqa: E402
from trainer import RosettaDataCollator, RosettaTrainer, train_backbone, train_projectors  # noqa: E402
from trainer.checkpoints.folders import last_complete_checkpoint  # noqa: E402
from trainer.data import DataSource, RosettaDataStream  # noqa: E402
from trainer.stages.recipe import read_recipe  # noqa: E402
from trainer.stages.repository import save_repository_of  # noqa: E402
from trainer.stages.starting_point import missing_token_types, write_starting_point  # noqa: E402


def main(arguments: list[str]):
    try:
        stage, sources, training = read_recipe(arguments)
        missing = missing_token_types(stage, {source.task for source in sources})
        # Opened now, so that data that are not there are missed before a model is made; read with its processor.
        stream = RosettaDataStream(
            sources, None, stage.max_length, training.seed, stage.prompt_dropout, stage.max_skipped_share
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"{error}") from error
    output_dir, start = Path(training.output_dir), stage.model
    checkpoint = last_complete_checkpoint(output_dir)
    set_seed(training.seed)

    # What the model lacks is made once, by the main process; then all load the same weights.
    if missing:
        start = output_dir / "start"
        if PartialState().is_main_process and not (checkpoint and start.is_dir()):
            write_starting_point(start, stage, missing)
        PartialState().wait_for_everyone()
    stream.processor = processor = RosettaProcessor.from_pretrained(start, trust_remote_code=True)
    # Flex attention never holds the mask of a row, but trains on a GPU only.
    attention = {"": "flex_attention" if training.device.type == "cuda" else "sdpa", "vision_config": "sdpa"}
    model = RosettaForCausalLMAndImageGeneration.from_pretrained(
        start, dtype=torch.float32, attn_implementation=attention
    )
    (train_projectors if stage.train == "projectors" else train_backbone)(model)
    vae = None if stage.vae is None else AutoencoderKLFlux2.from_pretrained(stage.vae, subfolder="vae")

    pad, length = processor.tokenizer.pad_token_id, stage.max_length
    trainer = RosettaTrainer(
        model,
        training,
        train_dataset=stream,
        data_collator=RosettaDataCollator(pad, length, pad_to_multiple_of=length),  # one shape, compiled once
        processing_class=processor,
        vae=vae,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    save_repository_of(trainer, output_dir / "model", vae, stage.stage, shares(sources))


def shares(sources: list[DataSource]) -> str:
    """What a stage is trained on, in words; paths on this machine are nobody's business."""
    total = sum(source.weight for source in sources)
    return ", ".join(
        f"{source.weight / total:.0%} {source.task.upper()}"
        + ("" if Path(source.path).exists() else f" {source.path}")
        for source in sources
    )


if __name__ == "__main__":
    main(sys.argv[1:])
    PartialState().destroy_process_group()
