"""A folder of drawings and the manifest that says what each is and how it is drawn again."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from modeling_rosetta.images_rosetta import read_image


MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Drawings:
    """
    Args:
        folder (`Path`)
        manifest (`dict`): `model` (name and a fingerprint of its weights), `settings` of the pipeline, `versions` of
            the libraries that drew the first, and `images`: of each its `file`, `prompt`, `seed` and what else the
            file of prompts says.
    """

    folder: Path
    manifest: dict

    @classmethod
    def read(cls, folder: str | Path) -> "Drawings":
        """
        Raises:
            ValueError: if the folder has no manifest, or a drawing is missing or broken.
        """
        file = Path(folder, MANIFEST)
        try:
            drawings = cls(Path(folder), json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`folder`: '{file}' cannot be read: {error}. examples/generate_images.py makes one."
            ) from None
        if missing := drawings.missing():
            raise ValueError(
                f"`folder`: {len(missing)} of {len(drawings.files)} drawings are missing in '{folder}', the first is "
                f"{missing[0].name}: go on drawing with the command that began."
            )
        for drawing in drawings.files:
            read_drawing(drawing)
        return drawings

    @property
    def records(self) -> list[dict]:
        return self.manifest["images"]

    @property
    def files(self) -> list[Path]:
        return [self.folder / record["file"] for record in self.records]

    @property
    def prompts(self) -> list[str]:
        return [record["prompt"] for record in self.records]

    def missing(self) -> list[Path]:
        return [file for file in self.files if not file.exists()]

    def check_folder(self):
        """
        Raises:
            ValueError: if the folder holds drawings of another manifest, or of none.
        """
        file = self.folder / MANIFEST
        if not file.exists():
            if strangers := [file for file in self.files if file.exists()]:
                raise ValueError(
                    f"`folder`: '{self.folder}' has no {MANIFEST}, yet a {strangers[0].name}: give a folder without."
                )
            return
        there, here = _identity(json.loads(file.read_text(encoding="utf-8"))), _identity(self.manifest)
        if name := next((name for name in here if there[name] != here[name]), None):
            difference = _difference(there[name], here[name])
            raise ValueError(
                f"`folder`: '{self.folder}' holds drawings with other {name} ({difference}): give another folder, or "
                "what it was begun with."
            )

    def save_manifest(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / MANIFEST
        if not file.exists():
            staged = file.with_name(f".{file.name}.{os.getpid()}")
            staged.write_text(json.dumps(self.manifest, indent=1, ensure_ascii=False), encoding="utf-8")
            staged.replace(file)


def read_drawing(image) -> Image.Image:
    """
    An image, or its file, in RGB.

    Raises:
        ValueError: if it cannot be read; it names the file.
    """
    return read_image(image, f"'{image}'")


def save_image(image: Image.Image, file: Path):
    """Whole or not at all."""
    staged = file.with_name(f".{file.name}.saving")
    image.save(staged, "PNG")
    staged.replace(file)


def _identity(manifest: dict) -> dict:
    """What drawings depend on."""
    return {"weights": manifest["model"]["weights"], "settings": manifest["settings"], "prompts": manifest["images"]}


def _difference(was, now) -> str:
    if isinstance(was, dict) and isinstance(now, dict):
        name = next(name for name in {**was, **now} if was.get(name) != now.get(name))
        return f"{name} was {was.get(name)!r} and is {now.get(name)!r}"
    if isinstance(was, list) and len(was) == len(now):
        return next(_difference(a, b) for a, b in zip(was, now, strict=True) if a != b)
    if isinstance(was, list):
        return f"there were {len(was)} and are {len(now)}"
    return f"{was} and now {now}"


__all__ = ["Drawings", "read_drawing", "save_image"]
