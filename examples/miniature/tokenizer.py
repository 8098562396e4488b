"""A small byte-level BPE in the form of Qwen's tokenizer, with its special tokens and Rosetta's."""

from collections.abc import Iterable

from transformers import Qwen2Tokenizer


QWEN_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
ROSETTA_TOKENS = ["<｜cfg｜>", "<｜timestep｜>", "<｜joint_img_sep｜>", "<｜img_size_256｜>"]
ROSETTA_TOKENS += [f"<｜img_ratio_{i}｜>" for i in range(33)]


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> Qwen2Tokenizer:
    """
    Learns merges from `texts` until, with the 256 bytes and the 45 special tokens, there are `vocab_size` tokens.

    Returns:
        [`Qwen2Tokenizer`], which `AutoTokenizer` loads once it is saved.
    """
    return Qwen2Tokenizer().train_new_from_iterator(
        texts, vocab_size, new_special_tokens=[*QWEN_TOKENS[1:], *ROSETTA_TOKENS], show_progress=False
    )
