"""
Pretrains one stage of a recipe, on one process or many.

    accelerate launch --config_file examples/accelerate_configs/single_gpu.yaml examples/pretrain.py \
        examples/recipes/1_lm.yaml [--architecture moe] [--max_steps 100] [...]

Every line of a recipe but its `data` can be changed on the command line: to train on your own, write a recipe that
`extends` another and has other `data`. The same command, given again after an interruption, goes on from the last
complete checkpoint in `output_dir`, and with `--resume_from_checkpoint PATH` from an earlier one; it says what was
changed since, and refuses what cannot be. When the last step is done `output_dir/model` holds a repository, which the
next stage starts from, and which `AutoModelForCausalLM` and, once it draws, `DiffusionPipeline` load.

    python examples/pretrain.py RECIPE --inspect [N]

trains nothing: it says what becomes of N records of each source, by default 1,000, and writes `output_dir/data.html`
with samples, pictures, targets and rows.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderKLFlux2
from transformers import PrinterCallback, ProgressCallback, set_seed


sys.path.insert(0, str(Path(__file__).parents[1]))

from modeling_rosetta import RosettaForCausalLMAndImageGeneration, RosettaProcessor  # noqa: E402
from trainer import (  # noqa: E402
    RosettaDataCollator,
    RosettaTrainer,
    RosettaTrainingArguments,
    train_backbone,
    train_projectors,
)
from trainer.checkpoints.folders import checkpoint_to_resume, take_back  # noqa: E402
from trainer.checkpoints.interruption import BY_KEYBOARD, BY_SIGTERM, end_interrupted  # noqa: E402
from trainer.data import DataSource, RosettaDataStream  # noqa: E402
from trainer.data.held_out import held_out_rows  # noqa: E402
from trainer.data.inspection import inspect_stream  # noqa: E402
from trainer.data.inspection_page import write_page  # noqa: E402
from trainer.data.loader import check_position  # noqa: E402
from trainer.figures.run_log import RunLog  # noqa: E402
from trainer.figures.samples_in_training import SamplesInTraining  # noqa: E402
from trainer.stages.recipe import StageArguments, read_recipe, stage_facts  # noqa: E402
from trainer.stages.repository import save_repository_of  # noqa: E402
from trainer.stages.run_description import refuse_changes, training_facts  # noqa: E402
from trainer.stages.starting_point import (  # noqa: E402
    layout_changes,
    missing_token_types,
    stage_processor,
    write_starting_point,
)


def main(arguments: list[str]):
    inspecting = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    inspecting.add_argument("--inspect", type=int, nargs="?", const=1000)
    options, arguments = inspecting.parse_known_args(arguments)
    if {"-h", "--help"} & {*arguments}:
        print(__doc__)
    try:
        stage, sources, training = read_recipe(arguments)
        if options.inspect is not None:
            return inspect(stage, sources, training, options.inspect)
        checkpoint = checkpoint_to_resume(training.output_dir, training.resume_from_checkpoint)
        if checkpoint is not None:
            refuse_changes(checkpoint, {**stage_facts(stage, sources), **training_facts(training)})
        missing = missing_token_types(stage, {source.task for source in sources})
        # Opened now, so that data that are not there are missed before a model is made; read with its processor.
        stream = stream_of(stage, sources, training)
        if checkpoint is not None:
            check_position(checkpoint, stream, training.dataloader_num_workers)
        check_watched(stage, sources, missing)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{error}") from error
    set_seed(training.seed)
    try:
        trainer, vae = prepare(stage, stream, training, missing, checkpoint)
        trainer.facts = stage_facts(stage, sources)
        watch(trainer, stage, sources, vae)
        if checkpoint is not None:
            trainer.describe_run(checkpoint)  # what cannot go on is not taken back either
            take_back(training.output_dir, checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint)
        if (step := trainer.state.global_step) < training.max_steps:
            end_interrupted(training, f"after step {step} of {training.max_steps}", BY_SIGTERM)
        save_repository_of(trainer, Path(training.output_dir, "model"), vae, stage.stage, shares(sources))
    except KeyboardInterrupt:
        end_interrupted(training, "by the keyboard", BY_KEYBOARD)


def stream_of(stage: StageArguments, sources: list[DataSource], training, processor=None) -> RosettaDataStream:
    return RosettaDataStream(
        sources,
        processor,
        stage.max_length,
        seed=training.seed,
        prompt_dropout=stage.prompt_dropout,
        max_skipped_share=stage.max_skipped_share,
        shares_of=stage.shares_of,
    )


def inspect(stage: StageArguments, sources: list[DataSource], training, num_records: int):
    """Says what becomes of the data, and trains nothing."""
    if num_records < 1:
        raise ValueError(f"`inspect` must be at least 1, got {num_records}.")
    logging.getLogger("trainer.data").setLevel(logging.ERROR)  # what is skipped is in the report
    processor = stage_processor(stage, missing_token_types(stage, {source.task for source in sources}))
    try:
        report = inspect_stream(stream_of(stage, sources, training, processor), num_records)
    except RuntimeError as error:  # a file that cannot be read at all
        raise ValueError(f"{error}") from error
    page = Path(training.output_dir, "data.html")
    page.parent.mkdir(parents=True, exist_ok=True)
    write_page(report, processor, page, title=f"Data of the stage {stage.stage}")
    print(f"{report}\nSamples, pictures and rows are in {page}.")


def prepare(
    stage: StageArguments,
    stream: RosettaDataStream,
    training: RosettaTrainingArguments,
    missing: list[str],
    checkpoint: str | None,
) -> tuple[RosettaTrainer, AutoencoderKLFlux2 | None]:
    """The trainer of a stage, and its VAE if it has one."""
    output_dir, start = Path(training.output_dir), stage.model
    # What the model lacks is made once, by the main process; then all load the same weights.
    if missing:
        start = output_dir / "start"
        if PartialState().is_main_process and not (checkpoint and start.is_dir()):
            write_starting_point(start, stage, missing)
        PartialState().wait_for_everyone()
    stream.processor = processor = RosettaProcessor.from_pretrained(
        start, trust_remote_code=True, **layout_changes(stage)
    )
    # Flex attention never holds the mask of a row, but trains on a GPU only.
    attention = {"": "flex_attention" if training.device.type == "cuda" else "sdpa", "vision_config": "sdpa"}
    model = RosettaForCausalLMAndImageGeneration.from_pretrained(
        start, dtype=torch.float32, attn_implementation=attention
    )
    (train_projectors if stage.train == "projectors" else train_backbone)(model)
    vae = None if stage.vae is None else AutoencoderKLFlux2.from_pretrained(stage.vae, subfolder="vae")

    pad, length = processor.tokenizer.pad_token_id, stage.max_length
    held_out = {
        name: held_out_rows(source, processor, length, stage.validation_samples, training.seed)
        for name, source in stage.validation.items()
    }
    trainer = RosettaTrainer(
        model,
        training,
        train_dataset=stream,
        eval_dataset=held_out or None,
        data_collator=RosettaDataCollator(pad, length, pad_to_multiple_of=length),  # one shape, compiled once
        processing_class=processor,
        vae=vae,
    )
    return trainer, vae


def check_watched(stage: StageArguments, sources: list[DataSource], missing: list[str]):
    """That what a run is evaluated on and asked is there, and within what its model can do."""
    held_out = [*stage.validation.values()]
    tasks = {source.task for source in (*sources, *held_out)}
    if beyond := set(missing_token_types(stage, tasks)) - {*missing}:
        raise ValueError(f"`validation` needs {sorted(beyond)}, which neither the model nor its `data` have.")
    for source in held_out:
        source.open()
    if stage.samples is not None:
        stage.samples.check_images()
        if stage.samples.prompts and stage.vae is None:
            raise ValueError("`samples`: `vae` must be given to draw `prompts`.")


def watch(trainer: RosettaTrainer, stage: StageArguments, sources: list[DataSource], vae):
    """Has the run say what it is and how it goes, in lines and on a page, and draw and answer on the way."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    total = sum(source.weight for source in sources)
    header = [f"{source.weight / total:.0%} of the {stage.shares_of}: {source}" for source in sources]
    header += [f"held out as {name}: {source}" for name, source in stage.validation.items()]
    header.append(f"{stage.global_batch_size:,} rows of {stage.max_length:,} tokens a step")
    if stage.samples is not None:
        parts = (trainer.processing_class, vae, trainer.callback_handler.callbacks, trainer.paused)
        trainer.add_callback(SamplesInTraining(stage.samples, *parts))
    trainer.add_callback(RunLog(f"Stage {stage.stage}", header))


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
