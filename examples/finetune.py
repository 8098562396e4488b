"""
Fine-tunes a released Rosetta on a folder of your images and their captions, so that it draws like them.

    accelerate launch examples/finetune.py --model owner/name --images my_images [--train lora] [--max_steps 500] [...]

The folder holds images with a `metadata.jsonl` of lines like {"file_name": "a.png", "text": "a red stone"}, or with a
text file of the same name beside each image. Of a list of captions one is drawn each time. `--train`:

- `vae` (default): what serves drawing and nothing else, so that the model reads and sees as before, bit for bit;
- `full`: everything but the ViT and the VAE, at the paper's rates and under MAOP;
- `lora`: adapters on the attention, a small file of their own.

Then `DiffusionPipeline.from_pretrained("outputs/finetuned/model", trust_remote_code=True)` draws; after `lora` it is
the released pipeline, after `pipeline.transformer.load_adapter("outputs/finetuned/adapter")`. That folder has a card:
`hf upload owner/my-adapter outputs/finetuned/adapter` publishes it.

The same command, given again after an interruption, goes on from the last checkpoint in `output_dir`, and with
`--resume_from_checkpoint PATH` from that one.
"""

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, tqdm
from diffusers import AutoencoderKLFlux2
from torch.utils.data import Dataset
from transformers import HfArgumentParser, set_seed


sys.path.insert(0, str(Path(__file__).parents[1]))

from modeling_rosetta import RosettaForCausalLMAndImageGeneration, RosettaProcessor, encode_images  # noqa: E402
from modeling_rosetta.images_rosetta import read_image  # noqa: E402
from trainer import (  # noqa: E402
    RosettaDataCollator,
    RosettaTrainer,
    RosettaTrainingArguments,
    train_backbone,
    train_token_types,
    training_record,
)
from trainer.checkpoints.folders import checkpoint_to_resume, take_back  # noqa: E402
from trainer.checkpoints.interruption import BY_KEYBOARD, BY_SIGTERM, end_interrupted  # noqa: E402
from trainer.checkpoints.sharding import unsharded_model  # noqa: E402
from trainer.data.image_folder import find_images  # noqa: E402
from trainer.lora import lora_config  # noqa: E402
from trainer.stages.adapter_card import adapter_card  # noqa: E402
from trainer.stages.repository import save_repository_of  # noqa: E402
from trainer.stages.run_description import refuse_changes, training_facts  # noqa: E402


DEFAULTS = {
    "learning_rate": None,  # that of `LEARNING_RATES`
    "generation_learning_rate": 1e-4,
    "latent_projections_at_generation_rate": True,
    "output_dir": "outputs/finetuned",
    "max_steps": 500,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 20,
    "logging_steps": 10,
    "report_to": "none",
}
IMAGES_AT_A_TIME = 8  # that are decoded, on each process
LEARNING_RATES = {"vae": 1e-4, "full": 1e-5, "lora": 1e-4}  # what serves drawing alone has the generative rate


@dataclass
class FineTuning:
    model: str = field(metadata={"help": "Folder or Hub id of a Rosetta that draws."})
    images: Path = field(metadata={"help": "Folder of images and captions."})
    train: str = field(default="vae", metadata={"help": "What is trained.", "choices": list(LEARNING_RATES)})
    caption_column: str = field(default="text", metadata={"help": "Column of the captions in `metadata.jsonl`."})
    prompt_dropout: float = field(default=0.1, metadata={"help": "Share of drawings without a prompt, for guidance."})
    lora_rank: int = 16


class CaptionedImages(Dataset):
    """Samples of images to draw, from their latents `(C, h, w)` and their captions."""

    def __init__(self, latents: list[torch.Tensor], captions: list[list[str]], processor, prompt_dropout: float):
        self.latents, self.captions = latents, captions
        self.processor, self.prompt_dropout = processor, prompt_dropout

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict:
        captions = self.captions[index]
        caption = captions[torch.randint(len(captions), ())] if len(captions) > 1 else captions[0]
        answer = {"role": "assistant", "content": [{"type": "latents", "latents": self.latents[index]}]}
        sample = self.processor.training_sample([{"role": "user", "content": caption}, answer])
        return self.processor.drop_prompt(sample) if torch.rand(()) < self.prompt_dropout else sample


