"""What a stage starts from: nothing is lost when a model is upcycled and token types are mounted."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from hub_upload.__main__ import main as hub_upload
from modeling_rosetta import RosettaForCausalLMAndImageGeneration, RosettaPipeline, RosettaProcessor
from tests.modeling_rosetta.tiny_pipeline import tiny_vae
from trainer.stages.recipe import StageArguments
from trainer.stages.starting_point import ARCHITECTURES, missing_token_types, write_starting_point
from trainer.stages.training_record import load_training_record, save_training_record


TOKENIZER = Path(__file__).parents[2] / "fixtures" / "tiny_tokenizer"
TASKS = ({"lm"}, {"mmu", "lm"}, {"t2i", "mmu", "lm"})


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folder with `dense`, `vision_tower` and `vae`."""
    folder = tmp_path_factory.mktemp("parts")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    dense = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            tie_word_embeddings=True,
            initializer_range=0.2,
        )
    )
    dense.bfloat16().save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    vision = Qwen3VLVisionConfig(
        depth=1,
        hidden_size=16,
        intermediate_size=16,
        num_heads=2,
        patch_size=4,
        out_hidden_size=64,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0],
    )
    Qwen3VLVisionModel._from_config(vision).save_pretrained(folder / "vision_tower")
    Qwen2VLImageProcessorPil(patch_size=4).save_pretrained(folder / "vision_tower")
    tiny_vae().save_pretrained(folder / "vae")
    return folder


def _stage(parts, **changes) -> StageArguments:
    sizes = {"max_length": 8, "global_batch_size": 1}
    sources = {"vision_tower": str(parts / "vision_tower"), "vae": str(parts)}
    return StageArguments(**{"stage": "", "model": str(parts / "dense"), **sizes, **sources, **changes})


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_stage_after_stage(architecture, parts, tmp_path):
    ids = torch.arange(40, 52)[None]
    expected = Qwen3ForCausalLM.from_pretrained(parts / "dense", dtype=torch.float32)(ids).logits
    target, folder = ARCHITECTURES[architecture](), parts / "dense"
    for number, (tasks, added) in enumerate(zip(TASKS, ("text", "vit", "vae"), strict=True)):
        stage = _stage(parts, model=str(folder), architecture=architecture, image_pixels=[64, 256], base_size=64)
        assert missing_token_types(stage, tasks) == [added]
        folder = tmp_path / added
        write_starting_point(folder, stage, [added])
        save_training_record(folder, [*load_training_record(folder), {"stage": added}])
        model = RosettaForCausalLMAndImageGeneration.from_pretrained(folder)
        assert model.dtype == torch.float32
        assert model.config.token_types == target.token_types[: number + 1]
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
        assert missing_token_types(_stage(parts, model=str(folder), architecture=architecture), tasks) == []
    assert model.config.expert_pools == target.expert_pools
    assert [stage["stage"] for stage in load_training_record(folder)] == ["text", "vit", "vae"]
    processor = RosettaProcessor.from_pretrained(folder, trust_remote_code=True)
    assert (processor.base_size, processor.latent_patch_size) == (64, 16)
    assert processor.image_processor.size["longest_edge"] == 256
    RosettaPipeline(model, tiny_vae(), None, processor)  # checks that they fit
    # A response ends at <|im_end|>, a document at the tokenizer's own end.
    assert processor.turn_end_token_id in model.generation_config.eos_token_id


def test_all_at_once(parts, tmp_path):
    stage = _stage(parts, vocab_size=1200)
    missing = missing_token_types(stage, TASKS[-1])
    assert missing == ["text", "vit", "vae"]
    write_starting_point(tmp_path / "start", stage, missing)
    config = RosettaForCausalLMAndImageGeneration.from_pretrained(tmp_path / "start").config
    assert [t["name"] for t in config.token_types] == missing
    assert config.vocab_size == 1200


@pytest.fixture(scope="module")
def reads(parts):
    """A Rosetta that reads text only."""
    write_starting_point(parts / "reads", _stage(parts), ["text"])
    return str(parts / "reads")


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        ({"mmu"}, {"vision_tower": None}, "`vision_tower` must be given: `data` has images to understand"),
        ({"t2i"}, {"vae": None}, "`vae` must be given: `data` has images to draw"),
        ({"lm"}, {"train": "projectors"}, "`train` is 'projectors', but '.*' has no ViT"),
        ({"lm"}, {"architecture": "moe"}, "`architecture` is 'moe', but '.*' is of another one: 'text' is"),
    ],
)
def test_errors_before_anything_is_loaded(tasks, changes, message, parts, reads):
    with pytest.raises(ValueError, match=message):
        missing_token_types(_stage(parts, model=reads, **changes), tasks)


