"""
Encodes images to draw once, so that training need not do it again: writes parquet files that take the place of the
source in a recipe, with `task: t2i` and the folder as their `path`. Interrupted, it goes on where it was.

    accelerate launch examples/cache_latents.py data/captioned_images data/latents \
        --vae black-forest-labs/FLUX.2-dev --processor outputs/rosetta/4_t2i/model
"""

import argparse
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderKLFlux2


sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.stoppable import stoppable  # noqa: E402
from modeling_rosetta import RosettaProcessor  # noqa: E402
from trainer.data import DataSource, write_latent_cache  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="images and captions, as in a recipe")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--vae", required=True, help="folder or Hub id with the VAE in its subfolder `vae`")
    parser.add_argument("--processor", required=True, help="folder or Hub id of the model that is to be trained")
    parser.add_argument("--data_files")
    parser.add_argument("--streaming", action="store_true")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the VAE")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_skipped_share", type=float, default=0.01)
    arguments = parser.parse_args()
    state = PartialState()
    dtype = getattr(torch, arguments.dtype)
    vae = AutoencoderKLFlux2.from_pretrained(arguments.vae, subfolder="vae", torch_dtype=dtype)
    counts = write_latent_cache(
        DataSource("t2i", arguments.path, data_files=arguments.data_files, streaming=arguments.streaming),
        RosettaProcessor.from_pretrained(arguments.processor),
        vae.to(state.device).eval(),
        arguments.output_dir,
        batch_size=arguments.batch_size,
        max_skipped_share=arguments.max_skipped_share,
        process=state.process_index,
        num_processes=state.num_processes,
    )
    print(f"Process {state.process_index} of {state.num_processes}: {dict(counts)}")


if __name__ == "__main__":
    with stoppable("The same command starts anew."):
        main()
