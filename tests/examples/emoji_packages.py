"""A stand-in for the two npm packages: their format, with nine flat drawings."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw

from examples.emoji.package import NAMES, PICTURES, TONES


EMOJI = {  # name: character, subcategory, colour, keywords
    "raised hand": ("\u270b", "hand-fingers-open", (250, 200, 50), ["stop", "high_five", "+1"]),
    "thumbs up": ("\U0001f44d", "hand-fingers-closed", (200, 150, 220), ["yes"]),
    "gorilla": ("\U0001f98d", "animal-mammal", (60, 60, 70), ["nature"]),
    "polar bear": ("\U0001f43b\u200d\u2744\ufe0f", "animal-mammal", (240, 250, 255), ["arctic"]),
    "frog": ("\U0001f438", "animal-amphibian", (20, 160, 20), []),
    "turtle": ("\U0001f422", "animal-reptile", (120, 220, 200), []),
    "red apple": ("\U0001f34e", "food-fruit", (220, 20, 30), ["fruit", "school"]),
    "grapes": ("\U0001f347", "food-fruit", (110, 30, 150), ["wine"]),
    "wolf flag": ("\U0001f3f4", "flag", (0, 0, 0), []),
}


def write_packages(folder: Path):
    pictures, index, names = {}, [], {}
    for order, (name, (characters, subcategory, rgb, keywords)) in enumerate(EMOJI.items()):
        code = "-".join(f"{ord(character):04X}" for character in characters)
        entry = {"unified": code, "subcategory": subcategory, "sort_order": order, "image": f"{code.lower()}.png"}
        tones = TONES if subcategory.startswith("hand") else {}
        entry["skin_variations"] = {tone: {"image": f"{code.lower()}-{tone.lower()}.png"} for tone in tones}
        images = [entry["image"], *(variation["image"] for variation in entry["skin_variations"].values())]
        for number, image in enumerate(images):
            pictures[f"package/img/twitter/64/{image}"] = _png(order, tuple(level - 20 * number for level in rgb))
        if not tones:
            del entry["skin_variations"]
        index.append(entry)
        names[characters] = [name.replace(" ", "_"), *keywords]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / PICTURES, {"package/emoji.json": json.dumps(index[::-1]).encode(), **pictures})
    _write(folder / NAMES, {"package/dist/emoji-en-US.json": json.dumps(names).encode()})


def _png(shape: int, rgb: tuple[int, ...]) -> bytes:
    image = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(image).regular_polygon((32, 32, 30), 3 + shape, fill=(*rgb, 255))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _write(archive: Path, members: dict[str, bytes]):
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
