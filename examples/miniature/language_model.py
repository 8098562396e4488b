"""A small dense Qwen3, from nothing: what Rosetta is upcycled from."""

import tempfile

import torch
import torch.nn.functional as F
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
)

from .progress import show_progress


ROW_LENGTH = 128
NUM_STEPS = 1000


def dense_config(tokenizer: PreTrainedTokenizerBase) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        initializer_range=0.06,  # at this width, the usual 0.02 learns much more slowly
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )


def pack_text(tokenizer: PreTrainedTokenizerBase, paragraphs: list[str]) -> torch.Tensor:
    """Paragraphs one after the other, each closed by `<|endoftext|>`, cut into rows of 128 tokens: (N, 128)."""
    ids = tokenizer("".join(paragraph + tokenizer.eos_token for paragraph in paragraphs)).input_ids
    return torch.tensor(ids[: len(ids) // ROW_LENGTH * ROW_LENGTH]).view(-1, ROW_LENGTH)


def train_language_model(
    tokenizer: PreTrainedTokenizerBase, rows: torch.Tensor, seed: int = 0, num_steps: int = NUM_STEPS
) -> Qwen3ForCausalLM:
    """Trains a dense model on packed text `rows` (N, 128) with transformers' Trainer."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(dense_config(tokenizer))
    with tempfile.TemporaryDirectory() as output_dir:
        arguments = TrainingArguments(
            output_dir=output_dir,
            max_steps=num_steps,
            per_device_train_batch_size=8,
            learning_rate=5e-3,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            weight_decay=0.1,
            adam_beta2=0.95,
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=seed,
        )
        samples = [{"input_ids": row, "labels": row} for row in rows]
        show_progress(Trainer(model, arguments, train_dataset=samples), "dense Qwen3").train()
    return model.eval()


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, rows: torch.Tensor) -> float:
    """Mean cross-entropy in nats a token of packed text `rows` (N, 128); for a dense model and for Rosetta alike."""
    model.eval()
    losses = [
        F.cross_entropy(model(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        * len(batch)
        for batch in rows.split(32)
    ]
    return float(sum(losses) / len(rows))
