import numpy as np
import torch

from examples.miniature.digits import image_to_scan, images_to_pixels, load_digits, pixels_to_images, scan_to_image


def test_every_scan_is_on_one_side_of_the_split(digits):
    train, held_out = ({scan.tobytes() for scan in part.scans} for part in digits)
    assert [len(part.images) for part in digits] == [1500, 297]
    assert not train & held_out
    for part in digits:
        assert set(part.labels) == set(range(10))
        assert len(part.scans) == len(part.labels) == len(part.images)


def test_the_split_is_always_the_same(digits):
    for part, again in zip(digits, load_digits(), strict=True):
        assert np.array_equal(part.scans, again.scans) and np.array_equal(part.labels, again.labels)
        assert torch.equal(part.pixels(), again.pixels())


def test_an_image_shows_its_scan(digits):
    for scan in digits[1].scans[:20]:
        assert np.abs(image_to_scan(scan_to_image(scan)) - scan).mean() < 1
    for ink in (0, 16):
        assert np.allclose(image_to_scan(scan_to_image(np.full((8, 8), ink))), ink)


def test_pixels_and_images_are_the_same(digits):
    images = digits[0].images[:20]
    pixels = images_to_pixels(images)
    assert pixels.shape == (20, 3, 16, 16)
    assert pixels.min() == -1 and pixels.max() == 1
    assert [np.asarray(image).tolist() for image in pixels_to_images(pixels)] == [
        np.asarray(image).tolist() for image in images
    ]
    assert np.asarray(pixels_to_images(torch.full((1, 3, 16, 16), 1.5))[0]).min() == 255
