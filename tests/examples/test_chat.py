"""The chat in the terminal: it answers, remembers, looks, draws, and says what it cannot do."""

import io

import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from examples.chat import Chat, main
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(latent_prefix=False).save_pretrained(folder)
    return folder


@pytest.fixture
def chat(model, tmp_path, monkeypatch):
    def say(*lines, options=()):
        said = io.StringIO()
        settings = [
            "--device=cpu",
            "--max_new_tokens=3",
            "--num_inference_steps=2",
            f"--output_dir={tmp_path / 'drawn'}",
        ]
        files = {"stdin": io.StringIO("\n".join(lines) + "\n"), "stdout": said}
        monkeypatch.setattr("examples.chat.Chat.use_rawinput", False)
        main([str(model), *settings, *options], **files)
        return said.getvalue()

    return say


def test_it_draws_and_is_asked_about_it(chat, tmp_path):
    said = chat("/draw stone", "/draw stone", "hello", "/quit")
    files = sorted((tmp_path / "drawn").iterdir())
    assert [file.name for file in files] == ["0000.png", "0001.png"]
    assert f"{files[0]}, seed 0" in said and f"{files[1]}, seed 1" in said
    images = [Image.open(file).tobytes() for file in files]
    assert images[0] != images[1]
    chat("/draw stone", options=["--seed=1"])
    assert Image.open(tmp_path / "drawn" / "0002.png").tobytes() == images[1]


def test_what_was_said_is_remembered_until_it_is_forgotten(tmp_path, monkeypatch):
    pipe, asked = tiny_pipeline(latent_prefix=False), []
    template = pipe.processor.apply_chat_template

    def noted(messages, **kwargs):
        asked.append(messages)
        return template(messages, **kwargs)

    monkeypatch.setattr(pipe.processor, "apply_chat_template", noted)
    chat = Chat(pipe, tmp_path, 0, {}, {"max_new_tokens": 2}, stdout=io.StringIO())
    for line in ("hello stone", "again", "/new", "hello"):
        chat.onecmd(line)
    assert [len(messages) for messages in asked] == [1, 3, 1]
    assert [message["role"] for message in asked[1]] == ["user", "assistant", "user"]


def test_an_image_is_of_the_next_message(tmp_path):
    pipe = tiny_pipeline(latent_prefix=False)
    edges = {"shortest_edge": 16 * 16, "longest_edge": 16 * 16}
    pipe.processor.image_processor = Qwen2VLImageProcessorPil(patch_size=4, size=edges)
    Image.new("RGB", (64, 64)).save(tmp_path / "a b.png")
    said = io.StringIO()
    chat = Chat(pipe, tmp_path, 0, {}, {"max_new_tokens": 2}, stdout=said)
    for line in (f"/image '{tmp_path / 'a b.png'}'", "hello", "stone"):
        chat.onecmd(line)
    assert "The next message is about 1 image(s)." in said.getvalue()
    kinds = [[part["type"] for part in message["content"]] for message in chat.messages if message["role"] == "user"]
    assert kinds == [["image", "text"], ["text"]]


def test_what_it_cannot_do(chat, model, capsys):
    said = chat("/sing", "/image nowhere.png", "/draw", "/help", "EOF")
    assert "There is no command /sing" in said and "'nowhere.png' cannot be read as an image" in said
    assert "What is to be drawn?" in said and "starts another conversation" in said
    with pytest.raises(SystemExit):
        main(["nowhere/none"])
    assert "The model 'nowhere/none' cannot be loaded" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(model), "--dtype=half-a-float"])
    assert "`dtype` must be 'auto' or a type of torch" in capsys.readouterr().err
