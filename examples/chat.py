"""
A chat in the terminal with one copy of the weights, which answers as it thinks, looks at images and draws.

    python examples/chat.py MODEL [--device cuda] [--dtype bfloat16] [--max_new_tokens 512] [--output_dir drawings]

MODEL is a folder or a Hub id. In the chat a line is a message, and these are commands:

    /image FILE     the next message is about this image (several may be given)
    /draw PROMPT    draws, saves the picture in `output_dir`, and keeps it in the conversation
    /new            starts another conversation
    /help, /quit
"""

import argparse
import cmd
import shlex
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import TextStreamer  # noqa: E402
from transformers.utils import logging  # noqa: E402

from modeling_rosetta import decode_latents  # noqa: E402
from trainer.evaluation.loading import load_pipeline  # noqa: E402


class Chat(cmd.Cmd):
    """
    Args:
        pipe ([`RosettaPipeline`])
        output_dir (`Path`): for drawings.
        seed (`int`): of the first drawing; each has the next.
        drawing (`dict`): arguments of each drawing.
        answering (`dict`): arguments of `generate`.
    """

    prompt = "> "
    intro = "A line is a message; /help says the rest."

    def __init__(self, pipe, output_dir: Path, seed: int, drawing: dict, answering: dict, **files):
        super().__init__(**files)
        self.pipe, self.output_dir, self.seed = pipe, output_dir, seed
        self.drawing, self.answering = drawing, answering
        self.do_new()

    def onecmd(self, line: str) -> bool | None:
        name, _, argument = line.strip().partition(" ")
        if name == "EOF" or name == "/quit":
            return True
        if name.startswith("/"):
            command = getattr(self, f"do_{name[1:]}", None)
            if command is None:
                return self.say(f"There is no command {name}; /help says which there are.")
            return command(argument.strip())
        if name:
            self.answer(line.strip())
        return None

    def do_new(self, argument: str = ""):
        """Forgets what was said."""
        self.messages: list[dict] = []
        self.images: list[Image.Image] = []

    def do_help(self, argument: str):
        self.say((__doc__ or "").split("commands:\n\n")[1].rstrip())

    def do_image(self, argument: str):
        for file in shlex.split(argument):
            try:
                self.images.append(Image.open(file))
            except OSError as error:
                return self.say(f"'{file}' cannot be read as an image: {error}")
        self.say(f"The next message is about {len(self.images)} image(s).")
        return None

    def do_draw(self, argument: str):
        if self.pipe.transformer.config.token_type_index("noisy_latents") is None:
            return self.say("This model does not draw.")
        if not argument:
            return self.say("What is to be drawn? /draw PROMPT")
        generator = torch.Generator().manual_seed(self.seed)
        try:
            latents = self.pipe(argument, generator=generator, output_type="latent", **self.drawing).images
        except ValueError as error:
            return self.say(f"{error}")
        image = self.pipe.image_processor.postprocess(decode_latents(self.pipe.vae, latents))[0]
        self.output_dir.mkdir(parents=True, exist_ok=True)
        file = self.output_dir / f"{len(list(self.output_dir.glob('*.png'))):04}.png"
        image.save(file)
        self.seed += 1
        drawn = {"role": "assistant", "content": [{"type": "latents", "latents": latents[0].cpu()}]}
        self.messages += [{"role": "user", "content": argument}, drawn]
        return self.say(f"{file}, seed {self.seed - 1}")

    def answer(self, text: str):
        """Answers a message, word for word as they come, and keeps both."""
        content = [{"type": "image", "image": image} for image in self.images] + [{"type": "text", "text": text}]
        messages = [*self.messages, {"role": "user", "content": content}]
        processor, model = self.pipe.processor, self.pipe.transformer
        try:
            inputs = processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(model.device)
            output = model.generate(**inputs, streamer=Words(processor.tokenizer, self.stdout), **self.answering)
        except ValueError as error:
            return self.say(f"{error}")
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        self.messages, self.images = [*messages, {"role": "assistant", "content": answer}], []
        return None

    def say(self, text: str):
        self.stdout.write(text + "\n")


class Words(TextStreamer):
    """Writes words to a file as they come."""

    def __init__(self, tokenizer, file):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.file = file

    def on_finalized_text(self, text: str, stream_end: bool = False):
        self.file.write(text + "\n" * stream_end)
        self.file.flush()


def main(arguments: list[str] | None = None, **files):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--revision")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest word each time")
    parser.add_argument("--seed", type=int, default=0, help="of the first drawing; each has the next")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=5.0)
    parser.add_argument("--output_dir", type=Path, default=Path("drawings"))
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    try:
        pipe = load_pipeline(options.model, options.device, options.dtype, options.revision)
    except ValueError as error:
        parser.error(f"{error}")
    pipe.set_progress_bar_config(desc="drawing", leave=False)
    sampling = {"do_sample": True, "temperature": options.temperature} if options.temperature > 0 else {}
    Chat(
        pipe,
        options.output_dir,
        options.seed,
        {"num_inference_steps": options.num_inference_steps, "guidance_scale": options.guidance_scale},
        {"max_new_tokens": options.max_new_tokens, "do_sample": False, **sampling},
        **files,
    ).cmdloop()


if __name__ == "__main__":
    main()
