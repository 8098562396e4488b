"""Sizes of images to draw: the authors' two tables, and which of their sizes an image gets."""

import numpy as np
import pytest
from PIL import Image

from modeling_rosetta.buckets_rosetta import inference_buckets, nearest_bucket, training_buckets


def table(layout_examples, start: str) -> list[tuple[int, int]]:
    return [tuple(size) for size in next(value for key, value in layout_examples.items() if key.startswith(start))]


def test_training_table(layout_examples):
    assert training_buckets(256, 16) == table(layout_examples, "T2I_training_buckets")


@pytest.mark.parametrize("base_size, name", [(256, "inference_arc33_hw_px("), (64, "inference_arc33_hw_px_base64")])
def test_inference_tables(base_size, name, layout_examples):
    assert inference_buckets(base_size, 16) == table(layout_examples, name)


@pytest.mark.parametrize("base_size, step", [(256, 16), (1024, 32), (16, 4), (16, 16), (48, 16)])
@pytest.mark.parametrize("rule", [training_buckets, inference_buckets])
def test_tables_of_any_base(rule, base_size, step):
    buckets = rule(base_size, step)
    assert all(height % step == width % step == 0 for height, width in buckets)
    assert (base_size, base_size) in buckets
    ratios = [height / width for height, width in buckets]
    if rule is training_buckets:
        assert ratios == sorted(ratios)
        assert buckets == [(width, height) for height, width in reversed(buckets)]
    else:
        assert len(buckets) == 33


@pytest.mark.parametrize("base_size, step", [(250, 16), (0, 16), (256, 0)])
def test_base_that_is_no_multiple_is_refused(base_size, step):
    with pytest.raises(ValueError, match="base_size"):
        training_buckets(base_size, step)


def test_nearest_is_the_first_of_equals():
    assert nearest_bucket(3, 4, [(16, 32), (48, 64), (48, 64)]) == 1
    # 1.25 is as far from 1 as from 1.5.
    assert nearest_bucket(5, 4, [(32, 32), (48, 32)]) == 0


@pytest.mark.parametrize(
    "width, height, bucket",
    [(100, 100, (64, 64)), (1000, 100, (32, 128)), (30, 60, (80, 48)), (30, 90, (96, 32))],
)
def test_image_is_resized_to_its_bucket(width, height, bucket, processor):
    if bucket == (80, 48):
        # 2.0 lies between 80/48 = 1.67 and 96/32 = 3.
        assert abs(80 / 48 - height / width) < abs(96 / 32 - height / width)
    assert processor.preprocess_vae_image(Image.new("RGB", (width, height))).shape == (3, *bucket)


def test_image_keeps_its_content_and_lies_between_minus_one_and_one(processor):
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:32, :, 0] = 255
    tensor = processor.preprocess_vae_image(Image.fromarray(pixels))
    assert (tensor[0, :32] == 1).all() and (tensor[0, 32:] == -1).all() and (tensor[1:] == -1).all()


def test_whole_image_is_kept_without_cropping(processor):
    # A frame of white survives a change of the aspect ratio; cropping would cut two of its sides.
    pixels = np.zeros((100, 200), dtype=np.uint8)
    pixels[:12], pixels[-12:], pixels[:, :12], pixels[:, -12:] = 255, 255, 255, 255
    tensor = processor.preprocess_vae_image(Image.fromarray(pixels))
    edges = (tensor[:, 0], tensor[:, -1], tensor[:, :, 0], tensor[:, :, -1])
    assert all((edge > 0.9).all() for edge in edges)
    assert tensor[0, tensor.shape[1] // 2, tensor.shape[2] // 2] == -1
