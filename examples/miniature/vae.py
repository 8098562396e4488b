"""A small FLUX.2 autoencoder. What lies between its pixels and latents is `modeling_rosetta.latent_codec_rosetta`."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2

from .progress import Progress


NUM_STEPS = 250
BATCH_SIZE = 32
LEARNING_RATE = 5e-3
KL_WEIGHT = 1e-3


def train_vae(
    pixels: torch.Tensor,
    seed: int = 0,
    num_steps: int = NUM_STEPS,
    channels: tuple[int, ...] = (16, 32),
    latent_channels: int = 1,
) -> AutoencoderKLFlux2:
    """
    Trains an autoencoder to reconstruct `pixels` (N, 3, H, W) from a sample of its posterior, with a little of the
    KL divergence from N(0, 1), so that latents near one another decode to images near one another. Then sets the
    statistics that normalise its latents to those of `pixels`, and freezes it.

    Args:
        channels: of each block; all but the last halve the sides of the image.
        latent_channels: before four neighbours become one.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKLFlux2(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=pixels.shape[-1],
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.05)
    progress = Progress("VAE", num_steps)
    for step in range(1, num_steps + 1):
        batch = pixels[torch.randint(len(pixels), (BATCH_SIZE,))]
        posterior = vae.encode(batch).latent_dist
        latents = posterior.sample()
        reconstruction_loss = F.mse_loss(vae.decode(latents).sample, batch)
        loss = reconstruction_loss + KL_WEIGHT * posterior.kl().mean() / latents[0].numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        progress.show(step, {"squared error": reconstruction_loss.item()})
    vae.eval().requires_grad_(False)
    patches = F.pixel_unshuffle(vae.encode(pixels).latent_dist.mode(), vae.config.patch_size[0])
    vae.bn.running_mean.copy_(patches.mean((0, 2, 3)))
    vae.bn.running_var.copy_(patches.var((0, 2, 3)))
    return vae
