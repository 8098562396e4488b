"""Images come in one way: the same pixels for every entrance, upright, on white, in 8 bits, or one clear error."""

import base64
import io
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from modeling_rosetta.images_rosetta import read_image


COLOURS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
WHITE = (255, 255, 255)


def file(image: Image.Image, kind: str = "PNG", **kwargs) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **kwargs)
    return stream.getvalue()


def png(depth: int, colour_type: int, row: bytes, transparent: bytes) -> bytes:
    """One pixel, as Pillow cannot write it."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def pixels(image) -> np.ndarray:
    read = read_image(image)
    assert read.mode == "RGB"
    return np.asarray(read)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x112] = orientation
    return tags


# --- entrances ------------------------------------------------------------------------------------


@pytest.fixture
def url():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(file(Image.fromarray(COLOURS)))

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_every_entrance_gives_the_same_pixels(processor, tmp_path, url):
    image = Image.fromarray(COLOURS)
    path = tmp_path / "a.png"
    path.write_bytes(file(image))
    encoded = base64.b64encode(file(image)).decode()
    forms = [
        *(image, COLOURS, torch.from_numpy(COLOURS).permute(2, 0, 1), COLOURS / 255, path, str(path), file(image)),
        *(bytearray(file(image)), encoded, f"data:image/png;base64,{encoded}", f"{url}/a.png"),
    ]
    to_draw = processor.preprocess_vae_image(image)
    seen = processor(text="<|image_pad|>", images=image, return_tensors="pt")["pixel_values"]
    for form in forms:
        assert np.array_equal(pixels(form), COLOURS)
        assert torch.equal(processor.preprocess_vae_image(form), to_draw)
        batch = processor(text="<|image_pad|>", images=form, return_tensors="pt")
        assert torch.equal(batch["pixel_values"], seen)
        talk = [{"role": "user", "content": [{"type": "image", "image": form}]}]
        batch = processor.apply_chat_template(talk, tokenize=True, return_dict=True, return_tensors="pt")
        assert torch.equal(batch["pixel_values"], seen)
        assert torch.equal(processor.training_sample(talk)["pixel_values"], seen)
    with pytest.raises(ValueError, match="404"):
        read_image(f"{url}/b.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation, processor):
    image = Image.fromarray(COLOURS)
    opened = Image.open(io.BytesIO(file(image, exif=exif(orientation))))
    upright = np.asarray(ImageOps.exif_transpose(opened))
    assert (upright.shape != COLOURS.shape) == (orientation > 4)
    for form in (file(image, exif=exif(orientation)), opened, opened.convert("RGB")):
        assert np.array_equal(pixels(form), upright)
    deep = Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 5000)
    deep.info["exif"] = exif(orientation).tobytes()
    assert read_image(deep).size == ((2, 3) if orientation > 4 else (3, 2))


# --- transparency ---------------------------------------------------------------------------------


def with_info(mode: str, colour, transparent) -> Image.Image:
    image = Image.new(mode, (1, 1), colour)
    image.info["transparency"] = transparent
    return image


def palette_image() -> Image.Image:
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 30, 0], "RGBA")
    return image


@pytest.mark.parametrize(
    "image",
    [
        *(Image.new(mode, (1, 1)) for mode in ("RGBA", "LA", "PA", "La", "RGBa")),
        with_info("P", 0, 0),
        with_info("P", 0, bytes([0])),
        with_info("1", 0, 0),
        with_info("L", 7, 7),
        with_info("RGB", (1, 2, 3), (1, 2, 3)),
        with_info("I;16", 700, 700),
        palette_image(),
        png(16, 0, struct.pack(">H", 700), struct.pack(">H", 700)),
        png(16, 2, struct.pack(">3H", 40000, 500, 9), struct.pack(">3H", 40000, 500, 9)),
        png(4, 0, bytes([0b01010000]), struct.pack(">H", 5)),
        png(2, 0, bytes([0b01000000]), struct.pack(">H", 1)),
        png(1, 0, bytes([0b10000000]), struct.pack(">H", 1)),
    ],
)
def test_what_is_transparent_is_white(image):
    assert read_image(image).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("depth", [2, 4])
def test_an_open_image_that_is_read_again_is_the_same(depth):
    image = Image.open(io.BytesIO(png(depth, 0, bytes([1 << 8 - depth]), struct.pack(">H", 1))))
    assert (pixels(image) == 255).all() and (pixels(image) == 255).all()


def test_half_transparent_is_half_white_and_arrays_too():
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 127))
    for form in (half, np.asarray(half), torch.from_numpy(np.array(half)).permute(2, 0, 1), np.asarray(half) / 255):
        assert abs(int(pixels(form)[0, 0, 0]) - 128) <= 1
    assert read_image(with_info("L", 7, 8)).getpixel((0, 0)) == (7, 7, 7)


# --- depth and colour -----------------------------------------------------------------------------

RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 16 bits whose 8 bits are 0 to 255
GREYS = np.arange(256).reshape(16, 16)


@pytest.mark.parametrize(
    "deep",
    [
        Image.fromarray(RAMP),
        Image.frombytes("I;16B", (16, 16), RAMP.astype(">u2").tobytes()),
        Image.fromarray(RAMP.astype(np.int32)),
        Image.fromarray(GREYS.astype(np.int32)),
        Image.fromarray(GREYS.astype(np.float32)),
        Image.fromarray((GREYS / 255).astype(np.float32)),
        Image.fromarray(RAMP.astype(np.float32)),
        Image.fromarray((GREYS * 1e6).astype(np.int32)),
        Image.fromarray((GREYS * 1e6 - 7e6).astype(np.float32)),
        file(Image.fromarray(RAMP)),
        file(Image.fromarray(RAMP), "TIFF"),
        file(Image.fromarray((GREYS / 255).astype(np.float32)), "TIFF"),
        b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes(),
        *(RAMP, RAMP.astype(np.int32), GREYS, GREYS / 255.0, GREYS.astype(np.float32), (GREYS / 255).astype("f2")),
        torch.from_numpy(GREYS / 255),
        torch.from_numpy(RAMP.astype(np.int32)),
    ],
)
def test_deep_greys_are_scaled(deep):
    assert np.abs(pixels(deep).astype(int) - GREYS[..., None]).max() <= 1


def test_a_dark_file_of_16_bits_stays_dark():
    assert pixels(b"P5 2 1 65535\n" + struct.pack(">2H", 200, 0)).max() == 1


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV", "P", "RGBX"])
def test_colour_is_converted(mode):
    red = Image.new("RGB", (2, 2), (204, 51, 51))
    if mode == "LAB":
        from PIL import ImageCms

        lab = ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(red, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    else:
        image = red.convert(mode)
    assert np.abs(pixels(image).astype(int) - np.asarray(red)).max() <= 6


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_many_frames_the_first_is_read(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 0, 200))]
    data = file(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(pixels(data)[0, 0], (200, 0, 0))


@pytest.mark.parametrize(
    "array, shape",
    [
        (np.zeros((4, 6)), (4, 6)),
        (np.zeros((4, 6, 1)), (4, 6)),
        (np.zeros((1, 4, 6)), (4, 6)),
        (np.zeros((3, 4, 6), bool), (4, 6)),
        (np.zeros((4, 4, 6)), (4, 6)),
        (np.zeros((3, 6, 3)), (3, 6)),
        (torch.zeros(3, 6, 3), (6, 3)),
        (torch.zeros(3, 4, 6, dtype=torch.bfloat16, requires_grad=True), (4, 6)),
    ],
)
def test_layouts_of_arrays(array, shape):
    assert pixels(array).shape == (*shape, 3)


def test_overshoot_of_resampling_is_no_other_scale():
    assert pixels(np.array([[-0.02, 1.02]]))[0, :, 0].tolist() == [0, 255]
    assert pixels(np.array([[True, False]]))[0, :, 0].tolist() == [255, 0]


def test_a_layout_may_be_named(processor):
    for layout in ("channels_first", "channels_last"):
        batch = processor(images=np.zeros((3, 64, 3)), text="<|image_pad|>", input_data_format=layout)
        ((_, height, width),) = batch["image_grid_thw"].tolist()
        assert (height > width) == (layout == "channels_first")


# --- errors ---------------------------------------------------------------------------------------


class Lazy(Image.Image):
    def load(self):
        raise struct.error("unpack requires a buffer")


def damaged() -> Image.Image:
    return Image.open(io.BytesIO(file(Image.fromarray(COLOURS), "JPEG")[:-600]))


@pytest.mark.parametrize(
    "image, reason",
    [
        (3, "got int"),
        (None, "got NoneType"),
        ("nowhere.png", "no file 'nowhere.png'"),
        ("folder", "no file 'folder'"),
        (b"", "format is not known"),
        (file(Image.fromarray(COLOURS))[:300], "truncated|image file"),
        (damaged(), "truncated"),
        (Lazy(), "unpack|pixels"),
        ("data:image/png;base64,AAAA", "format is not known"),
        ("http://127.0.0.1:9/a.png", "urlopen"),
        (Image.new("RGB", (0, 3)), "0 x 3 pixels"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.zeros(3), r"shape \(3,\)"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (np.array([["a"]]), "<U1"),
        (np.full((2, 2), -1.0), "-1.0 to -1.0"),
        (np.linspace(-1, 1, 4).reshape(2, 2), "-1.0 to 1.0"),
        (np.full((2, 2), np.nan), "not finite"),
    ],
)
def test_what_cannot_be_read_is_named(image, reason, processor):
    with pytest.raises(ValueError, match=f"`image` .*({reason})"):
        processor.preprocess_vae_image(image)
    with pytest.raises(ValueError, match=f"`images`: image 1 .*({reason})"):
        processor(text="<|image_pad|><|image_pad|>", images=[COLOURS, image])


def test_the_cause_tells_a_missing_file_from_a_damaged_one(tmp_path):
    with pytest.raises(ValueError) as missing:
        read_image(tmp_path / "none.png")
    assert isinstance(missing.value.__cause__, FileNotFoundError)


def test_a_decompression_bomb_is_an_error(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="exceeds limit"):
        read_image(file(Image.fromarray(COLOURS)))


def test_floats_that_shall_not_be_rescaled_are_refused(processor):
    with pytest.raises(ValueError, match="`do_rescale`"):
        processor(text="<|image_pad|>", images=COLOURS / 255, do_rescale=False)
