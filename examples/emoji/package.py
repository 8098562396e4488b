"""
Twemoji's pictures and their names, from two npm packages of pinned version and hash.

`emoji-datasource-twitter` holds the pictures (Twemoji, Copyright Twitter, Inc and other contributors, CC BY 4.0) and
an index of them (MIT), `emojilib` their names and keywords (MIT).
"""

import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


PICTURES, NAMES = "emoji-datasource-twitter-16.0.0.tgz", "emojilib-4.0.3.tgz"
SHA256 = {
    PICTURES: "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    NAMES: "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303",
}
LICENSE = """\
The pictures are Twemoji, https://github.com/jdecked/twemoji, Copyright Twitter, Inc and other contributors, licensed
under CC BY 4.0, https://creativecommons.org/licenses/by/4.0/. Here they were made smaller and put on coloured grounds.
Their index is of emoji-datasource, Copyright Cal Henderson, their names and keywords of emojilib, Copyright Mu-An
Chiou, both under the MIT license.
"""
# What is taken, by the index's subcategories, and the word for it.
KINDS = {
    "animal-mammal": "mammal",
    "animal-bird": "bird",
    "animal-amphibian": "reptile",
    "animal-reptile": "reptile",
    "animal-marine": "sea animal",
    "animal-bug": "insect",
    "plant-flower": "flower",
    "plant-other": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "meal",
    "food-asian": "meal",
    "food-sweet": "dessert",
    "drink": "drink",
    "dishware": "tableware",
    "hand-fingers-open": "hand",
    "hand-fingers-partial": "hand",
    "hand-single-finger": "hand",
    "hand-fingers-closed": "hand",
    "hands": "hand",
    "hand-prop": "hand",
}
TONES = {"1F3FB": "light", "1F3FC": "medium light", "1F3FD": "medium", "1F3FE": "medium dark", "1F3FF": "dark"}


@dataclass(frozen=True)
class Emoji:
    """
    Args:
        name (`str`): as "polar bear"; names no other.
        kind (`str`): one of `KINDS`.
        keywords (`tuple[str, ...]`)
        drawings (`dict[str | None, Image.Image]`): RGBA, of the default skin (`None`) and of each of `TONES`.
    """

    name: str
    kind: str
    keywords: tuple[str, ...]
    drawings: dict[str | None, Image.Image]


def load_emoji(folder: Path) -> list[Emoji]:
    """
    All emoji of `KINDS` in the order of the index. The packages are fetched to `folder` unless they are there.

    Raises:
        FileNotFoundError: if they have to be fetched and there is no `npm`.
        ValueError: if one is not what was pinned.
    """
    for package in SHA256:
        if not (folder / package).is_file():
            fetch(package, folder)
        found = hashlib.sha256((folder / package).read_bytes()).hexdigest()
        if found != SHA256[package]:
            raise ValueError(f"The sha256 of {folder / package} must be {SHA256[package]}, got {found}.")
    (names,) = read_members(folder / NAMES, ["package/dist/emoji-en-US.json"]).values()
    index = json.loads(read_members(folder / PICTURES, ["package/emoji.json"])["package/emoji.json"])
    index = sorted((entry for entry in index if entry["subcategory"] in KINDS), key=lambda entry: entry["sort_order"])
    images = {(entry["unified"], tone): image for entry in index for tone, image in images_of(entry).items()}
    files = read_members(folder / PICTURES, set(images.values()))
    return [emoji_of(entry, json.loads(names), files) for entry in index]


def fetch(package: str, folder: Path):
    """Downloads a package by its file's name, as `name-1.2.3.tgz`, from the npm registry."""
    name, version = package.removesuffix(".tgz").rsplit("-", 1)
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", f"{name}@{version}", "--silent", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Fetching {package} needs `npm`, which is not installed; or put the file into {folder}."
        ) from error


def read_members(file: Path, names) -> dict[str, bytes]:
    with tarfile.open(file) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.name in names}


def images_of(entry: dict) -> dict[str | None, str]:
    """The file of each tone of an entry of the index; a pair of hands may have two, which is left out."""
    toned = {tone: entry.get("skin_variations", {}).get(code) for code, tone in TONES.items()}
    variants = {None: entry, **{tone: variant for tone, variant in toned.items() if variant}}
    return {tone: f"package/img/twitter/64/{variant['image']}" for tone, variant in variants.items()}


def emoji_of(entry: dict, names: dict[str, list[str]], files: dict[str, bytes]) -> Emoji:
    characters = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
    name, *keywords = names[characters]
    drawings = {tone: Image.open(io.BytesIO(files[file])).convert("RGBA") for tone, file in images_of(entry).items()}
    words = tuple(word.replace("_", " ") for word in keywords if word.isascii() and word.replace("_", "").isalpha())
    return Emoji(name.replace("_", " "), KINDS[entry["subcategory"]], words, drawings)
