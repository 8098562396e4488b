"""How much memory a step of training takes on one of several devices, before there is one."""

import contextlib
import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_apply_ac, fsdp2_prepare_model
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..checkpoints.sharding import reduce_in_fp32, routers_in_fp32
from ..data.drawing import encode_pixels
from ..figures.live_memory import LiveMemory
from ..flow_matching import noised_batch
from ..optimizer.from_arguments import optimizer_from_arguments
from ..optimizer.maop import MAOPAdamW
from ..optimizer.weight_average import WeightAverage


# What is kept of attention is what flex attention keeps on a GPU: there is no mask.
ATTENTION = "without_a_mask"


@dataclass
class StepMemory:
    """
    Bytes on one device.

    Args:
        peak (`int`): most at any time of a step.
        weights, moments, average, gradients (`int`): the trained and the frozen weights of the model and the VAE, what
            the optimizer holds, the average of the weights, and the gradients when they are all there.
    """

    peak: int
    weights: int
    moments: int
    average: int
    gradients: int

    @property
    def rest(self) -> int:
        """Activations, the head's chunk of logits, weights that are gathered, copies in lower precision."""
        return self.peak - self.weights - self.moments - self.average - self.gradients


def step_memory(
    make_model: Callable[[], nn.Module],
    make_batch: Callable[[], dict],
    training,
    num_devices: int = 1,
    accumulation_steps: int = 1,
    recompute: bool = False,
    make_vae: Callable[[], nn.Module] | None = None,
) -> StepMemory:
    """
    Goes through a step with tensors that have shapes only: the model itself, its backward pass, FSDP2, optimizer and
    average, as [`RosettaTrainer`] calls them.

    Args:
        make_model (`Callable`): makes the model, with what is trained of it.
        make_batch (`Callable`): makes a micro-batch of the collator's.
        training ([`RosettaTrainingArguments`]): of which precision, optimizer and average count.
        num_devices (`int`, defaults to 1): over which all is sharded, if there are several.
        accumulation_steps (`int`, defaults to 1): micro-batches of a step on each.
        recompute (`bool`, defaults to `False`): activations, in the backward pass.
        make_vae (`Callable`, *optional*): for batches with `latent_pixels`.
    """
    memory = LiveMemory()
    with torch.device("meta"):
        model = make_model().train()
        vae = None if make_vae is None else make_vae().eval().requires_grad_(False)
    with memory.fake:
        for module in (model, vae):
            _give_places(module)
    with _ranks(num_devices), _eager_collector(), memory:
        config = model.config
        if num_devices > 1:
            model = _sharded(model, training.bf16, recompute)
        elif recompute:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        if training.bf16:
            model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
        parameters = list(model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for tensor in (*parameters, *model.buffers(), *(() if vae is None else vae.parameters())):
            memory.count(tensor)
        weights = memory.now

        optimizer = _optimizer(model, config, training)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        gradients = sum(_bytes(parameter.grad) for parameter in trained)
        optimizer.zero_grad()
        moments = sum(_bytes(value) for state in optimizer.state.values() for value in _tensors(state))
        average = None if training.ema_decay is None else WeightAverage(training.ema_decay)
        if average is not None:
            average.start(model, None)

        memory.peak = memory.now
        for number in range(micro_batches := min(2, accumulation_steps)):  # more are as two
            if num_devices > 1:
                model.set_requires_gradient_sync(number == micro_batches - 1)
            _forward_and_backward(model, config, make_batch(), vae)
        clip_grad_norm_(trained, 1.0, foreach=True)
        optimizer.step()
        if average is not None:
            average.on_optimizer_step(None, None, None)
        return StepMemory(
            memory.peak,
            weights,
            moments,
            0 if average is None else sum(map(_bytes, average.ema.shadow_params)),
            gradients,
        )


def _give_places(model: nn.Module | None):
    """Puts what was made on the meta device, on which nothing computes in lower precision, on a (fake) CPU."""
    placed: dict[torch.Tensor, torch.Tensor] = {}  # what is tied stays so
    for module in () if model is None else model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in placed:
                    empty = torch.empty_like(parameter, device="cpu")
                    placed[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = placed[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


def _forward_and_backward(model: nn.Module, config, batch: dict, vae):
    if "latent_pixels" in batch:
        batch["latents"] = encode_pixels(vae, batch.pop("latent_pixels"), batch["latent_grid_hw"])
    model(**noised_batch(batch, config), use_cache=False).loss.backward()


def _optimizer(model: nn.Module, config, training) -> torch.optim.Optimizer:
    settings = {"betas": (training.adam_beta1, training.adam_beta2), "fused": training.optim == "adamw_torch_fused"}
    return optimizer_from_arguments(model, config, training, (), MAOPAdamW, **settings)


def _sharded(model: nn.Module, bf16: bool, recompute: bool) -> nn.Module:
    """As accelerate shards with `examples/accelerate_configs/fsdp2.yaml`."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        activation_checkpointing=recompute,
        cpu_ram_efficient_loading=False,
    )
    precision = "bf16" if bf16 else "no"
    if bf16:
        plugin.set_mixed_precision(precision)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision=precision, is_main_process=True
    )
    reduce_in_fp32(accelerator)
    with routers_in_fp32(accelerator, model):
        if recompute:
            plugin.set_auto_wrap_policy(model)
            model = fsdp2_apply_ac(accelerator, model)
        return fsdp2_prepare_model(accelerator, model)


@contextlib.contextmanager
def _ranks(number: int) -> Iterator[None]:
    """As one of `number` ranks, the others of which do not exist: nothing is sent."""
    if number == 1:
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=number, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _eager_collector() -> Iterator[None]:
    """What is in a circle is let go of when Python's collector comes to it, which is often where little is old."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _attend(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)


def _bytes(tensor: torch.Tensor) -> int:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.untyped_storage().nbytes()


def _tensors(state: dict) -> list[torch.Tensor]:
    return [value for value in state.values() if torch.is_tensor(value)]


def full_row(config, task: str, length: int, image_tokens: int, token_pixels: int | None = None) -> list[dict]:
    """
    Samples of one task that fill a row.

    Args:
        config (`RosettaConfig`)
        task (`str`): `"lm"`, `"mmu"` or `"t2i"`.
        length (`int`): tokens of the row.
        image_tokens (`int`): of each image.
        token_pixels (`int`, *optional*): side in pixels of a token to draw; without it the images come as latents.
    """
    side = max(1, math.isqrt(image_tokens))

    def sample(num_text: int, kind: int = 0, num_image: int = 0, **images) -> dict:
        types = torch.tensor([kind] * num_image + [0] * num_text)
        ids = torch.zeros_like(types)
        return {"input_ids": ids, "token_type_ids": types, "labels": ids.masked_fill(types > 0, -100), **images}

    if task == "lm":
        return [sample(length)]
    number, tokens = max(1, length // (side**2 + side**2 // 8)), side**2
    text = length // number - tokens
    if task == "mmu":
        vision = config.vision_config
        merge, patch = (
            vision.spatial_merge_size,
            vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        )
        kind = config.token_type_index("pixel_values")
        images = {
            "pixel_values": torch.zeros(tokens * merge**2, patch),
            "image_grid_thw": torch.tensor([[1, side * merge, side * merge]]),
        }
    else:
        kind, images = config.token_type_index("noisy_latents"), {"latent_grid_hw": torch.tensor([[side, side]])}
        if token_pixels is None:
            images["latents"] = torch.zeros(tokens, config.latent_channels)
        else:
            images["latent_pixels"] = torch.zeros(tokens * token_pixels**2, 3, dtype=torch.uint8)
    return [sample(text, kind, tokens, **images) for _ in range(number)]


__all__ = ["ATTENTION", "StepMemory", "full_row", "step_memory"]
