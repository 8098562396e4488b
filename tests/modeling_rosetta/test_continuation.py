"""A conversation that goes on from its cache answers as one that is computed anew."""

import copy

import pytest
import torch
from transformers import StaticCache

from modeling_rosetta import mount
from tests.conftest import tiny_model
from tests.modeling_rosetta.test_generation import left_padded, prompt
from tests.modeling_rosetta.test_mounting import AUDIO, SPEECH


ROWS = ("input_ids", "token_type_ids", "attention_mask")
ANSWER = {"do_sample": False, "max_new_tokens": 3, "pad_token_id": 115, "return_dict_in_generate": True}


def joined(first: dict, second: dict) -> dict:
    """The tokens of `first` and then those of `second` in each row; images and features of one row only."""
    both = {key: [part[key] for part in (first, second) if key in part] for key in {**first, **second}}
    return {key: torch.cat(values, dim=1 if key in ROWS else 0) for key, values in both.items()}


def text(input_ids: torch.Tensor) -> dict:
    return {"input_ids": input_ids, "token_type_ids": torch.zeros_like(input_ids)}


class Talk:
    """A first turn with its answer, which is cached up to its last token, and a new turn."""

    def __init__(self, model, first: dict, new: dict):
        self.model = model
        answered = model.generate(**first, **ANSWER)
        self._cache = answered.past_key_values
        self.cached = self._cache.get_seq_length()
        self.new = new
        self.whole = joined(joined(first, text(answered.sequences[:, first["input_ids"].shape[1] :])), new)
        self.mask = torch.ones_like(self.whole["input_ids"])

    @property
    def cache(self):
        return copy.deepcopy(self._cache)

    def new_part(self) -> dict:
        """The tokens that are not cached, and the images and features among them."""
        return {k: self.whole[k][:, self.cached :] if k in ROWS else v for k, v in self.new.items()}

    def answer(self, inputs: dict | None = None, **kwargs) -> torch.Tensor:
        inputs = self.whole if inputs is None else inputs
        return self.model.generate(**inputs, **{**ANSWER, **kwargs}).sequences[:, inputs["input_ids"].shape[1] :]

    @torch.no_grad()
    def logits(self, inputs: dict, **kwargs) -> torch.Tensor:
        return self.model(**inputs, **kwargs, logits_to_keep=1).logits


TALKS = [("t", "tt"), ("tut", "t"), ("t", "tut"), ("tut", "tut"), ("tgt", "t"), ("tut", "tgtu")]


@pytest.fixture(params=TALKS, ids="-".join)
def talk(request, model) -> Talk:
    return Talk(model, prompt(request.param[0], 1), prompt(request.param[1], 2))


def test_generate_goes_on_with_all_tokens(talk):
    expected = talk.answer()
    assert torch.equal(talk.answer(past_key_values=talk.cache), expected)
    assert torch.equal(talk.answer(past_key_values=talk.cache, attention_mask=talk.mask), expected)
    only_new_images = {**talk.new, **{key: talk.whole[key] for key in ("input_ids", "token_type_ids")}}
    assert torch.equal(talk.answer(only_new_images, past_key_values=talk.cache), expected)


def test_generate_goes_on_with_new_tokens_and_the_whole_mask(talk):
    answer = talk.answer(talk.new_part(), past_key_values=talk.cache, attention_mask=talk.mask)
    assert torch.equal(answer, talk.answer())


def test_forward_goes_on(talk):
    expected = talk.logits(talk.whole)
    for inputs, mask in ((talk.new_part(), None), (talk.new_part(), talk.mask), (talk.whole, talk.mask)):
        logits = talk.logits(inputs, past_key_values=talk.cache, attention_mask=mask)
        torch.testing.assert_close(logits, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    "how",
    [{"num_beams": 3, "num_return_sequences": 2}, {"num_return_sequences": 2, "do_sample": True}],
    ids=["beams", "several-answers"],
)
def test_beams_and_several_answers_go_on(rosetta, how):
    talk = Talk(rosetta, prompt("tut", 1), prompt("tut", 2))
    torch.manual_seed(0)
    expected = talk.answer(**how)
    torch.manual_seed(0)
    assert torch.equal(talk.answer(**how, past_key_values=talk.cache), expected)
    spread = talk.cache
    spread.batch_repeat_interleave(how.get("num_beams", 2))  # transformers' own way
    torch.manual_seed(0)
    assert torch.equal(talk.answer(**how, past_key_values=spread), expected)


