"""The networks that judge drawings, each loaded when a task asks for it."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from .blip_vqa import Blip
from .clip_scores import Clip
from .frechet import Inception
from .object_scores import Detector


@dataclass(frozen=True)
class Judges:
    """
    Args:
        clip (`str`): folder or Hub id of a CLIP model, for CLIPScore; by default the authors'.
        hps (`str` or `Path`, *optional*): the weights of HPS v2.1, `HPS_v2.1_compressed.pt`.
        hps_architecture (`str`): folder or Hub id of the CLIP model that they are of.
        blip (`str`): folder or Hub id of a BLIP that answers questions; by default T2I-CompBench's.
        inception (`str` or `Path`, *optional*): TorchScript of Inception, for FID; see [`Inception`].
        detector (`str`, *optional*): folder or Hub id of a detector of COCO's objects.
        colors (`str`): folder or Hub id of the CLIP model that tells colours of objects; by default GenEval's.
        device (`str`, defaults to `"cpu"`)
    """

    clip: str = "openai/clip-vit-base-patch32"
    hps: str | Path | None = None
    hps_architecture: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    blip: str = "Salesforce/blip-vqa-capfilt-large"
    inception: str | Path | None = None
    detector: str | None = None
    colors: str = "openai/clip-vit-large-patch14"
    device: str = "cpu"

    @classmethod
    def named(cls, given: list[str], device: str = "cpu") -> "Judges":
        """
        Args:
            given (`list[str]`): such as `"clip=FOLDER"`, `"hps=FILE"`.
            device (`str`, defaults to `"cpu"`)

        Raises:
            ValueError: if one is no judge, or has no value.
        """
        known = [each.name for each in fields(cls) if each.name != "device"]
        chosen = {}
        for each in given:
            name, _, value = each.partition("=")
            if name not in known or not value:
                raise ValueError(f"A judge must be NAME=FOLDER, ID or FILE with a NAME of {known}, got {each!r}.")
            chosen[name] = value
        return cls(**chosen, device=device)

    @cached_property
    def of_prompts(self) -> Clip:
        return Clip.from_pretrained(self.clip, device=self.device)

    @cached_property
    def of_preference(self) -> Clip:
        return Clip.from_pretrained(self.hps_architecture, weights=self.hps, device=self.device)

    @cached_property
    def of_questions(self) -> Blip:
        return Blip.from_pretrained(self.blip, device=self.device)

    @cached_property
    def of_objects(self) -> Detector:
        return Detector.from_pretrained(self.detector, device=self.device)

    @cached_property
    def of_colors(self) -> Clip:
        return Clip.from_pretrained(self.colors, device=self.device)

    def inception_of(self, resize: str) -> Inception:
        return Inception(self.inception, resize, self.device)


__all__ = ["Judges"]
