"""The processor of a Rosetta that reads text only, made of a dense model's tokenizer."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from .processing_rosetta import RosettaProcessor


def load_dense_tokenizer(pretrained_model_name_or_path: str, vocab_size: int, **kwargs) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a dense model. transformers makes an empty one where there is none: that is an error here.

    Args:
        pretrained_model_name_or_path (`str`): folder or Hub id.
        vocab_size (`int`): rows of the model's embedding.
        kwargs: as for `AutoTokenizer.from_pretrained`.

    Raises:
        OSError: if there is no tokenizer.
        ValueError: as [`check_tokenizer`].
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise OSError(f"'{pretrained_model_name_or_path}' has no tokenizer that can be read. {reason}") from error
    check_tokenizer(tokenizer, vocab_size, pretrained_model_name_or_path)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int, name_or_path: str):
    """
    Raises:
        ValueError: if `tokenizer` turns words into nothing, or into more tokens than an embedding of `vocab_size` has.
    """
    vocab = tokenizer.get_vocab()
    own = sorted(set(vocab.values()) - set(tokenizer.get_added_vocab().values()))
    words = f"Words, and 1 number. {tokenizer.decode(own[:50])}"
    if not set(tokenizer(words, add_special_tokens=False)["input_ids"]) - {*tokenizer.all_special_ids}:
        raise ValueError(
            f"'{name_or_path}' has no tokenizer, or one that turns words into nothing. Save the model's tokenizer "
            "beside it."
        )
    if max(vocab.values()) >= vocab_size:
        raise ValueError(
            f"'{name_or_path}' has a tokenizer of {max(vocab.values()) + 1} tokens, but only {vocab_size} rows in its "
            "embedding."
        )


def text_processor(tokenizer: PreTrainedTokenizerBase) -> RosettaProcessor:
    """With the special tokens of all stages, which are added to `tokenizer` where it lacks them, and until a ViT comes
    with its own, the image processor of Qwen3-VL."""
    tokens = [token for token in RosettaProcessor.special_tokens() if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(tokens, special_tokens=True)
    image_processor = Qwen2VLImageProcessorPil(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return RosettaProcessor(image_processor, tokenizer, embeds_from=["input_ids"])


def token_fields(processor: RosettaProcessor) -> dict[str, int | list[int]]:
    """The fields of a [`RosettaConfig`] that name special tokens."""
    return {
        "image_token_id": processor.image_token_id,
        "vision_start_token_id": processor.vision_start_token_id,
        "vision_end_token_id": processor.vision_end_token_id,
        "eos_token_id": [processor.turn_end_token_id, processor.tokenizer.eos_token_id],
    }


__all__ = ["check_tokenizer", "load_dense_tokenizer", "text_processor", "token_fields"]
