"""The page: chat, draw, see inside."""

import functools
import inspect
import random
from collections.abc import Callable

import gradio as gr

from .chat import messages_of, stream_answer
from .drawing import stream_drawing
from .routing import choices_for_prompt, heat_map


MAX_IMAGES, MAX_SEED = 8, 2**31 - 1
DRAW_OVER, READ = "draw over it", "read it before the prompt"
# Fonts of the reader's own machine: nothing is asked of anybody else's.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = "#drawing .grid-wrap {max-height: none}"
# What is drawn in few pixels is shown in sharp ones.
SHARP = "#drawing img, #so-far img {image-rendering: pixelated}"


def interface(
    pipe,
    name: str,
    prompts: tuple[str, ...] = ("a red apple",),
    questions: tuple[tuple[str, str | None], ...] = (("What can you do?", None),),
    num_inference_steps: int = 50,
    guidance_scale: float = 5.0,
) -> gr.Blocks:
    """
    Args:
        pipe ([`RosettaPipeline`]): as [`load_pipeline`] loads it.
        name (`str`): of the model, for the title.
        prompts (`tuple[str, ...]`): examples of what to draw.
        questions (`tuple[tuple[str, str | None], ...]`): examples of what to ask, each with the path of an image or
            without.
        num_inference_steps (`int`, defaults to 50), guidance_scale (`float`, defaults to 5.0): of drawings, to begin
            with.

    Returns:
        `gr.Blocks`: to be launched with [`launch_options`].
    """
    config = pipe.transformer.config
    draws = pipe.vae is not None and config.token_type_index("noisy_latents") is not None
    sees = config.token_type_index("pixel_values") is not None
    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(3600, 24 * 3600), fill_width=True) as page:
        gr.Markdown(f"## {name}")
        with gr.Tab("Chat"):
            _chat(pipe, sees, questions)
        if draws:
            with gr.Tab("Draw"):
                _draw(pipe, prompts, num_inference_steps, guidance_scale)
        with gr.Tab("See inside"):
            _see_inside(pipe, sees, draws, prompts, num_inference_steps, guidance_scale)
    return page.queue(max_size=64)


def launch_options(pipe) -> dict:
    """What the page is launched with, wherever it is."""
    css = CSS + SHARP if pipe.processor.base_size < 128 else CSS
    return {"theme": THEME, "css": css, "ssr_mode": False}


def _errors_shown(function: Callable) -> Callable:
    """What is wrong with an argument, or with the memory, as a message on the page."""

    def shown(error: Exception) -> gr.Error:
        return gr.Error(str(error) or type(error).__name__, duration=None, print_exception=False)

    @functools.wraps(function)
    def generator(*arguments):
        try:
            yield from function(*arguments)
        except (ValueError, RuntimeError, OSError) as error:
            raise shown(error) from error

    @functools.wraps(function)
    def plain(*arguments):
        try:
            return function(*arguments)
        except (ValueError, RuntimeError, OSError) as error:
            raise shown(error) from error

    return generator if inspect.isgeneratorfunction(function) else plain


def _chat(pipe, sees: bool, questions: tuple[tuple[str, str | None], ...]):
    @_errors_shown
    def answer(message: dict, history: list[dict], max_new_tokens: int, temperature: float):
        yield from stream_answer(pipe, messages_of(message, history), max_new_tokens, temperature)

    gr.ChatInterface(
        answer,
        multimodal=True,
        chatbot=gr.Chatbot(show_label=False, height="60vh", render=False),
        textbox=gr.MultimodalTextbox(
            placeholder="Ask something, about an image if you like" if sees else "Ask something",
            file_types=["image"],
            file_count="multiple",
            sources=["upload"] if sees else [],
            show_label=False,
            render=False,
        ),
        additional_inputs=[
            gr.Slider(1, 2048, 256, step=1, label="At most so many tokens", render=False),
            gr.Slider(
                0, 2, 0, step=0.05, label="Temperature", info="0 takes the likeliest token each time", render=False
            ),
        ],
        additional_inputs_accordion=gr.Accordion("Settings", open=False, render=False),
        examples=[
            [{"text": text, "files": [image] if image else []}, None, None]
            for text, image in questions
            if sees or image is None
        ],
        cache_examples=False,
        api_name="chat",
        analytics_enabled=False,
    )


