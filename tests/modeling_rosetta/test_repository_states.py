"""Whatever state a pipeline is in, saving it over a repository leaves a whole one or the one that was there."""

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.quantizers import HfQuantizer

from hub_upload.release import sha256
from modeling_rosetta import RosettaForCausalLMAndImageGeneration, mount, resize_experts
from modeling_rosetta.pipeline import RosettaPipeline
from modeling_rosetta.repository_rosetta import weights_of_model
from tests.modeling_rosetta.test_mounting import AUDIO
from tests.modeling_rosetta.tiny_pipeline import tiny_pipeline


IDS = torch.arange(10)[None]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_pipeline().save_pretrained(folder)
    (folder / "README.md").write_text("a card")
    (folder / "vae" / "notes.txt").write_text("notes")
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def pipe(saved) -> RosettaPipeline:
    pipe = tiny_pipeline()
    pipe.transformer = RosettaForCausalLMAndImageGeneration.from_pretrained(saved)
    return pipe


def lora() -> LoraConfig:
    """On projections, and on the fused weights of experts."""
    return LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"], init_lora_weights=False
    )


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256(file) for file in folder.rglob("*") if file.is_file()}


def add_adapters(pipe, *names):
    for name in names:
        pipe.transformer.add_adapter(lora(), adapter_name=name)


def load_adapter(pipe, tmp_path):
    get_peft_model(tiny_pipeline().transformer, lora()).save_pretrained(tmp_path / "adapter")
    pipe.transformer.load_adapter(tmp_path / "adapter")


def disable_adapters(pipe):
    add_adapters(pipe, "one")
    pipe.transformer.disable_adapters()


def delete_one_of_two_adapters(pipe):
    add_adapters(pipe, "one", "two")
    pipe.transformer.delete_adapter("one")


def delete_adapters(pipe):
    add_adapters(pipe, "one", "two")
    pipe.transformer.delete_adapter(["one", "two"])


def merge_adapter(pipe):
    pipe.transformer = get_peft_model(pipe.transformer, lora()).merge_and_unload()


def wrap_in_peft(pipe):
    pipe.transformer = get_peft_model(pipe.transformer, lora())


def compile_all(pipe):
    pipe.transformer, pipe.vae = torch.compile(pipe.transformer), torch.compile(pipe.vae)


def offload_and_back(pipe):
    cpu_offload(pipe.transformer, CPU)
    cpu_offload(pipe.vae, CPU)
    pipe.remove_all_hooks()


def group_offload(pipe, path=None):
    pipe.enable_group_offload(CPU, CPU, offload_type="leaf_level", offload_to_disk_path=path)


def dispatch_to_disk(pipe, folder, tmp_path):
    parts = {name: "cpu" for name, _ in pipe.transformer.model.named_children() if name != "layers"}
    layers = {f"layers.{i}": "disk" if i else "cpu" for i in range(pipe.transformer.config.num_hidden_layers)}
    places = {f"model.{name}": place for name, place in {**parts, **layers}.items()}
    pipe.transformer = RosettaForCausalLMAndImageGeneration.from_pretrained(
        folder, device_map={**places, "latent_out": "cpu", "lm_head": "cpu"}, offload_folder=tmp_path / "offloaded"
    )
    assert any(weight.is_meta for weight in pipe.transformer.state_dict().values())


def mount_audio(pipe):
    mount(pipe.transformer, AUDIO, 4, processor=pipe.processor)
    resize_experts(pipe.transformer, "audio", 2)


def untie(pipe):
    pipe.transformer.lm_head.weight = nn.Parameter(pipe.transformer.lm_head.weight + 1)


def replace(name: str, part):
    return lambda pipe: setattr(pipe, name, part(getattr(pipe, name)))