def encode(files: list[Path], processor, vae, disable_tqdm: bool = False) -> list[torch.Tensor]:
    """
    The latents `(C, h, w)` of images, each brought to its bucket's size. A process encodes its share of them, some at
    a time; all get all.

    Raises:
        ValueError: on all processes, if an image cannot be read; it names the file.
    """
    state, latents = PartialState(), {}
    own = list(range(len(files)))[state.process_index :: state.num_processes]
    progress = tqdm(total=len(own), desc="Encoding images", disable=disable_tqdm)
    for start in range(0, -(-len(files) // state.num_processes), IMAGES_AT_A_TIME):
        some, by_size, encoded = own[start : start + IMAGES_AT_A_TIME], {}, []
        for index in some:
            try:
                pixels = processor.preprocess_vae_image(read_image(files[index], f"`images`: '{files[index]}'"))
                by_size.setdefault(pixels.shape, []).append((index, pixels))
            except ValueError as error:
                encoded.append((index, f"{error}"))
        for members in by_size.values():
            batch = encode_images(vae, torch.stack([pixels for _, pixels in members]).to(vae.device))
            encoded += [(index, one.clone()) for (index, _), one in zip(members, batch.cpu(), strict=True)]
        latents.update(gather_object(encoded))  # also what could not be read: none waits for one that has given up
        if errors := [error for error in latents.values() if isinstance(error, str)]:
            raise ValueError("\n".join(errors))
        progress.update(len(some))
    progress.close()
    return [latents[index] for index in range(len(files))]


def load(name: str) -> tuple[RosettaForCausalLMAndImageGeneration, RosettaProcessor, AutoencoderKLFlux2]:
    """The parts of a released Rosetta; raises a `ValueError` if it does not draw."""
    model = RosettaForCausalLMAndImageGeneration.from_pretrained(name, dtype=torch.float32)
    if model.config.token_type_index("noisy_latents") is None:
        raise ValueError("It does not draw.")
    processor = RosettaProcessor.from_pretrained(name, trust_remote_code=True)
    return model, processor, AutoencoderKLFlux2.from_pretrained(name, subfolder="vae").eval()


def run_facts(options: FineTuning, captioned: list[tuple[Path, list[str]]]) -> dict:
    """What a run that goes on is compared by, besides its arguments."""
    sources = repr([(file.name, captions) for file, captions in captioned])
    return {
        "model": options.model,
        "train": options.train,
        "sources": f"{len(captioned)} images, {hashlib.sha256(sources.encode()).hexdigest()[:16]}",
        "prompt_dropout": options.prompt_dropout,
    }


def main(arguments: list[str] | None = None):
    parser = HfArgumentParser([FineTuning, RosettaTrainingArguments], allow_abbrev=False)
    parser.set_defaults(**DEFAULTS)
    options, training = parser.parse_args_into_dataclasses(arguments)
    if training.learning_rate is None:
        training.learning_rate = LEARNING_RATES[options.train]
    try:
        captioned = find_images(options.images, options.caption_column)
        checkpoint = checkpoint_to_resume(training.output_dir, training.resume_from_checkpoint)
        facts = run_facts(options, captioned)
        if checkpoint is not None:
            refuse_changes(checkpoint, {**facts, **training_facts(training)})
    except (OSError, ValueError) as error:
        raise SystemExit(f"{error}") from error
    try:
        model, processor, vae = load(options.model)
    except (OSError, ValueError) as error:
        raise SystemExit(f"`model`: '{options.model}' cannot be fine-tuned. {error}") from error
    files, captions = zip(*captioned, strict=True)
    try:
        try:
            latents = encode(files, processor, vae.to(training.device), bool(training.disable_tqdm))
        except ValueError as error:
            raise SystemExit(f"{error}") from error
        vae.cpu()
        dataset = CaptionedImages(latents, captions, processor, options.prompt_dropout)
        trainer = prepare(options, training, model, dataset)
        trainer.facts = facts
        if checkpoint is not None:
            trainer.describe_run(checkpoint)  # what cannot go on is not taken back either
            take_back(training.output_dir, checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint)
        if trainer.was_stopped:
            state = trainer.state
            end_interrupted(training, f"after step {state.global_step} of {state.max_steps}", BY_SIGTERM)
        save(trainer, options, vae, f"{len(files)} images")
    except KeyboardInterrupt:
        end_interrupted(training, "by the keyboard", BY_KEYBOARD)


def prepare(options: FineTuning, training: RosettaTrainingArguments, model, dataset) -> RosettaTrainer:
    """A trainer of what is to be trained."""
    set_seed(training.seed)
    if options.train == "lora":
        model.add_adapter(lora_config(model.config, r=options.lora_rank, lora_alpha=options.lora_rank))
    elif options.train == "vae":
        train_token_types(model, "vae")
    else:
        train_backbone(model)
    return RosettaTrainer(
        model,
        training,
        train_dataset=dataset,
        data_collator=RosettaDataCollator(dataset.processor.tokenizer.pad_token_id),
        processing_class=dataset.processor,
    )


def save(trainer: RosettaTrainer, options: FineTuning, vae: AutoencoderKLFlux2, data: str):
    """Saves the repository, or of LoRA the adapter."""
    output_dir = Path(trainer.args.output_dir)
    if options.train != "lora":
        save_repository_of(trainer, output_dir / "model", vae, "fine-tuning", data)
    elif (adapted := unsharded_model(trainer.accelerator, trainer.model_wrapped)) is not None:
        adapted.save_pretrained(output_dir / "adapter")
        record = training_record(trainer, "fine-tuning", data)
        adapter_card(options.model, record, options.lora_rank).save(output_dir / "adapter" / "README.md")


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()
