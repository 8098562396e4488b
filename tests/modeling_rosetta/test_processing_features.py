"""Token types of a user's own in the processor, which follows a mount."""

import pytest
import torch

from modeling_rosetta import mount, unmount
from tests.modeling_rosetta.test_mounting import AUDIO
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline, tiny_processor


CLIP = torch.arange(15.0).view(3, 5)
CONVERSATION = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "hm"}, {"type": "audio_features", "audio_features": CLIP}],
    },
    {"role": "assistant", "content": "a bell"},
]


@pytest.fixture
def mounted():
    pipe = tiny_pipeline()
    mount(pipe.transformer, AUDIO, 4, processor=pipe.processor)
    return pipe.transformer, pipe.processor


def test_the_processor_follows_a_mount_and_what_it_makes_the_model_reads(mounted, tmp_path):
    model, processor = mounted
    assert processor.embeds_from == [t["embeds_from"] for t in model.config.token_types]
    processor.save_pretrained(tmp_path)
    loaded = type(processor).from_pretrained(tmp_path)
    batch = loaded.apply_chat_template(
        [CONVERSATION[:1], CONVERSATION[:1]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert torch.equal(batch["audio_features"], torch.cat([CLIP, CLIP]))
    (row, _) = batch["token_type_ids"].tolist()
    start = row.index(3)
    assert row.count(3) == 3 and row[start : start + 3] == [3, 3, 3]
    ids = batch["input_ids"][0]
    assert ids[start - 1] == processor.vision_start_token_id and ids[start + 3] == processor.vision_end_token_id
    assert set(ids[start : start + 3].tolist()) == {processor.image_token_id}
    assert model.generate(**batch, max_new_tokens=2).shape[1] == len(row) + 2
    unmount(model, "audio", processor=processor)
    assert processor.embeds_from == ["input_ids", "pixel_values", "noisy_latents"]


def test_a_training_sample_has_the_features_and_no_targets_at_them(mounted):
    sample = mounted[1].training_sample(CONVERSATION)
    assert torch.equal(sample["audio_features"], CLIP)
    assert (sample["labels"][sample["token_type_ids"] == 3] == -100).all()
    assert (sample["labels"] != -100).sum() == len("a bell") + 1  # and <|im_end|>


@pytest.mark.parametrize(
    ("features", "named"),
    [
        ({}, "`audio_features`: `text` has 1 placeholders"),
        ({"audio_features": [CLIP, CLIP]}, "but 2 clips"),
        ({"audio_features": [CLIP[0]]}, "clip 0 must have shape"),
        ({"audio_features": 3}, "`audio_features` must be a list, got 3"),
        ({"audio_features": ["x"]}, "`audio_features` must be clips of numbers"),
        ({"audio_features": [CLIP, CLIP[:, :2]], "text": "<|audio_features|>" * 2}, r"`audio_features` .* \[5, 2\]"),
        ({"sound_features": [CLIP]}, "`sound_features`: no token type"),
    ],
)
def test_bad_features_are_named(mounted, features, named):
    with pytest.raises(ValueError, match=named):
        mounted[1](**{"text": "x<|audio_features|>y", **features})


def test_clips_of_one_length_may_be_one_tensor(mounted):
    text = "<|audio_features|>" * 2
    batch = mounted[1](text=text, audio_features=torch.stack([CLIP, CLIP]), return_tensors="pt")
    assert torch.equal(batch["audio_features"], torch.cat([CLIP, CLIP]))


def test_a_processor_that_does_not_fit_is_left_alone_and_so_is_the_model():
    model, processor = tiny_pipeline().transformer, tiny_processor()
    processor.tokenizer.add_tokens(["<one>", "<more>"])
    with pytest.raises(ValueError, match="vocabulary of .* is too small"):
        mount(model, AUDIO, 4, processor=processor)
    assert len(model.config.token_types) == len(processor.embeds_from) == 3
    assert "audio" not in model.model.feature_in