WHOLE = {
    "as loaded": lambda pipe: None,
    "adapters deleted": delete_adapters,
    "adapter merged": merge_adapter,
    "adapter unloaded": replace("transformer", lambda model: get_peft_model(model, lora()).unload()),
    "in bf16": lambda pipe: pipe.to(torch.bfloat16),
    "in fp16": lambda pipe: pipe.to(torch.float16),
    "in two dtypes": lambda pipe: pipe.transformer.model.layers.bfloat16(),
    "compiled": compile_all,
    "compiled in place": lambda pipe: pipe.transformer.compile(),
    "offloaded and back": offload_and_back,
    "group offloaded": group_offload,
    "mounted": mount_audio,
    "untied": untie,
    "in training": lambda pipe: pipe.transformer.train(),
    "without a VAE": lambda pipe: setattr(pipe, "vae", None),
}
REFUSED = {
    "adapter added": (lambda pipe: add_adapters(pipe, "one"), "`transformer` has adapters"),
    "adapters added": (lambda pipe: add_adapters(pipe, "one", "two"), "`transformer` has adapters"),
    "adapters disabled": (disable_adapters, "`transformer` has adapters"),
    "one adapter of two": (delete_one_of_two_adapters, "`transformer` has adapters"),
    "adapter injected": (lambda pipe: get_peft_model(pipe.transformer, lora()), "has adapters"),
    "wrapped in peft": (wrap_in_peft, "`transformer` must be the Rosetta.* itself .*got PeftModel"),
    "wrapped in parallel": (replace("transformer", nn.DataParallel), "`transformer` must be .*got DataParallel"),
    "without its head": (
        replace("transformer", lambda model: model.model),
        "must be .*got RosettaModel",
    ),
    "without a model": (replace("transformer", lambda model: None), "`transformer` must be part"),
    "without a processor": (replace("processor", lambda processor: None), "`processor` must be part"),
    "parametrised": (
        lambda pipe: nn.utils.parametrizations.weight_norm(pipe.transformer.lm_head),
        "`transformer` must have the weights that its configuration describes.*lm_head",
    ),
    "on meta": (lambda pipe: pipe.transformer.to("meta"), "`transformer` must have its weights in memory"),
    "offloaded": (lambda pipe: cpu_offload(pipe.transformer, CPU), "`transformer` must have its weights in memory"),
    "VAE offloaded": (lambda pipe: cpu_offload(pipe.vae, CPU), "`vae` must have its weights in memory"),
    "VAE with more": (lambda pipe: pipe.vae.add_module("more", nn.Linear(2, 2)), "`vae` must have the weights"),
    "scheduler of one's own": (
        replace("scheduler", lambda scheduler: type("Mine", (FlowMatchEulerDiscreteScheduler,), {})()),
        "`scheduler` must be of a class of diffusers",
    ),
}


def check_whole(folder: Path, pipe):
    loaded = RosettaForCausalLMAndImageGeneration.from_pretrained(folder)
    expected = weights_of_model(getattr(pipe.transformer, "_orig_mod", pipe.transformer))
    assert loaded.state_dict().keys() == expected.keys()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, expected[name].to(weight.dtype)), name
    vae = AutoencoderKLFlux2.from_pretrained(folder, subfolder="vae")
    if pipe.vae is not None:
        assert torch.equal(vae.bn.running_mean, pipe.vae.bn.running_mean.to(vae.dtype))
    assert (folder / "README.md").read_text() == "a card" and (folder / "vae" / "notes.txt").read_text() == "notes"


@pytest.mark.parametrize("state", WHOLE)
def test_a_whole_repository_is_left(state, pipe, folder):
    before = contents(folder).keys()
    WHOLE[state](pipe)
    pipe.save_pretrained(folder)
    assert contents(folder).keys() == before
    check_whole(folder, pipe)


@pytest.mark.parametrize("state", REFUSED)
def test_what_cannot_be_saved_whole_is_refused_before_anything_is_touched(state, pipe, folder, tmp_path):
    before = contents(folder)
    change, message = REFUSED[state]
    change(pipe)
    for directory in (folder, tmp_path / "new"):
        with pytest.raises(ValueError, match=message):
            pipe.save_pretrained(directory)
    assert contents(folder) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_loaded_adapter_can_be_saved_alone_and_merged(pipe, folder, tmp_path):
    """What the error tells to do."""
    before = contents(folder)
    load_adapter(pipe, tmp_path)
    with_adapter = pipe.transformer(IDS).logits
    with pytest.raises(ValueError, match="has adapters.*save them by themselves.*merge_and_unload"):
        pipe.save_pretrained(folder)
    assert contents(folder) == before

    pipe.transformer.save_pretrained(tmp_path / "alone")
    pipe.transformer.delete_adapter("default")
    pipe.save_pretrained(folder)
    check_whole(folder, pipe)
    pipe.transformer = RosettaForCausalLMAndImageGeneration.from_pretrained(folder)
    pipe.transformer = PeftModel.from_pretrained(pipe.transformer, tmp_path / "alone").merge_and_unload()
    pipe.save_pretrained(folder)
    check_whole(folder, pipe)
    torch.testing.assert_close(pipe.transformer(IDS).logits, with_adapter, rtol=0, atol=1e-4)


