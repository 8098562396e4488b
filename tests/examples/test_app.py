"""The app as its user has it: in a browser, a headless Chromium if there is one."""

import io
import shutil
import threading

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from examples import app
from examples.miniature.digits import load_digits
from tests.examples.talkative import talkative_pipeline


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
expect.set_options(timeout=20_000)
QUIET = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync""".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    talkative_pipeline().save_pretrained(folder)
    return str(folder)


class Gate:
    """Holds up the model's n-th run from now until it is opened, so that what is seen before is seen for sure."""

    def __init__(self):
        self.opened, self.runs = threading.Event(), float("inf")

    def close(self, runs: int):
        self.opened.clear()
        self.runs = runs

    def __call__(self, module, arguments):
        self.runs -= 1
        if self.runs == 0:
            assert self.opened.wait(60)


@pytest.fixture(scope="module")
def served(model):
    """The app, its pipeline, and a gate before the model."""
    launch, load, found = gr.Blocks.launch, app.load_pipeline, {"gate": Gate()}

    def load_pipeline(*arguments):
        found["pipe"] = load(*arguments)
        found["pipe"].transformer.register_forward_pre_hook(found["gate"])
        return found["pipe"]

    def launch_and_go_on(page, **options):
        found["page"], (_, found["url"], _) = page, launch(page, prevent_thread_lock=True, quiet=True, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "load_pipeline", load_pipeline)
        patch.setattr(gr.Blocks, "launch", launch_and_go_on)
        app.main([model, "--prompt", "a stone", "--num_inference_steps=6", "--guidance_scale=2", "--device=cpu"])
    yield found
    found["page"].close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, served):
    """The app in a new window, which asks nothing of anybody but this machine."""
    page, asked = browser.new_page(viewport={"width": 1100, "height": 900}), []
    page.set_default_timeout(30_000)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served["url"])
    yield page
    page.close()
    assert all(url.startswith((served["url"], "data:", "blob:")) for url in asked), asked


def tab(page, name: str):
    page.get_by_role("tab", name=name).click()


def settings(page):
    page.locator("button:visible", has_text="Settings").first.click()


def picture(page, locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.request.get(locator.get_attribute("src")).body())).convert("RGB"))


def test_it_is_asked_about_a_digit(page, served, tmp_path):
    digit = load_digits()[1].images[0]
    digit.save(tmp_path / "digit.png")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "digit.png")
    expect(page.locator("img[src*='digit.png']").first).to_be_visible()
    box = page.get_by_placeholder("Ask something, about an image if you like")
    box.fill("Which digit is this?")
    settings(page)
    page.get_by_label("number input for At most so many tokens").fill("24")
    expect(page.get_by_label("range slider for At most so many tokens")).to_have_value("24")
    box.press("Enter")

    pipe, content = (
        served["pipe"],
        [{"type": "image", "image": digit}, {"type": "text", "text": "Which digit is this?"}],
    )
    inputs = pipe.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = pipe.transformer.generate(**inputs, max_new_tokens=24, do_sample=False)
    said = pipe.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    expect(page.get_by_test_id("bot").last).to_have_text(said.strip(), use_inner_text=True)
    expect(page.get_by_test_id("user").last).to_contain_text("Which digit is this?")
    page.screenshot(path=tmp_path / "chat.png")


def test_it_draws_with_previews_and_stops(page, served, tmp_path):
    gate, drawing, so_far = served["gate"], page.locator("#drawing"), page.locator("#so-far")
    tab(page, "Draw")
    settings(page)
    page.get_by_label("A new seed each time").uncheck()
    page.get_by_label("Seed of the first image").fill("7")
    gate.close(runs=4)  # one for the prompt, then one for each step
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#status")).to_have_text("step 2 of 6")
    expect(drawing.locator("img")).to_have_attribute("alt", "preview")
    preview = picture(page, drawing.locator("img"))
    gate.opened.set()
    expect(page.locator("#status")).to_have_text("drawn in 6 steps")
    expect(drawing.locator("img")).to_have_attribute("alt", "seed 7: a stone")
    page.screenshot(path=tmp_path / "drawn.png")
    drawn = picture(page, drawing.locator("img"))
    expected = served["pipe"](
        "a stone", num_inference_steps=6, guidance_scale=2.0, generator=[torch.Generator().manual_seed(7)]
    ).images
    np.testing.assert_array_equal(drawn, expected[0])
    assert preview.shape == drawn.shape and not np.array_equal(preview, drawn)

    gate.close(runs=3)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#status")).to_have_text("step 1 of 6")
    page.get_by_role("button", name="Stop").click()
    gate.opened.set()
    expect(page.locator("#status")).to_have_text("stopped")
    expect(so_far.locator("img")).to_have_count(1)


def test_it_shows_where_tokens_went_and_what_is_wrong(page):
    tab(page, "See inside")
    page.get_by_role("button", name="Look").click()
    expect(page.locator("#experts img")).to_be_visible()
    page.get_by_label("Prompt").last.fill("stone " * 600)
    page.get_by_role("button", name="Look").click()
    expect(page.locator(".toast-body.error")).to_contain_text("`max_sequence_length`")


def test_it_fits_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 780})
    for name in ("Chat", "Draw", "See inside"):
        tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    tab(page, "Draw")
    box = page.get_by_role("button", name="Draw", exact=True).bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nowhere/none"], "MODEL: 'nowhere/none' cannot be loaded"),
        (["x", "--dtype=half-a-float"], "`dtype` must be a type of torch such as 'bfloat16', got 'half-a-float'"),
        ([], "MODEL must be given: outputs/quickstart/model, which `make quickstart` leaves, is not there"),
    ],
)
def test_what_it_cannot_load(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        app.main(arguments)
    assert said in capsys.readouterr().err