def test_a_model_must_be_of_a_known_kind(parts):
    with pytest.raises(ValueError, match="must be a dense Qwen3 or a Rosetta, '.*vision_tower' is of type"):
        missing_token_types(_stage(parts, model=str(parts / "vision_tower")), {"lm"})


@pytest.mark.parametrize("argument", ["model", "vision_tower", "vae"])
def test_all_parts_must_be_there(argument, parts, tmp_path):
    with pytest.raises(OSError, match=f"`{argument}`: there is no .*config.json in '{tmp_path}'"):
        missing_token_types(_stage(parts, **{argument: str(tmp_path)}), TASKS[-1])
    with pytest.raises(OSError, match=f"`{argument}`: 'nowhere' cannot be read"):
        missing_token_types(_stage(parts, **{argument: "nowhere"}), TASKS[-1])


def test_an_interrupted_writing_leaves_nothing(parts, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(RosettaProcessor, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_starting_point(tmp_path / "start", _stage(parts), ["text"])
    assert not any(tmp_path.iterdir())


def test_it_loads_with_auto_classes(reads):
    assert AutoModelForCausalLM.from_pretrained(reads, trust_remote_code=True).config.pools == ["text"]
    assert AutoProcessor.from_pretrained(reads, trust_remote_code=True).embeds_from == ["input_ids"]
    assert not (Path(reads) / "model_index.json").exists()  # it does not draw


@pytest.fixture
def copied(parts, tmp_path):
    """A copy of the dense model, and of a Rosetta made of it."""
    shutil.copytree(parts / "dense", tmp_path / "dense")
    write_starting_point(tmp_path / "rosetta", _stage(parts), ["text"])
    return tmp_path


@pytest.mark.parametrize("name", ["dense", "rosetta"])
def test_a_model_without_a_tokenizer_is_refused_before_any_work(name, copied, parts):
    """transformers makes an empty one, which turns every text into nothing."""
    for file in (copied / name).iterdir():
        if "token" in file.name or file.name in ("vocab.json", "merges.txt"):
            file.unlink()
    with pytest.raises((OSError, ValueError), match=f"`model`: .*{name}"):
        missing_token_types(_stage(parts, model=str(copied / name)), {"lm"})


@pytest.mark.parametrize("name", ["dense", "rosetta"])
def test_a_tokenizer_that_does_not_fit_is_refused_before_any_work(name, copied, parts):
    tokenizer = AutoTokenizer.from_pretrained(copied / name)
    tokenizer.add_tokens([f"more {number}" for number in range(50)])
    tokenizer.save_pretrained(copied / name)
    with pytest.raises(ValueError, match="`model`: .* rows in its embedding"):
        missing_token_types(_stage(parts, model=str(copied / name)), {"lm"})


def test_a_rosetta_without_a_processor_is_refused_before_any_work(copied, parts):
    (copied / "rosetta" / "processor_config.json").unlink()
    with pytest.raises((OSError, ValueError), match="`model`: .*"):
        missing_token_types(_stage(parts, model=str(copied / "rosetta")), {"lm"})


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_what_hub_upload_upcycles_is_a_start(architecture, parts, tmp_path):
    upcycled, target = tmp_path / "upcycled", ARCHITECTURES[architecture]().token_types[0]
    assert hub_upload(["upcycle", str(parts / "dense"), str(upcycled), "--architecture", architecture]) == 0
    stage = _stage(parts, model=str(upcycled), architecture=architecture)
    assert missing_token_types(stage, {"lm"}) == []
    assert missing_token_types(stage, {"lm", "mmu"}) == ["vit"]
    write_starting_point(tmp_path / "start", stage, ["vit"])
    direct = tmp_path / "direct"
    write_starting_point(direct, _stage(parts, architecture=architecture), ["text"])
    one, other = (RosettaForCausalLMAndImageGeneration.from_pretrained(path) for path in (upcycled, direct))
    assert one.config.token_types == [target] and one.config.eos_token_id == other.config.eos_token_id
    assert torch.equal(one.lm_head.weight.float(), other.lm_head.weight)
    assert (upcycled / "tokenizer.json").read_bytes() == (direct / "tokenizer.json").read_bytes()