def test_an_adapter_saved_into_a_repository_leaves_it_whole(pipe, folder):
    add_adapters(pipe, "one")
    before = contents(folder)
    pipe.transformer.save_pretrained(folder)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"adapter_config.json", "adapter_model.safetensors"}


def test_what_a_device_map_has_put_on_disk_is_read_back(pipe, folder, tmp_path):
    expected = pipe.transformer(IDS).logits
    dispatch_to_disk(pipe, folder, tmp_path)
    pipe.save_pretrained(folder)
    assert torch.equal(RosettaForCausalLMAndImageGeneration.from_pretrained(folder)(IDS).logits, expected)


def test_what_group_offloading_has_put_on_disk_is_refused(pipe, folder, tmp_path):
    before = contents(folder)
    group_offload(pipe, str(tmp_path / "offloaded"))
    with pytest.raises(ValueError, match="must have its weights in memory"):
        pipe.save_pretrained(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("is_serializable", [True, False])
def test_a_quantised_model_is_saved_if_it_can_be(is_serializable, pipe, folder):
    class Quantizer(HfQuantizer):
        def is_serializable(self):
            return is_serializable

        is_trainable = False

    pipe.transformer.hf_quantizer = Quantizer.__new__(Quantizer)
    pipe.transformer.hf_quantizer.quantization_config = type("Bits", (), {"quant_method": "bits"})
    before = contents(folder)
    if is_serializable:
        pipe.save_pretrained(folder)
        assert contents(folder).keys() == before.keys()
    else:
        with pytest.raises(ValueError, match="not serializable"):
            pipe.save_pretrained(folder)
        assert contents(folder) == before


@pytest.mark.parametrize("sharded", [True, False])
def test_no_older_weights_are_left_beside_new_ones(sharded, pipe, folder):
    pipe.save_pretrained(folder, max_shard_size="10GB" if sharded else "300KB")
    pipe.transformer.lm_head.weight.data += 1
    pipe.save_pretrained(folder, max_shard_size="300KB" if sharded else "10GB")
    check_whole(folder, pipe)
    names = sorted(file.name for file in folder.glob("model*"))
    assert ("model.safetensors" in names) != sharded and ("model.safetensors.index.json" in names) == sharded


@pytest.mark.parametrize("sharded", [True, False])
def test_a_model_saved_alone_leaves_no_older_weights_beside_its_own(sharded, pipe, folder):
    pipe.save_pretrained(folder, max_shard_size="10GB" if sharded else "300KB")
    pipe.transformer.lm_head.weight.data += 1
    pipe.transformer.save_pretrained(folder, max_shard_size="300KB" if sharded else "10GB")
    check_whole(folder, pipe)
    names = [file.name for file in folder.glob("model*")]
    assert ("model.safetensors" in names) != sharded and ("model.safetensors.index.json" in names) == sharded


def test_a_folder_with_an_adapter_is_refused_as_that_would_be_loaded_on_top(pipe, folder, tmp_path):
    adapted = tiny_pipeline()
    add_adapters(adapted, "one")
    for directory in (folder, tmp_path / "adapter"):
        adapted.transformer.save_pretrained(directory)
        before = contents(directory)
        with pytest.raises(ValueError, match="`save_directory` must hold no adapter"):
            pipe.save_pretrained(directory)
        assert contents(directory) == before


def test_other_arguments_of_the_base_class_are_refused_by_name(pipe, folder):
    before = contents(folder)
    for argument in ({"push_to_hub": True}, {"use_flashpack": True}, {"variant": "fp16"}):
        with pytest.raises(ValueError, match=f"`{next(iter(argument))}`"):
            pipe.save_pretrained(folder, **argument)
    with pytest.raises(NotImplementedError, match="python -m hub_upload push"):
        pipe.push_to_hub("someone/model")
    pipe.save_pretrained(folder, push_to_hub=False)
    assert contents(folder).keys() == before.keys()
