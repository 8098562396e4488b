"""One pipeline makes one drawing at a time; pipelines of the same components draw at once."""

import threading

import numpy as np
import pytest
import torch

from tests.modeling_rosetta.tiny_pipeline import noise, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def draw(pipe, **kwargs) -> torch.Tensor:
    return pipe("a red stone", latents=noise(), output_type="latent", **{"num_inference_steps": 3, **kwargs}).images


def while_drawing(pipe, do) -> torch.Tensor:
    """Draws, and after the first step does something in another thread."""

    def callback(pipe, step, timestep, tensors):
        if step == 0:
            thread = threading.Thread(target=do)
            thread.start()
            thread.join()
        return {}

    return draw(pipe, callback_on_step_end=callback)


def test_a_second_drawing_with_a_pipeline_is_an_error_that_says_so(pipe):
    expected, errors = draw(pipe), []
    sibling = type(pipe)(**pipe.components)  # with the same scheduler

    def second():
        for other in (pipe, sibling):
            try:
                draw(other)
            except RuntimeError as error:
                errors.append(str(error))

    assert torch.equal(while_drawing(pipe, second), expected)
    assert len(errors) == 2 and all("a scheduler of its own" in error for error in errors)
    assert torch.equal(draw(pipe), expected)


def test_pipelines_with_a_scheduler_each_draw_at_once(pipe):
    expected, drawn = draw(pipe), []
    scheduler = pipe.scheduler.from_config(pipe.scheduler.config)
    other = type(pipe)(**{**pipe.components, "scheduler": scheduler})  # as the error says
    other.set_progress_bar_config(disable=True)
    assert torch.equal(while_drawing(pipe, lambda: drawn.append(draw(other))), expected)
    assert torch.equal(drawn[0], expected)


def test_a_drawing_within_a_callback_is_refused_and_the_pipeline_goes_on(pipe):
    with pytest.raises(RuntimeError, match="a scheduler of its own"):
        draw(pipe, callback_on_step_end=lambda pipe, *_: draw(pipe))
    assert draw(pipe).isfinite().all()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_pipeline_draws_again_after_an_exception(error, pipe):
    def fail(*_):
        raise error

    with pytest.raises(error):
        draw(pipe, callback_on_step_end=fail)
    with pytest.raises(ValueError, match="height"):
        draw(pipe, height=3)
    assert draw(pipe).isfinite().all()


def test_sizes_of_numpy_are_sizes(pipe):
    images = pipe(
        "x",
        height=np.int64(48),
        width=np.int32(80),
        num_inference_steps=np.int64(1),
        num_images_per_prompt=np.uint8(2),
        output_type="latent",
    ).images
    assert images.shape == (2, 8, 3, 5)


@pytest.mark.parametrize("name", ["num_inference_steps", "num_images_per_prompt", "height", "width"])
@pytest.mark.parametrize("value", [True, np.True_, np.float64(16), 0, np.int64(-16)])
def test_what_is_no_size_is_refused(name, value, pipe):
    with pytest.raises(ValueError, match=f"`{name}`"):
        draw(pipe, **{name: value})