def test_proposed_tokens_go_on(rosetta):
    talk = Talk(rosetta, prompt("tut", 1), prompt("tu", 2))
    assert torch.equal(talk.answer(prompt_lookup_num_tokens=2, past_key_values=talk.cache), talk.answer())


def test_a_static_cache_goes_on_and_sees_images_whole(model):
    first, new = prompt("tut", 1), prompt("tugt", 2)
    cache = StaticCache(config=model.config, max_cache_len=60)
    talk = Talk(model, first, new)
    assert torch.equal(
        model.generate(**first, **ANSWER, past_key_values=cache).sequences, model.generate(**first, **ANSWER).sequences
    )
    assert torch.equal(talk.answer(past_key_values=cache), talk.answer())
    with torch.no_grad():
        logits = model(**first, past_key_values=StaticCache(config=model.config, max_cache_len=60)).logits
        torch.testing.assert_close(logits, model(**first).logits, rtol=0, atol=5e-5)


def test_a_batch_with_left_padding_goes_on_as_each_talk_alone(model):
    firsts, news = [prompt("tut", 1), prompt("t", 2)], [prompt("t", 3), prompt("tutg", 4)]
    first, new = left_padded(firsts), left_padded(news)
    answered = model.generate(**first, **ANSWER)
    answers = answered.sequences[:, first["input_ids"].shape[1] :]
    said = {**text(answers), "attention_mask": torch.ones_like(answers)}
    whole = joined(joined(first, said), new)  # the second image of the batch is that of the second row's new turn
    expected = []
    for answer, one, other in zip(answers, firsts, news, strict=True):
        alone = joined(joined(one, text(answer[None])), other)
        expected.append(model.generate(**alone, **ANSWER).sequences[0, -3:])
    for inputs in (whole, {**whole, **{k: v for k, v in new.items() if k not in ROWS}}):
        cache = copy.deepcopy(answered.past_key_values)
        sequences = model.generate(**inputs, **ANSWER, past_key_values=cache).sequences
        assert torch.equal(sequences[:, -3:], torch.stack(expected))
    with torch.no_grad():
        logits = model(**whole, past_key_values=answered.past_key_values, logits_to_keep=1).logits
        torch.testing.assert_close(logits, model(**whole, logits_to_keep=1).logits, rtol=0, atol=5e-5)


