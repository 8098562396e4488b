"""What an evaluation asks of a model: likelihoods, answers and drawings, in batches that change nothing."""

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

from modeling_rosetta.latent_codec_rosetta import with_latents

from .task import Choices, Drawing, Prompt, Question


AUTHORS_IMAGES = "authors_inference"
# Of an image to understand in the authors' evaluation, as ViT tokens.
MIN_IMAGE_TOKENS, MAX_IMAGE_TOKENS = 256, 4096
ROW_KEYS = ("input_ids", "token_type_ids", "attention_mask")


class ModelUnderTest:
    """
    A model with what it needs to read, answer and draw.

    Args:
        pipe ([`RosettaPipeline`]): its `vae` and `scheduler` may be `None` if nothing is drawn.
        is_in_step (`bool`, defaults to `False`): whether all ranks have to call the model equally often, as a sharded
            one needs.
    """

    def __init__(self, pipe, is_in_step: bool = False):
        self.pipe, self.model, self.vae = pipe, pipe.transformer, pipe.vae
        self.is_in_step = is_in_step or any(isinstance(p, DTensor) for p in self.model.parameters())
        self._processors: dict = {None: pipe.processor}

    def processor(self, image_layout: str | None = None):
        """
        The model's own, or one that gives images to understand as the authors' evaluation does: clean latents of the
        image cropped to a bucket, then ViT tokens, which attend causally, of the whole image at 256 to 4,096 tokens.

        Raises:
            ValueError: if the model lacks what the layout needs.
        """
        if image_layout not in self._processors:
            own, config = self.pipe.processor, self.model.config
            lacks = [
                what
                for what, is_there in (
                    ("a token type for latents", config.token_type_index("noisy_latents") is not None),
                    (
                        "a timestep token in its configuration (`timestep_token_id`)",
                        config.timestep_token_id is not None,
                    ),
                    ("a VAE", self.vae is not None),
                )
                if not is_there
            ]
            if lacks:
                raise ValueError(
                    f"The authors' protocol gives images as latents and ViT tokens, and this model lacks "
                    f"{' and '.join(lacks)}: evaluate it in the stock protocol."
                )
            side = own.image_processor.patch_size * own.image_processor.merge_size
            size = {"shortest_edge": MIN_IMAGE_TOKENS * side**2, "longest_edge": MAX_IMAGE_TOKENS * side**2}
            images = type(own.image_processor)(**{**own.image_processor.to_dict(), "size": size})
            attributes = ("embeds_from", "base_size", "latent_patch_size", "latent_prefix_type")
            self._processors[image_layout] = type(own)(
                images,
                own.tokenizer,
                **{name: getattr(own, name) for name in attributes},
                latent_prefix=True,
                layout=image_layout,
                image_embeds_from=["noisy_latents", "pixel_values"],
            )
        return self._processors[image_layout]

    def encode(self, prompt: Prompt, image_layout: str | None = None) -> dict[str, torch.Tensor]:
        """
        The row that a prompt becomes, without padding: raw text as it is, without a beginning of its own; messages as
        the chat template says, up to where the assistant speaks.

        Returns:
            `dict`: `input_ids`, `token_type_ids` `(1, S)`, and what the processor returns of images.
        """
        if isinstance(prompt, str):
            ids = self.pipe.processor.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
            return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}
        batch = self.processor(image_layout).apply_chat_template(
            prompt,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt"},
        )
        return {key: value for key, value in batch.items() if key != "attention_mask"}

    @torch.no_grad()
    def likelihoods(self, requests: list[Choices], image_layout: str | None = None) -> list[list[float]]:
        """Of each request the log-likelihood of each of its continuations, in nats."""
        tokenizer, rows, wanted = self.pipe.processor.tokenizer, [], []
        for request in requests:
            row = self.encode(request.prompt, image_layout)
            ends = [tokenizer(text, add_special_tokens=False).input_ids for text in request.continuations]
            shared = all(len(end) == 1 for end in ends)  # one forward has the likelihoods of all of these
            for end in ends[:1] if shared else ends:
                rows.append(_extended(row, end))
                wanted.append([[other[0]] for other in ends] if shared else [end])
        batch = self._batch(rows)
        longest = max(len(end) for ends in wanted for end in ends)
        logits = self.model(**batch, logits_to_keep=longest + 1, use_cache=False).logits
        logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        found = iter(
            [sum(logprobs[i, -1 - len(end) + place, token].item() for place, token in enumerate(end)) for end in ends]
            for i, ends in enumerate(wanted)
        )
        outputs = []
        for request in requests:
            values: list[float] = []
            while len(values) < len(request.continuations):
                values += next(found)
            outputs.append(values)
        return outputs

    @torch.no_grad()
    def answers(self, requests: list[Question], image_layout: str | None = None, **generation) -> list[str]:
        """The greedy answer to each, without special tokens; `generation` are further arguments of `generate`."""
        processor = self.pipe.processor
        batch = self._batch([self.encode(request.prompt, image_layout) for request in requests])
        longest = max(request.max_new_tokens for request in requests)
        ends = [processor.turn_end_token_id, processor.tokenizer.eos_token_id]
        defaults = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        output = self.model.generate(
            **batch,
            max_new_tokens=longest,
            eos_token_id=[*{token for token in ends if token is not None}],
            pad_token_id=processor.tokenizer.pad_token_id,
            synced_gpus=self.is_in_step,
            **{**defaults, **generation},
        )
        new = output[:, batch["input_ids"].shape[1] :]
        return [
            processor.tokenizer.decode(tokens[: request.max_new_tokens], skip_special_tokens=True)
            for tokens, request in zip(new, requests, strict=True)
        ]

    def drawings(self, requests: list[Drawing], image_layout: str | None = None) -> list:
        """The picture of each."""
        self.pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        return self.pipe([r.prompt for r in requests], generator=generators, **requests[0].settings).images

    def outputs(self, requests: list, image_layout: str | None = None) -> list:
        """Of requests of one kind."""
        ask = {Choices: self.likelihoods, Question: self.answers, Drawing: self.drawings}[type(requests[0])]
        return ask(requests, image_layout)

    def check(self, requests: list, image_layout: str | None = None):
        """
        Raises:
            ValueError: before any work, if the model cannot do what is asked.
        """
        config = self.model.config
        if isinstance(requests[0], Drawing):
            if config.token_type_index("noisy_latents") is None or self.vae is None or self.pipe.scheduler is None:
                raise ValueError(
                    "The model does not draw: no token type is of latents, or its repository has no VAE and scheduler."
                )
        elif image_layout is not None:
            self.processor(image_layout)
        elif config.token_type_index("pixel_values") is None and any(_has_image(r.prompt) for r in requests):
            raise ValueError("The model sees no images: none of its token types is embedded from 'pixel_values'.")

    def _batch(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Rows padded on the left, with the images of all."""
        width, pad = max(row["input_ids"].shape[1] for row in rows), self.pipe.processor.tokenizer.pad_token_id
        values = {"input_ids": pad, "token_type_ids": 0, "attention_mask": 0}
        rows = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
        batch = {
            key: torch.cat([F.pad(row[key], (width - row[key].shape[1], 0), value=value) for row in rows])
            for key, value in values.items()
        }
        for key in dict.fromkeys(key for row in rows for key in row):
            if key not in values:
                batch[key] = torch.cat([row[key] for row in rows if key in row])
        batch = {key: value.to(self.model.device) for key, value in batch.items()}
        return with_latents(batch, self.vae)


def _extended(row: dict[str, torch.Tensor], ids: list[int]) -> dict[str, torch.Tensor]:
    new = torch.tensor([ids])
    types = torch.cat([row["token_type_ids"], torch.zeros_like(new)], dim=1)
    return {**row, "input_ids": torch.cat([row["input_ids"], new], dim=1), "token_type_ids": types}


def _has_image(prompt: Prompt) -> bool:
    if isinstance(prompt, str):
        return False
    contents = [message["content"] for message in prompt if not isinstance(message["content"], str)]
    return any(item["type"] != "text" for content in contents for item in content)


__all__ = ["AUTHORS_IMAGES", "ModelUnderTest"]
