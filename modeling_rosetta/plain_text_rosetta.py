"""Users' text is text: what in it would become a mark of the layout is kept apart from the template's own marks."""

import re
from itertools import accumulate, pairwise


# Private-use characters around what is text and would be a mark, as in transformers' `sanitize_control_tokens`.
START, END = "\U000f0000", "\U000f0001"


class PlainText:
    """
    Marks control tokens in users' text, so that they can be tokenised as text.

    Args:
        tokenizer: whose special tokens, however it came by them, are control tokens.
        marks (`list[str]`): the tokens that the layout is made of.
        placeholders (`list[str]`): control tokens that are none of the tokenizer's.
    """

    def __init__(self, tokenizer, marks: list[str], placeholders: list[str]):
        self.tokenizer = tokenizer
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        special = {token for token in (*added, *tokenizer.all_special_tokens, *marks) if token}
        self.special_ids = set(tokenizer.convert_tokens_to_ids(list(special)))
        self.mark_ids = set(tokenizer.convert_tokens_to_ids(marks))
        # The characters of this file are themselves text where a user wrote them.
        longest_first = sorted({*special, *placeholders, START, END}, key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, longest_first)))
        self.marked = f"{START}(?:{self.control.pattern}){END}|[{START}{END}]"

    def mark(self, texts: list[str], where: str, tokenize: bool = True) -> list[str]:
        """
        Marks the control tokens of texts that may come to stand side by side, also those across a boundary.

        Args:
            texts (`list[str]`)
            where (`str`): what errors call the texts.
            tokenize (`bool`): `False` if only the rendered text is asked for, in which no mark can be told from text.

        Raises:
            ValueError: if there is a control token that cannot be kept apart from the layout's.
        """
        joined = "".join(texts)
        if not joined.isascii() and joined.encode(errors="replace") != joined.encode(errors="surrogatepass"):
            raise ValueError(f"{where} holds half a surrogate pair, which is no text.")
        found = self.control.finditer(joined)
        spans = [match.span() for match in found if tokenize or match.group() not in (START, END)]
        for start, end in spans:
            token = joined[start:end]
            if not tokenize:
                raise ValueError(
                    f"{where} holds {token!r}, which the rendered text would hold as a mark; with `tokenize=True` it "
                    "is tokenised as text."
                )
            if self.mark_ids.intersection(self.ids(token)):
                raise ValueError(f"{where} holds {token!r}, which the tokenizer cannot write as text.")
        self._refuse_lookalikes(joined, where)
        if not spans:
            return texts
        starts, ends = ({span[i] for span in spans} for i in (0, 1))
        return [
            "".join(
                START * (i in starts) + joined[i] + END * (i + 1 in ends)  # one by one, as spans may cross boundaries
                for i in range(begin, end)
            )
            for begin, end in pairwise([0, *accumulate(map(len, texts))])
        ]

    def mark_all(self, value, where: str, tokenize: bool = True):
        """`value` with the control tokens of all strings in it marked, also in lists and in dicts and their keys."""
        if isinstance(value, str):
            return self.mark([value], where, tokenize)[0]
        if isinstance(value, dict):
            return {self.mark_all(k, where, tokenize): self.mark_all(v, where, tokenize) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark_all(item, where, tokenize) for item in value]
        return value

    def ids(self, text: str) -> list[int]:
        """Token ids of text in which special tokens are text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _refuse_lookalikes(self, text: str, where: str):
        """Some tokenizers find their tokens in normalised text, so that other characters can become a mark."""
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        rest = self.control.sub("\n", text)
        if normalizer is None or not self.control.search(normalizer.normalize_str(rest)):
            return
        if self.special_ids.intersection(self.tokenizer(rest, add_special_tokens=False)["input_ids"]):
            raise ValueError(f"{where} holds text that the tokenizer normalises to a special token.")


__all__ = ["END", "START", "PlainText"]