@torch.no_grad()
def test_what_becomes_padding_after_an_answer_that_ended_before_others_does_not_advance(model):
    first, new = left_padded([prompt("tut", 1), prompt("t", 2)]), left_padded([prompt("t", 3), prompt("t", 3)])
    answered = model.generate(**first, **ANSWER, min_new_tokens=3)
    length, cached = answered.sequences.shape[1], answered.past_key_values.get_seq_length()
    ids = torch.cat([answered.sequences, new["input_ids"]], dim=1)
    whole = {**first, **text(ids), "attention_mask": torch.ones_like(ids)}
    for key in ("token_type_ids", "attention_mask"):
        whole[key][:, : first[key].shape[1]] = first[key]
    whole["attention_mask"][1, length - 2 : length] = 0  # its answer had one token
    expected = model.generate(**whole, **ANSWER).sequences
    cache = answered.past_key_values
    assert torch.equal(model.generate(**whole, **ANSWER, past_key_values=copy.deepcopy(cache)).sequences, expected)
    with torch.no_grad():
        logits = model(**whole).logits
        inputs = {"input_ids": ids[:, cached:], "attention_mask": whole["attention_mask"], "past_key_values": cache}
        again = model(**inputs).logits
    real = whole["attention_mask"][:, cached:].bool()
    torch.testing.assert_close(again[real], logits[:, cached:][real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kinds", ["t", "tut"])
def test_a_decoding_loop_by_hand_with_left_padding(model, kinds):
    batch = left_padded([prompt(kinds, 1), prompt("t" + kinds, 2)])
    cache, mask = model(**batch, use_cache=True).past_key_values, batch["attention_mask"]
    for token in (50, 51):
        tokens = torch.full((2, 1), token)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        logits = model(input_ids=tokens, attention_mask=mask, past_key_values=cache).logits
        batch = joined({**batch, "attention_mask": mask[:, :-1]}, {**text(tokens), "attention_mask": mask[:, -1:]})
        torch.testing.assert_close(logits, model(**batch, logits_to_keep=1).logits, rtol=0, atol=5e-5)


@torch.no_grad()
def test_a_drawing_after_a_cached_prompt_is_drawn_again_after_cropping(model):
    """As the pipeline does at each step, but without positions."""
    whole = prompt("tutg", 1)
    length = whole["input_ids"].shape[1] - 6
    first = {k: v[:, :length] if k in ROWS else v for k, v in whole.items() if "latent" not in k and k != "timesteps"}
    cache = model(**first, use_cache=True).past_key_values
    drawn = {k: v[:, length:] if k in ROWS else v for k, v in whole.items() if k not in ("pixel_values", *first)}
    drawn |= {k: whole[k][:, length:] for k in ("input_ids", "token_type_ids")}
    for _ in range(2):
        velocity = model(**drawn, past_key_values=cache).velocity
        torch.testing.assert_close(velocity, model(**whole).velocity, rtol=0, atol=5e-5)
        cache.crop(-6)


@pytest.mark.parametrize("entry", [AUDIO, SPEECH], ids=["read", "generated"])
def test_features_of_a_users_own_go_on(entry):
    model = mount(tiny_model(), entry, num_experts=4)

    def turn(seed: int, length: int) -> dict:
        batch = prompt("tt", seed)
        batch["token_type_ids"][:, 3 : 3 + length] = 3
        return {**batch, "audio_features": torch.randn(length, 5, generator=torch.Generator().manual_seed(seed))}

    talk = Talk(model, turn(1, 2), turn(2, 3))
    expected = talk.answer()
    assert torch.equal(talk.answer(past_key_values=talk.cache), expected)
    assert torch.equal(talk.answer(talk.new_part(), past_key_values=talk.cache, attention_mask=talk.mask), expected)
    torch.testing.assert_close(
        talk.logits(talk.whole, past_key_values=talk.cache, attention_mask=talk.mask), talk.logits(talk.whole)
    )
    assert torch.equal(talk.answer(past_key_values=talk.cache, num_beams=2), talk.answer(num_beams=2))


def test_two_conversations_with_one_model_do_not_mix(rosetta):
    talks = [Talk(rosetta, prompt("tut", 1), prompt("t", 2)), Talk(rosetta, prompt("t", 3), prompt("tut", 4))]
    state = set(vars(rosetta)) | set(vars(rosetta.model))
    for talk in (*talks, *reversed(talks)):
        assert torch.equal(talk.answer(past_key_values=talk.cache), talk.answer())
    assert set(vars(rosetta)) | set(vars(rosetta.model)) == state


def test_what_does_not_go_on_is_named(rosetta):
    talk = Talk(rosetta, prompt("tut", 1), prompt("tut", 2))
    ids = talk.new_part()["input_ids"][:, :2]
    with pytest.raises(ValueError, match="an `attention_mask` of all"):
        rosetta.generate(input_ids=ids, past_key_values=talk.cache, **ANSWER)
    with pytest.raises(ValueError, match="`attention_mask` must cover the"):
        rosetta(input_ids=ids, past_key_values=talk.cache, attention_mask=torch.ones(1, 3))
    two = {k: v.repeat(2, 1) for k, v in talk.whole.items() if k in ROWS}
    spread = talk.cache
    spread.batch_repeat_interleave(3)
    rosetta(input_ids=ids.repeat(3, 1), past_key_values=spread)
    with pytest.raises(ValueError, match="`past_key_values` holds 3 rows"):
        rosetta.generate(**two, past_key_values=spread, **ANSWER)
    fewer = {**talk.whole, "pixel_values": torch.cat([talk.whole["pixel_values"]] * 2)}
    with pytest.raises(ValueError, match="`pixel_values` has"):
        rosetta.generate(**fewer, past_key_values=talk.cache, **ANSWER)
    cut = talk.cache
    cut.crop(-(talk.cached - 5))  # within the first image
    with pytest.raises(ValueError, match="must not end inside an image of `pixel_values`"):
        rosetta.generate(**talk.whole, past_key_values=cut, **ANSWER)
