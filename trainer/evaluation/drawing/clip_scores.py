"""How well drawings fit their prompts, as CLIP models see it: CLIPScore, and HPS v2.1."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .drawings import read_drawing
from .open_clip_weights import read_open_clip


@dataclass(frozen=True)
class Clip:
    """A CLIP model with what prepares images and texts for it. Images are resized by Pillow, whatever is installed."""

    model: CLIPModel
    tokenizer: Any
    image_processor: CLIPImageProcessorPil

    @classmethod
    def from_pretrained(
        cls, repo: str | Path, weights: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> "Clip":
        """
        Args:
            repo (`str` or `Path`): folder or Hub id, such as `openai/clip-vit-base-patch32`, the authors'.
            weights (`str` or `Path`, *optional*): a file of OpenCLIP's to use in place of the repository's weights,
                such as `HPS_v2.1_compressed.pt`, whose architecture is `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`.
            device (`str` or `torch.device`, defaults to `"cpu"`)

        Raises:
            ValueError: if something cannot be loaded, or the weights do not fit.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(repo)
            images = CLIPImageProcessorPil.from_pretrained(repo)
            if weights is None:
                model = CLIPModel.from_pretrained(repo, dtype=torch.float32)
            else:
                model = CLIPModel(CLIPConfig.from_pretrained(repo))
                model.load_state_dict(read_open_clip(weights))
        except (OSError, ValueError, RuntimeError) as error:
            with_weights = "" if weights is None else f" with the weights '{weights}'"
            raise ValueError(f"The CLIP model '{repo}'{with_weights} cannot be loaded: {error}") from error
        return cls(model.to(device).eval(), tokenizer, images)

    @torch.no_grad()
    def embed_images(self, images: Sequence) -> torch.Tensor:
        """Images, or their files, to vectors `(N, P)` of length 1."""
        pixels = self.image_processor([read_drawing(image) for image in images], return_tensors="pt").pixel_values
        return _normalised(self.model.get_image_features(pixels.to(self.model.device)))

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """To vectors `(N, P)` of length 1; what exceeds the model's length is cut off, as in the authors' score."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return _normalised(self.model.get_text_features(**tokens.to(self.model.device)))


def clip_scores(images: Sequence, prompts: list[str], clip: Clip, batch_size: int = 32) -> list[float]:
    """
    The cosine of each image with its prompt, in [-1, 1]: as it is, neither times 100 nor cut off at 0. Its mean is the
    CLIPScore of the authors, and with the weights of HPS v2.1 their HPS v2.1.

    Args:
        images (`Sequence`): images or their files.
        prompts (`list[str]`): of each image.
        clip ([`Clip`])
        batch_size (`int`, defaults to 32)
    """
    scores = []
    for start in range(0, len(prompts), batch_size):
        some = slice(start, start + batch_size)
        cosines = (clip.embed_images(images[some]) * clip.embed_texts(prompts[some])).sum(dim=1)
        scores += cosines.tolist()
    return scores


def _normalised(output) -> torch.Tensor:
    return torch.nn.functional.normalize(output.pooler_output.float(), dim=-1)


__all__ = ["Clip", "clip_scores"]
