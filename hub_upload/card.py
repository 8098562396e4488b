"""The model card: what a repository's own files tell, and the few facts that they cannot, put into `model_card.md`."""

import argparse
import json
import os
import re
from importlib.resources import files
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries
from huggingface_hub.utils import validate_repo_id

from modeling_rosetta import RosettaConfig, RosettaForCausalLMAndImageGeneration, RosettaQuantizationConfig


LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CURVES = "curves.png"  # of the pictures in assets/, the one that belongs to the training
FACTS = (
    "summary",
    "limits",
    "license",
    "license_name",
    "license_link",
    "base_model",
    "datasets",
    "language",
    "tags",
    "prompt",
    "question",
    "num_inference_steps",
    "guidance_scale",
)
TAGS = ["rosetta", "multimodal", "mixture-of-experts", "diffusers"]


def model_card(
    folder: str | os.PathLike,
    *,
    repo_id: str | None = None,
    summary: str | None = None,
    limits: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    base_model: str | list[str] | None = None,
    datasets: list[str] | None = None,
    language: list[str] | None = None,
    tags: list[str] | None = None,
    prompt: str | None = None,
    question: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> ModelCard:
    """
    The card of a saved repository. The architecture comes from its configuration, the training from `training.json`,
    results from there and from `.eval_results/*.yaml`, the pictures from `assets/`; nothing else is claimed.

    Args:
        folder (`str` or `os.PathLike`): with `config.json` at its root.
        repo_id (`str`, *optional*): where it will be; defaults to the name of the folder.
        summary (`str`, *optional*): markdown for the top: what this model is, and where it is from.
        limits (`str`, *optional*): markdown: what this model cannot do, beyond what is true of all of them.
        license (`str`, *optional*): e.g. `"apache-2.0"`; `"other"` with `license_name` and `license_link`.
        base_model (`str` or `list[str]`, *optional*): Hub ids of what its weights come from.
        datasets (`list[str]`, *optional*): Hub ids.
        language (`list[str]`, *optional*): e.g. `["en"]`.
        tags (`list[str]`, *optional*): further ones.
        prompt, question (`str`, *optional*): what the examples draw, and ask about a picture: what it was trained on.
        num_inference_steps (`int`), guidance_scale (`float`, *optional*): with which it was found to draw well.

    Raises:
        ValueError: if `folder` is not of a Rosetta model, or one of the facts is not as the Hub wants it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"`folder` must hold the config.json of a saved model, {folder} does not.")
    if json.loads((folder / "config.json").read_text()).get("model_type") != RosettaConfig.model_type:
        raise ValueError(f"`folder` must hold a Rosetta model: `model_type` in {folder / 'config.json'} is another.")
    repo_id = repo_id or folder.resolve().name
    base_model = [base_model] if isinstance(base_model, str) else base_model
    _check(repo_id, license, license_name, license_link, base_model, datasets, language)
    settings = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    settings = {name: value for name, value in settings.items() if value is not None}

    config = RosettaConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = RosettaForCausalLMAndImageGeneration(config)
    sees, draws = (config.token_type_index(source) is not None for source in ("pixel_values", "noisy_latents"))
    record = _json(folder / "training.json") or {"command": None, "stages": []}
    pictures = sorted(file.name for file in folder.glob("assets/*") if file.suffix.lower() in PICTURES)
    samples = [name for name in pictures if name != CURVES]
    gallery = [{"text": prompt or _words(name), "output": {"url": f"assets/{name}"}} for name in samples]
    card_data = ModelCardData(
        library_name="transformers",
        # What `pipeline(tag)` does with it: transformers' "any-to-any" draws nothing. That is a tag of its own.
        pipeline_tag="image-text-to-text" if sees else "text-to-image" if draws else "text-generation",
        license=license,
        license_name=license_name,
        license_link=license_link,
        base_model=base_model,
        datasets=datasets,
        language=language,
        tags=list(dict.fromkeys([*TAGS, *(["text-to-image"] if draws else []), *(tags or [])])),
        **({"widget": gallery} if gallery and draws else {}),
    )
    card = ModelCard.from_template(
        card_data,
        template_str=(files("hub_upload") / "model_card.md").read_text(encoding="utf-8"),
        repo_id=repo_id,
        model_name=repo_id.split("/")[-1],
        summary=summary,
        limits=limits,
        sees=sees,
        draws=draws,
        architecture={**_sizes(model), "Weights": _weights(folder, config)},
        token_types=_token_types(model),
        processor=_json(folder / "processor_config.json") or {},
        command=record["command"],
        stages=_stages(record["stages"]),
        hyperparameters=_hyperparameters(record["stages"]),
        stage_results=_stage_results(record["stages"]),
        benchmarks=_benchmarks(folder),
        curves=CURVES if CURVES in pictures else None,
        samples={name: _words(name) for name in samples},
        prompt=json.dumps(prompt or "a red apple", ensure_ascii=False),
        question=json.dumps(question or "What is this?", ensure_ascii=False),
        settings=settings,
        memory=_memory(model),
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"
    return card


def _check(repo_id, license, license_name, license_link, base_model, datasets, language):
    for name, ids in (("repo_id", [repo_id]), ("base_model", base_model), ("datasets", datasets)):
        for hub_id in ids or []:
            try:
                validate_repo_id(hub_id)
            except ValueError as error:
                raise ValueError(
                    f"`{name}` must be an id on the Hub, such as 'name/model', got {hub_id!r}."
                ) from error
    for name, value, pattern, example in (
        *(("language", code, LANGUAGE, "a code of two or three letters such as 'en'") for code in language or []),
        ("license", license or "other", LICENSE, "an identifier of the Hub such as 'apache-2.0'"),
    ):
        if not pattern.fullmatch(value):
            raise ValueError(f"`{name}` must be {example}, got {value!r}.")
    given = [text is not None for text in (license_name, license_link)]
    if not (all(given) if license == "other" else not any(given)):
        raise ValueError(
            "`license_name` and `license_link` must be given with the `license` 'other', and only with that, got "
            f"{license!r}, {license_name!r} and {license_link!r}."
        )


def _json(file: Path) -> dict | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _count(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _sizes(model: RosettaForCausalLMAndImageGeneration) -> dict[str, str]:
    """Lines of the table of sizes. Parameters are counted as in the paper's Table 4 and outside of it."""
    config, base = model.config, model.model
    embeddings = [base.embed_tokens, *([] if config.tie_word_embeddings else [model.lm_head])]
    sizes = {
        "Layers": f"{config.num_hidden_layers}",
        "Hidden size": f"{config.hidden_size:,}",
        "Attention heads": f"{config.num_attention_heads} of {config.head_dim}, {config.num_key_value_heads} for keys",
        "Width of an expert": f"{config.intermediate_size:,}",
        "Experts a token is routed to": f"{config.num_experts_per_tok} of its pool",
        "Vocabulary": f"{config.vocab_size:,}",
        "Longest sequence": f"{config.max_position_embeddings:,} positions",
        "Parameters, layers and embeddings": f"{_count(base.layers, *embeddings):,}",
    }
    if config.token_type_index("pixel_values") is not None:
        sizes["Parameters, ViT"] = f"{_count(base.visual):,}"
    if config.token_type_index("noisy_latents") is not None:
        sizes["Parameters, latent projections"] = f"{_count(base.latent_in, model.latent_out):,}"
    return sizes


def _words(picture: str) -> str:
    return picture.rsplit(".", 1)[0].replace("_", " ")


def _memory(model: RosettaForCausalLMAndImageGeneration) -> dict[str, str]:
    """Of the weights, by how they are loaded; and of what is kept of a token."""
    config = model.config
    experts = _count(*(pool.experts for layer in model.model.layers for pool in layer.mlp.pools.values()))
    others = _count(model) - experts
    group = RosettaQuantizationConfig().group_size
    kept = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    memory = {"float32": 4 * (experts + others), "bfloat16 or float16": 2 * (experts + others)}
    if config.hidden_size % group == config.intermediate_size % group == 0:
        for bits in (8, 4):
            memory[f"bfloat16, experts of {bits} bits"] = experts * (bits + 32 / group) / 8 + 2 * others
    sizes = {name: f"{size / 1e6:,.1f} MB" for name, size in memory.items()}
    return {**sizes, "beside them, for each 1,000 tokens in bfloat16": f"{2 * kept * 1000 / 1e6:,.1f} MB"}


def _weights(folder: Path, config: RosettaConfig) -> str:
    size = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    return f"{str(config.dtype).removeprefix('torch.')}, {size / 1e6:,.1f} MB"


def _token_types(model: RosettaForCausalLMAndImageGeneration) -> list[dict]:
    """The token types, each with its parameters active a token: attention, shared expert and routed experts."""
    config, layer = model.config, model.model.layers[0]
    rows = []
    for token_type in config.token_types:
        stream = layer.self_attn.streams[token_type["attention_stream"]]
        experts = layer.mlp.pools[token_type["expert_pool"]].experts
        active = _count(stream.q_proj, stream.k_proj, stream.v_proj, stream.o_proj)
        active += _count(experts) // experts.num_experts * config.num_experts_per_tok
        if token_type["shared_expert"] is not None:
            active += _count(layer.mlp.shared_experts[token_type["shared_expert"]])
        active *= config.num_hidden_layers
        rows.append({**token_type, "num_experts": experts.num_experts, "active": f"{active:,}"})
    return rows


def _stages(stages: list[dict]) -> list[dict]:
    return [
        {
            **stage,
            "name": _name(stage, number),
            "trained": f"{stage['trained_parameters']:,}",
            "versions": ", ".join(f"{library} {version}" for library, version in stage["versions"].items()),
        }
        for number, stage in enumerate(stages)
    ]


def _name(stage: dict, number: int) -> str:
    return stage["stage"] or f"stage {number + 1}"


def _hyperparameters(stages: list[dict]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for stage in stages for name in stage["hyperparameters"])
    return [(name, [str(stage["hyperparameters"].get(name, "-")) for stage in stages]) for name in names]


def _stage_results(stages: list[dict]) -> dict:
    measured = [(_name(stage, number), stage["results"]) for number, stage in enumerate(stages) if stage["results"]]
    names = list(dict.fromkeys(name for _, results in measured for name in results))
    rows = [
        (stage, [f"{results[name]:.4g}" if name in results else "-" for name in names]) for stage, results in measured
    ]
    return {"names": names, "rows": rows}


def _benchmarks(folder: Path) -> list:
    entries = []
    for file in sorted(folder.glob(".eval_results/*.yaml")):
        try:
            entries += parse_eval_result_entries(yaml.safe_load(file.read_text(encoding="utf-8")))
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} must be a list of evaluation results in the Hub's format: {error!r}.") from error
    return entries