def _draw(pipe, prompts: tuple[str, ...], num_inference_steps: int, guidance_scale: float):
    processor = pipe.processor
    buckets = processor.inference_buckets if processor.latent_prefix else processor.training_buckets
    sizes = {f"{width} x {height}": (height, width) for height, width in buckets}
    as_trained = "square, or that of the image"

    @_errors_shown
    def draw(prompt, image, use, strength, negative, size, steps, guidance, number, seed, is_new, so_far):
        seed = random.randint(0, MAX_SEED - MAX_IMAGES) if is_new else int(seed)
        seeds = range(seed, seed + int(number))
        height, width = sizes.get(size, (None, None))
        arguments = {"image": image, "strength": strength if use == DRAW_OVER else None} if image is not None else {}
        yield seed, gr.skip(), gr.skip(), "reading the prompt ..."
        for progress in stream_drawing(
            pipe,
            prompt,
            list(seeds),
            negative_prompt=negative or None,
            height=height,
            width=width,
            num_inference_steps=int(steps),
            guidance_scale=guidance,
            **arguments,
        ):
            said = f"step {progress.step} of {progress.steps}"
            if progress.images is None:
                yield gr.skip(), gr.skip(), gr.skip(), said
            elif not progress.is_drawn:
                yield gr.skip(), [(image, "preview") for image in progress.images], gr.skip(), said
            else:
                drawn = [(im, f"seed {own}: {prompt}") for im, own in zip(progress.images, seeds, strict=True)]
                yield gr.skip(), drawn, [*drawn, *(so_far or [])], f"drawn in {progress.steps} steps"

    with gr.Row():
        with gr.Column(min_width=300):
            prompt = gr.Textbox(label="Prompt", lines=2, value=prompts[0] if prompts else "")
            with gr.Row():
                start = gr.Button("Draw", variant="primary", min_width=80)
                stop = gr.Button("Stop", variant="stop", min_width=80)
            number = gr.Slider(1, MAX_IMAGES, 1, step=1, label="Images")
            with gr.Accordion("Settings", open=False):
                size = gr.Dropdown([as_trained, *sizes], value=as_trained, label="Width x height in pixels")
                seed = gr.Number(0, label="Seed of the first image", precision=0, minimum=0, maximum=MAX_SEED)
                is_new = gr.Checkbox(True, label="A new seed each time")
                steps = gr.Slider(1, 200, num_inference_steps, step=1, label="Steps")
                guidance = gr.Slider(1, 20, guidance_scale, step=0.1, label="Guidance", info="1 is none")
                negative = gr.Textbox(label="Guided away from", placeholder="what should not be there")
            with gr.Accordion("Start from an image", open=False):
                image = gr.Image(type="pil", label="Image", sources=["upload", "clipboard"], height=200)
                use = gr.Radio(
                    [DRAW_OVER, READ], value=DRAW_OVER, label="Use", info="To read it is for models trained on edits."
                )
                strength = gr.Slider(0.05, 1, 0.6, step=0.05, label="Strength of the noise on it")
            if prompts:
                gr.Examples([[text] for text in prompts], [prompt])
        with gr.Column(min_width=300, scale=2):
            status = gr.Markdown("", elem_id="status")
            shown = gr.Gallery(
                label="Drawing",
                format="png",
                columns=2,
                height="auto",
                object_fit="contain",
                interactive=False,
                elem_id="drawing",
            )
            so_far = gr.Gallery(
                label="So far", format="png", columns=3, fit_columns=False, interactive=False, elem_id="so-far"
            )
    drawing = gr.on(
        [start.click, prompt.submit],
        draw,
        [prompt, image, use, strength, negative, size, steps, guidance, number, seed, is_new, so_far],
        [seed, shown, so_far, status],
        show_progress="hidden",
        api_name="draw",
    )
    stopped = stop.click(None, None, None, cancels=[drawing], queue=False)
    stopped.then(lambda: "stopped", None, status, queue=False, api_visibility="private")


def _see_inside(pipe, sees: bool, draws: bool, prompts: tuple[str, ...], steps: int, guidance: float):
    @_errors_shown
    def look(text: str, image, is_drawn: bool):
        choices = choices_for_prompt(
            pipe, text, image, bool(is_drawn), num_inference_steps=steps, guidance_scale=guidance
        )
        return heat_map(choices, pipe.transformer.config.num_experts_per_tok)

    gr.Markdown(
        "Which experts the tokens of a prompt go to, in each layer. Each token type has experts of its own, unless "
        "the model is a baseline where types share them."
    )
    with gr.Row():
        with gr.Column(min_width=300):
            text = gr.Textbox(label="Prompt", lines=2, value=prompts[0] if prompts else "")
            image = gr.Image(type="pil", label="With an image", sources=["upload"], height=200, visible=sees)
            is_drawn = gr.Checkbox(draws, label="Draw it, too", visible=draws)
            start = gr.Button("Look", variant="primary")
        with gr.Column(min_width=300, scale=2):
            plot = gr.Plot(show_label=False, format="png", elem_id="experts")
    gr.on([start.click, text.submit], look, [text, image, is_drawn], plot, api_name="see_inside")


__all__ = ["interface", "launch_options"]
