"""
A fourth token type on the miniature: it learns to hear, and forgets nothing.

The tones of a telephone's keys in noise become features of 20 ms frames. A token type `tone` is mounted on a trained
model and trained alone, until the model answers by ear what it could answer by sight: which digit is this? Text,
pictures and drawings are compared bit for bit before and after. Then the type is taken off again.

    make quickstart
    python examples/mount_tones.py [--model outputs/quickstart/model] [--output_dir outputs/tones] [--seed 0]
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import set_seed
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.miniature.conversations import question_only, questions_and_answers, read_answer  # noqa: E402
from examples.miniature.digits import load_digits  # noqa: E402
from examples.miniature.english import load_english  # noqa: E402
from examples.miniature.language_model import pack_text  # noqa: E402
from examples.miniature.mixture import Mixture  # noqa: E402
from examples.miniature.progress import show_progress  # noqa: E402
from examples.miniature.report import results_table  # noqa: E402
from examples.miniature.threads import use_one_thread  # noqa: E402
from examples.stoppable import stoppable  # noqa: E402
from modeling_rosetta import (  # noqa: E402
    RosettaForCausalLMAndImageGeneration,
    RosettaPipeline,
    RosettaProcessor,
    mount,
    unmount,
)
from trainer import (  # noqa: E402
    RosettaDataCollator,
    RosettaTrainer,
    RosettaTrainingArguments,
    train_token_types,
)


SAMPLE_RATE, FRAME, NUM_FRAMES = 8000, 160, 4
BANDS = slice(13, 31)  # of 50 Hz each: 650 to 1,550 Hz
# Two frequencies sound for each key.
KEYPAD = {
    int(key): (low, high)
    for low, keys in ((697, "123"), (770, "456"), (852, "789"), (941, "*0#"))
    for key, high in zip(keys, (1209, 1336, 1477), strict=True)
    if key.isdigit()
}
TONE = {
    "name": "tone",
    "embeds_from": "tone_features",
    "expert_pool": "tone",
    "attention_stream": "shared",
    "shared_expert": "global",
    "feature_size": BANDS.stop - BANDS.start,
}
NUM_STEPS, SAMPLES_PER_STEP = 200, 40


def tone(digit: int, generator: torch.Generator) -> torch.Tensor:
    """80 ms of a key's tone at a random phase in white noise, as log power: (4 frames, 18 bands)."""
    time = torch.arange(NUM_FRAMES * FRAME) / SAMPLE_RATE
    phases = 2 * torch.pi * torch.rand(2, generator=generator)
    sound = sum(torch.sin(2 * torch.pi * f * time + phase) for f, phase in zip(KEYPAD[digit], phases, strict=True))
    sound = sound + torch.randn(len(time), generator=generator)
    power = torch.fft.rfft(sound.view(NUM_FRAMES, FRAME) * torch.hann_window(FRAME)).abs().square()
    return power[:, BANDS].log() / 4


def heard(digit: int, choose: random.Random) -> tuple[list[dict], str]:
    """A question about a tone, and its answer."""
    text, answer = choose.choice([pair for pair in questions_and_answers(digit) if "digit" in pair[0]])
    features = tone(digit, torch.Generator().manual_seed(choose.getrandbits(40)))
    items = [{"type": "tone_features", "tone_features": features}, {"type": "text", "text": text}]
    return [{"role": "user", "content": items}], answer


@torch.no_grad()
def hearing(model, processor, num_tones: int = 200) -> float:
    """Share of the tones, none of them trained on, that are answered with the right digit."""
    choose = random.Random("held out")
    conversations = [heard(i % 10, choose)[0] for i in range(num_tones)]
    inputs = processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    output = model.eval().generate(**inputs, max_new_tokens=16, do_sample=False)
    given = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(read_answer(text) == i % 10 for i, text in enumerate(given)) / num_tones


@torch.no_grad()
def other_skills(model, processor) -> dict[str, torch.Tensor]:
    """What the model computes of held-out text, of questions about held-out pictures, and of drawings."""
    model.eval()
    _, digits = load_digits()
    rows = pack_text(processor.tokenizer, load_english().held_out)[:32]
    questions = [question_only(image, "Which digit is this?") for image in digits.images[:64]]
    seen = processor.apply_chat_template(questions, tokenize=True, return_dict=True, return_tensors="pt", padding=True)
    pipeline = RosettaPipeline(model, None, FlowMatchEulerDiscreteScheduler(), processor)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline(["draw a seven"] * 8, num_inference_steps=5, generator=generator, output_type="latent").images
    return {"text": model(rows).logits, "pictures": model(**seen).logits, "drawings": drawn}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=Path("outputs/quickstart/model"), help="made by `make quickstart`"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/tones"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.model.is_dir():
        parser.error(f"`--model` must be a folder, {options.model} is none: run `make quickstart` first.")
    use_one_thread()
    logging.disable_progress_bar()
    set_seed(options.seed)
    model = RosettaForCausalLMAndImageGeneration.from_pretrained(options.model)
    processor = RosettaProcessor.from_pretrained(options.model, trust_remote_code=True)
    original = {name: value.clone() for name, value in model.state_dict().items()}
    original_config = model.config.to_dict()
    before, rows = other_skills(model, processor), {}

    def report(stage: str):
        now = other_skills(model, processor)
        rows[stage] = {"tones": f"{hearing(model, processor):.1%}" if "tone" in model.config.pools else "-"}
        rows[stage] |= {skill: "same bits" if torch.equal(now[skill], before[skill]) else "changed" for skill in now}
        print(f"{stage}: " + ", ".join(f"{skill} {figure}" for skill, figure in rows[stage].items()))

    report("before")
    # Its experts start as copies of those that see: what is to be heard is what could be seen.
    mount(model, TONE, num_experts=3, init_from="vit", processor=processor)
    report("mounted")

    def hear(choose: random.Random) -> dict:
        conversation, answer = heard(choose.randrange(10), choose)
        return processor.training_sample([*conversation, {"role": "assistant", "content": answer}])

    with tempfile.TemporaryDirectory() as folder:
        arguments = RosettaTrainingArguments(
            output_dir=folder,
            max_steps=NUM_STEPS,
            per_device_train_batch_size=SAMPLES_PER_STEP,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=NUM_STEPS // 20,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=options.seed,
        )
        collator = RosettaDataCollator(
            processor.tokenizer.pad_token_id, max_length=128, packed=True, feature_keys=("tone_features",)
        )
        samples = Mixture({"tones": hear}, {"tones": 1.0}, NUM_STEPS * SAMPLES_PER_STEP, options.seed)
        trained = train_token_types(model, "tone")
        trainer = RosettaTrainer(trained, arguments, train_dataset=samples, data_collator=collator)
        show_progress(trainer, "tones").train()
    report("trained")
    RosettaPipeline(model, None, FlowMatchEulerDiscreteScheduler(), processor).save_pretrained(options.output_dir)

    unmount(model, "tone", processor=processor)
    report("unmounted")
    state = model.state_dict()
    is_original = state.keys() == original.keys() and all(torch.equal(state[name], original[name]) for name in state)
    print(f"\n{results_table(rows)}\n")
    is_original &= model.config.to_dict() == original_config
    print(f"Unmounted, all weights and the configuration are the original ones: {is_original}")
    print(f"The model that hears is in {options.output_dir}.")


if __name__ == "__main__":
    with stoppable("The same command starts anew."):
        main()