def add_facts(parser: argparse.ArgumentParser):
    """The facts of [`model_card`] as options."""
    facts = parser.add_argument_group("what goes into the model card, beside what the folder tells")
    facts.add_argument("--summary", help="markdown for its top")
    facts.add_argument("--limits", help="markdown: what this model cannot do")
    facts.add_argument("--license", help="e.g. apache-2.0; other, with the two below")
    facts.add_argument("--license-name")
    facts.add_argument("--license-link")
    facts.add_argument("--base-model", nargs="+", metavar="ID", help="Hub ids of what its weights come from")
    facts.add_argument("--datasets", nargs="+", metavar="ID", help="Hub ids of what it was trained on")
    facts.add_argument("--language", nargs="+", metavar="CODE", help="e.g. en")
    facts.add_argument("--tags", nargs="+", metavar="TAG", help="further tags of the Hub")
    facts.add_argument("--prompt", help="what the example draws")
    facts.add_argument("--question", help="what the example asks about a picture")
    facts.add_argument("--num-inference-steps", type=int, metavar="N", help="with which it was found to draw well")
    facts.add_argument("--guidance-scale", type=float, metavar="X", help="with which it was found to draw well")


def facts_of(options: argparse.Namespace) -> dict:
    """The facts that were given among the options of [`add_facts`]."""
    return {name: getattr(options, name) for name in FACTS if getattr(options, name) is not None}


def add_command(commands):
    """`python -m hub_upload card DIR`."""
    parser = commands.add_parser("card", help="print the model card of a saved repository")
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--repo-id", metavar="NAME/MODEL", help="where it will be, for the examples in it")
    add_facts(parser)
    parser.set_defaults(run=_print)


def _print(options: argparse.Namespace):
    print(model_card(options.folder, repo_id=options.repo_id, **facts_of(options)))


__all__ = ["add_command", "add_facts", "facts_of", "model_card"]
