"""The Frechet distance of two sets of images in the features of a network, and Inception's, which FID is made of."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .drawings import read_drawing


SIDE = 299  # pixels that Inception sees
RESIZES = ("bilinear", "clean")
CHUNK = 4096  # features whose products are added at a time
# What a pickled array of numpy's is put together by, under its names before and since numpy 2.
PUT_TOGETHER = np.zeros(0).__reduce__()[0]
NUMPY = [
    *((PUT_TOGETHER, f"numpy.{package}.multiarray._reconstruct") for package in ("core", "_core")),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64)),
]

Statistics = tuple[torch.Tensor, torch.Tensor]


class Inception:
    """
    The Inception V3 of 2015-12-05 that FID is defined by, as the TorchScript file of it that StyleGAN2-ADA and
    clean-fid download, `inception-2015-12-05.pt`. It holds the network that pytorch-fid, and so the authors' code, has
    in a class.

    Args:
        file (`str` or `Path`)
        resize (`str`): how images become 299 pixels wide and high: `"bilinear"` as the authors and pytorch-fid do it,
            without antialiasing, or `"clean"` as clean-fid does it, bicubic with Pillow in floats (Parmar et al.
            2022). Figures of the two do not compare.
        device (`str` or `torch.device`, defaults to `"cpu"`)

    Raises:
        ValueError: if `resize` is unknown, or the file is not such a network.
    """

    def __init__(self, file: str | Path, resize: str = "clean", device: str | torch.device = "cpu"):
        if resize not in RESIZES:
            raise ValueError(f"`resize` must be among {RESIZES}, got {resize!r}.")
        try:
            self.layers = torch.jit.load(str(file), map_location=device).eval().layers
        except (AttributeError, OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"`file`: '{file}' cannot be read as the TorchScript of Inception ({reason}). It is "
                "stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt of nvlabs-fi-cdn.nvidia.com."
            ) from None
        self.resize, self.device = resize, torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Sequence) -> torch.Tensor:
        """Images, or their files, to features `(N, 2048)`."""
        pixels = torch.stack([self._pixels(read_drawing(image)) for image in images])
        return self.layers(pixels.to(self.device)).flatten(1)

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        """`(3, 299, 299)`, about [-1, 1]."""
        if self.resize == "bilinear":
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
            return F.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0] * 2 - 1
        channels = [Image.fromarray(np.array(channel, dtype=np.float32)) for channel in image.split()]
        resized = [np.array(channel.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for channel in channels]
        return (torch.from_numpy(np.stack(resized)).clamp(0, 255) - 128) / 128


def features_of(images: Sequence, network: Callable, batch_size: int = 32) -> torch.Tensor:
    """The features `(N, D)` that a network such as [`Inception`] has of images or their files, on the CPU."""
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    return torch.cat([network(batch).cpu() for batch in batches])


def frechet_distance(features: torch.Tensor, reference: torch.Tensor | Statistics) -> float:
    """
    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the means and covariances of two sets (Heusel et al. 2017), by
    torchmetrics, in float64.

    Args:
        features (`torch.Tensor` of shape `(N, D)`)
        reference: features of other images, or the mean `(D,)` and covariance `(D, D)` of such.

    Raises:
        ValueError: if there are fewer than two, or the widths differ.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    width = features.shape[1]
    given = reference.shape[1] if torch.is_tensor(reference) else len(reference[0])
    if width != given:
        raise ValueError(f"`reference` must be of {width} features as the images are, got {given}.")
    as_they_are = torch.nn.Identity()
    as_they_are.num_features = width
    metric = FrechetInceptionDistance(as_they_are, sync_on_compute=False)
    for real, given in ((False, features), (True, reference if torch.is_tensor(reference) else None)):
        if given is not None and len(given) < 2:
            raise ValueError(f"A Frechet distance needs two images at least on either side, got {len(given)}.")
        for chunk in () if given is None else given.double().split(CHUNK):
            metric.update(chunk, real=real)
    if not torch.is_tensor(reference):
        mean, covariance = (tensor.double() for tensor in reference)
        # The sums of two samples that have this mean and this covariance.
        metric.real_features_num_samples = torch.tensor(2)
        metric.real_features_sum = 2 * mean
        metric.real_features_cov_sum = covariance + 2 * torch.outer(mean, mean)
    return float(metric.compute())


def reference_images(folder: str | Path) -> list[Path]:
    """
    The image files of a folder, of those within it, too.

    Raises:
        ValueError: if there is no such folder, or fewer than two images in it.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"`reference`: there is no folder '{folder}'.")
    kinds = Image.registered_extensions()
    files = sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in kinds)
    if len(files) < 2:
        raise ValueError(f"`reference`: '{folder}' must hold two images at least, it holds {len(files)}.")
    return files


def read_statistics(file: str | Path) -> Statistics:
    """
    Mean `(D,)` and covariance `(D, D)` of features.

    Args:
        file (`str` or `Path`): an `.npz` with `mu` and `sigma`, as pytorch-fid and clean-fid write it, or a `.pt` with
            the same, or with a pair of both.

    Raises:
        ValueError: if it is none.
    """
    try:
        if Path(file).suffix == ".npz":
            with np.load(file) as content:
                found = content["mu"], content["sigma"]
        else:
            with torch.serialization.safe_globals(NUMPY):  # the authors' file may hold arrays, but no code
                content = torch.load(file, map_location="cpu", weights_only=True)
            found = (content["mu"], content["sigma"]) if isinstance(content, dict) else tuple(content)
        mean, covariance = (torch.as_tensor(each).double() for each in found)
    except Exception as error:  # torch and numpy raise almost anything on damaged files
        raise ValueError(f"`reference`: '{file}' must hold `mu` and `sigma`: {error!r}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"`reference`: `mu` and `sigma` in '{file}' must have shapes (D,) and (D, D), got {tuple(mean.shape)} and "
            f"{tuple(covariance.shape)}."
        )
    return mean, covariance


__all__ = ["Inception", "features_of", "frechet_distance", "read_statistics", "reference_images"]
