"""The one way in for images: whatever holds one becomes the RGB pixels that are trained on and shown at inference."""

import base64
import io
import os
import reprlib
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError


URL_TIMEOUT = 60  # seconds
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
CHANNELS = (1, 3, 4)  # of an array
OVERSHOOT = 0.1  # of floats, by which resampling may leave their scale; clipped
PNG_SCALES = {"L;2": 85, "L;4": 17}  # that Pillow brings pixels to 8 bits by, but not the transparent value


def read_image(image, name: str = "`image`", input_data_format: str | None = None) -> Image.Image:
    """
    An image as RGB, upright, on white, its first frame.

    The EXIF orientation is applied, and what is transparent shows white, in every mode. Greys of more than 8 bits are
    scaled to 8: 16 bits by 65535; values of mode I or F, and of other arrays, by the smallest full scale that holds
    them, of 1 (floats only), 255 (not in a file of mode I) and 65535; an image of mode I or F beyond these by its own
    range.

    Args:
        image: a PIL image; a path, URL, `data:` URL or base64 string; the bytes of a file; or an array or tensor
            `(H, W)`, `(H, W, C)` or `(C, H, W)` of 1, 3 or 4 channels: bool, integers, or floats in [0, 1] or
            [0, 255].
        name (`str`): what errors call the image.
        input_data_format (`str`, *optional*): `"channels_first"` or `"channels_last"`, of an array; by default from
            its shape, and where that allows both, first of a tensor and last of a numpy array.

    Returns:
        `PIL.Image.Image` of mode RGB.

    Raises:
        ValueError: whatever is wrong with it; its `__cause__` is the decoder's error, a `FileNotFoundError` if there
            is no such file.
    """
    if not isinstance(image, Image.Image | np.ndarray | torch.Tensor | str | os.PathLike | bytes | bytearray):
        raise ValueError(
            f"{name} must be a PIL image, an array, a tensor, a path, a URL, base64 or bytes, "
            f"got {type(image).__name__}."
        )
    try:
        if isinstance(image, np.ndarray | torch.Tensor):
            image = _from_array(image, input_data_format)
        elif not isinstance(image, Image.Image):
            image = _open(image)
        return _to_rgb(image)
    except Exception as error:  # Pillow's formats raise almost anything on damaged files
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "its format is not known" if unknown else " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot be read as an image: {reason[:200]}") from error


def _open(source) -> Image.Image:
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        with urlopen(Request(source, headers={"User-Agent": "modeling_rosetta"}), timeout=URL_TIMEOUT) as response:
            source = response.read()
    elif isinstance(source, str) and not os.path.isfile(source):
        try:
            return Image.open(io.BytesIO(base64.b64decode(source)))
        except Exception:  # more likely a wrong path than damaged base64
            raise FileNotFoundError(f"there is no file {reprlib.repr(source)}, nor is it base64 of one") from None
    elif not isinstance(source, bytes | bytearray):
        source = Path(source).read_bytes()
    return Image.open(io.BytesIO(source))


def _from_array(array, input_data_format: str | None) -> Image.Image:
    usual = "channels_first" if isinstance(array, torch.Tensor) else "channels_last"
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    layouts = ["channels_first", "channels_last"] if array.ndim == 3 else []
    fitting = [layout for layout, axis in zip(layouts, (0, -1), strict=False) if array.shape[axis] in CHANNELS]
    if not (array.ndim == 2 or fitting) or array.size == 0 or array.dtype.kind not in "buif":
        raise ValueError(
            "an array must be (H, W), (H, W, C) or (C, H, W) of numbers with 1, 3 or 4 channels, "
            f"got {array.dtype} of shape {array.shape}"
        )
    if array.ndim == 3:
        layout = input_data_format or (usual if usual in fitting else fitting[0])
        array = np.moveaxis(array, 0, -1) if layout == "channels_first" else array
        array = array[..., 0] if array.shape[-1] == 1 else array
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype != np.uint8:
        scale = {"f": 1, "u": 65535 if array.dtype.itemsize == 2 else 255}.get(array.dtype.kind, 255)
        low, high = array.min(), array.max()
        full = _full_scale(low, high, scale)
        if full is None:
            raise ValueError(f"the values of an array must lie in [0, 1] or [0, 255], got {low} to {high}")
        array = _to_bytes(array, 0, full)
    return Image.fromarray(np.ascontiguousarray(array))


def _to_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    # Files hold mode I where they have 16 bits or more.
    scale = 1 if image.mode == "F" else 65535 if image.format or image.mode != "I" else 255
    png_scale = PNG_SCALES.get(image.tile[0][3], 1) if image.format == "PNG" and image.tile else 1
    if png_scale > 1 and "transparency" in image.info:
        image.info["transparency"] *= png_scale  # of the caller's, which is decoded now and may be read again
    image = ImageOps.exif_transpose(image)  # of the decoded image
    if image.mode[0] in "IF":
        values = np.asarray(image)
        low, high = values.min(), values.max()
        full = _full_scale(low, high, scale)
        grey = _to_bytes(values, *((low, high) if full is None else (0, full)))
        if isinstance(transparent := image.info.get("transparency"), int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    if not ("transparency" in image.info or image.mode in ALPHA_MODES or palette == "RGBA"):
        return image.convert("RGB")
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and max(transparent) > 255:  # of 16 bits; the pixels have 8
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _full_scale(low: float, high: float, smallest: int) -> int | None:
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it holds values that are not finite")
    slack = OVERSHOOT if smallest == 1 else 0
    scales = (scale for scale in (1, 255, 65535) if scale >= smallest)
    return next((scale for scale in scales if -slack * abs(high) <= low and high <= (1 + slack) * scale), None)


def _to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    shares = (values.astype(np.float64) - low) / max(high - low, 1e-12)
    return np.rint(shares.clip(0, 1) * 255).astype(np.uint8)


__all__ = ["read_image"]
