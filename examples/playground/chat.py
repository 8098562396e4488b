"""A conversation as Gradio holds it, as the processor reads it; and the model's answer, as it is written."""

from collections.abc import Iterator

import torch
from transformers import TextStreamer

from .streaming import stream


def messages_of(message: dict, history: list[dict]) -> list[dict]:
    """
    Args:
        message (`dict`): the `text` of the user, and paths of images in `files`.
        history (`list[dict]`): what was said before; the `content` of a message is text or a list of items, which are
            texts and files.

    Returns:
        `list[dict]`: messages for `processor.apply_chat_template`, one for each turn, images first, as they came.
    """
    new = [{"type": "file", "file": {"path": path}} for path in message.get("files", [])]
    new.append({"type": "text", "text": message.get("text") or ""})
    turns: list[dict] = []
    for said in [*history, {"role": "user", "content": new}]:
        items = said["content"] if isinstance(said["content"], list) else [said["content"]]
        content = [item for item in map(_item, items) if item is not None]
        if turns and turns[-1]["role"] == said["role"]:  # an image and its text are a message each
            turns[-1]["content"] += content
        else:
            turns.append({"role": said["role"], "content": content})
    return turns


def _item(item: str | dict) -> dict | None:
    if isinstance(item, str):
        item = {"type": "text", "text": item}
    if item["type"] == "file":
        return {"type": "image", "image": item["file"]["path"]}
    return {"type": "text", "text": item["text"]} if item["text"] else None


def stream_answer(pipe, messages: list[dict], max_new_tokens: int = 256, temperature: float = 0.0) -> Iterator[str]:
    """
    The answer to `messages`, as far as it is written, again and again.

    Args:
        max_new_tokens (`int`, defaults to 256)
        temperature (`float`, defaults to 0.0): 0 takes the likeliest token each time.

    Raises:
        ValueError: if an image cannot be read, or the model reads none.
    """
    processor, model = pipe.processor, pipe.transformer
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}

    def run(put):
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        with torch.no_grad():
            model.generate(
                **inputs, streamer=_Pieces(processor.tokenizer, put), max_new_tokens=max_new_tokens, **sampling
            )

    answer = ""
    for piece in stream(run):
        answer += piece
        yield answer


class _Pieces(TextStreamer):
    """Puts whole words, and at tokens that end none, nothing."""

    def __init__(self, tokenizer, put):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = put

    def on_finalized_text(self, text: str, stream_end: bool = False):
        self.on_text(text)


__all__ = ["messages_of", "stream_answer"]
