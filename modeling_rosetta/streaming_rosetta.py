"""Text of an answer as it is written."""

import torch
from transformers.generation.streamers import BaseStreamer


class AnswerStreamer(BaseStreamer):
    """Passes on the text of each row as it is written, as soon as its characters are whole."""

    def __init__(self, writer, stops: set[int], room: list[int]):
        self.writer, self.stops, self.room = writer, stops, room
        self.tokens: list[list[int]] = [[] for _ in room]
        self.told, self.has_ended, self.is_prompt = [0] * len(room), [False] * len(room), True

    def put(self, value: torch.Tensor):
        if self.is_prompt:
            self.is_prompt = False
            return
        for i, token in enumerate(value.tolist()):
            self.has_ended[i] |= token in self.stops or len(self.tokens[i]) >= self.room[i]
            if not self.has_ended[i]:
                self.tokens[i].append(token)
                self._tell(i, is_whole=False)

    def end(self):
        for i in range(len(self.room)):
            self._tell(i, is_whole=True)

    def _tell(self, i: int, is_whole: bool):
        text = self.writer.processor.tokenizer.decode(self.tokens[i])
        if len(text) > self.told[i] and (is_whole or not text.endswith("\N{REPLACEMENT CHARACTER}")):
            self.writer.on_item(self.writer.rows[i], {"type": "text", "text": text[self.told[i] :]})
            self.told[i] = len(text)


__all__ = ["AnswerStreamer"]
