"""A tiny pipeline that reads images, and whose answers are words of few letters, not bytes of no character."""

from modeling_rosetta import RosettaPipeline
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline


def talkative_pipeline(architecture: str = "rosetta") -> RosettaPipeline:
    pipe = tiny_pipeline(architecture, latent_prefix=False)
    images, tokenizer = pipe.processor.image_processor, pipe.processor.tokenizer
    images.patch_size = pipe.transformer.config.vision_config.patch_size
    images.size = {"shortest_edge": 16 * 16, "longest_edge": 16 * 16}
    letters = {token for text, token in tokenizer.get_vocab().items() if text in [*"Ġabcdef"]}
    generation = pipe.transformer.generation_config
    generation.suppress_tokens = [*({*range(pipe.transformer.config.vocab_size)} - letters)]
    generation.no_repeat_ngram_size = 2
    return pipe


__all__ = ["talkative_pipeline"]
