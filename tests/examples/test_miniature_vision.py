import pytest
import torch

from examples.miniature import vision


@pytest.fixture(scope="module")
def tower(digits):
    train = digits[0]
    return vision.train_vision_tower(train.images, torch.from_numpy(train.labels), out_hidden_size=24, num_steps=40)


def features(tower, images):
    inputs = vision.image_processor()(images, return_tensors="pt")
    return tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])


def test_an_image_is_four_tokens_of_the_language_models_width(tower, digits):
    output = features(tower, [digits[0].images[0], digits[0].images[1].resize((48, 48))])
    assert output.pooler_output.shape == (2 * 4, 24)
    assert [feature.shape for feature in output.deepstack_features] == [(2 * 4, 24)]


def test_only_the_projectors_can_be_trained(tower):
    trainable = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    projectors = ("merger.linear_fc2", "deepstack_merger_list.0.linear_fc2")
    assert trainable == {f"{name}.{part}" for name in projectors for part in ("weight", "bias")}


def test_features_of_held_out_images_gather_by_digit(tower, digits):
    held_out = digits[1]
    with torch.no_grad():
        tokens = features(tower, held_out.images).pooler_output.view(len(held_out.images), -1)
    labels = torch.from_numpy(held_out.labels)
    centers = torch.stack([tokens[labels == digit].mean(0) for digit in range(10)])
    spread_within = (tokens - centers[labels]).square().sum() / (tokens - tokens.mean(0)).square().sum()
    assert spread_within < 0.53  # 0.60 before training
