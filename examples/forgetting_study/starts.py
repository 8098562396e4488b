"""What all arms of a seed start from: a model that reads and sees, and that has just been given experts to draw."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import set_seed

from examples.miniature.language_model import held_out_loss
from examples.miniature.mixture import Mixture
from examples.miniature.parts import CommonParts
from examples.miniature.stage import SAMPLES_PER_STEP, stage_trainer
from modeling_rosetta import RosettaConfig, mount, text_config_from_dense, upcycle
from modeling_rosetta.repository_rosetta import staged_directory
from trainer import RosettaDataCollator, train_backbone, train_projectors

from .miniatures import Miniature


UNDERSTANDING = {"MMU": 0.8, "LM": 0.2}
FLOW_LOSS_COEF = 10.0  # as in the quickstart
NUM_FISHER_SAMPLES = 400


class Starts:
    """
    Makes starting points when they are asked for, and keeps them.

    Args:
        folder (`Path`): for all of them.
        miniature ([`Miniature`]): what they are made of.
        scale (`float`): of the numbers of steps; 1 but in tests.
    """

    def __init__(self, folder: Path, miniature: Miniature, scale: float = 1.0):
        self.folder, self.miniature, self.scale = folder, miniature, scale
        self._parts: dict[int, CommonParts] = {}

    def parts(self, seed: int) -> CommonParts:
        if seed not in self._parts:
            file = self.folder / f"parts-{seed}.pt"
            if not file.is_file():
                set_seed(seed)
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.save(self.miniature.make_parts(seed), file.with_suffix(".new"))
                file.with_suffix(".new").replace(file)
            self._parts[seed] = torch.load(file, weights_only=False)
        return self._parts[seed]

    def start(self, architecture: str, seed: int, num_vae_experts: int) -> Path:
        """
        A folder with a model, `moments`, the checkpoint that the stage of understanding has left, as files of
        importances `fisher.safetensors` and `equal.safetensors`, and `stages.json`, the held-out text loss after each
        stage.
        """
        folder = self.folder / f"{architecture}-{num_vae_experts}-{seed}"
        if not folder.is_dir():
            with staged_directory(folder) as staged:
                self._make(staged, architecture, seed, num_vae_experts)
        return folder

    def _make(self, folder: Path, architecture: str, seed: int, num_vae_experts: int):
        parts = self.parts(seed)
        set_seed(seed)
        tasks = parts.tasks()
        target = target_config(architecture, num_vae_experts)
        text = target.token_types[0]
        pools = {text["expert_pool"]: target.expert_pools[text["expert_pool"]]}
        composition = {"token_types": [text], "expert_pools": pools}
        model = upcycle(parts.dense, text_config_from_dense(parts.dense.config, **composition, **parts.token_ids()))

        def train(stage: str, ratios: dict[str, float], output_dir: str | Path, **kwargs):
            num_steps = max(2, round(self.scale * self.miniature.steps[stage]))
            mixture = Mixture(tasks, ratios, num_steps * SAMPLES_PER_STEP, seed)
            kwargs |= {"maop": False, "seed": seed, "output_dir": output_dir}
            stage_trainer(stage, model, mixture, parts.processor.tokenizer.pad_token_id, num_steps, **kwargs).train()
            return num_steps

        def add(name: str, **kwargs):
            token_type = next(t for t in target.token_types if t["name"] == name)
            is_new = token_type["expert_pool"] not in model.config.expert_pools
            num_experts = target.expert_pools[token_type["expert_pool"]] if is_new else None
            mount(model, token_type, num_experts=num_experts, **kwargs)

        stages = {}

        def ask(stage: str):
            stages[stage] = held_out_loss(model, parts.held_out_rows)

        ask("upcycled")
        with tempfile.TemporaryDirectory() as runs:
            train("LM", {"LM": 1.0}, f"{runs}/lm", learning_rate=1e-3)
            ask("LM")
            add("vit", vision_tower=parts.vision_tower)
            ask("ViT mounted")
            train_projectors(model)
            train("projectors", UNDERSTANDING, f"{runs}/projectors", learning_rate=3e-3)
            train_backbone(model)
            saved = {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 10**6}
            num_steps = train("MMU", UNDERSTANDING, f"{runs}/mmu", **saved)
            ask("MMU")
            shutil.copytree(f"{runs}/mmu/checkpoint-{num_steps}", folder / "moments")
        (folder / "stages.json").write_text(json.dumps(stages))
        named = {name: param for name, param in model.named_parameters() if param.requires_grad}
        save_file({name: torch.ones_like(param) for name, param in named.items()}, folder / "equal.safetensors")
        mixture = Mixture(tasks, UNDERSTANDING, NUM_FISHER_SAMPLES, seed + 1000)
        num_samples = max(4, round(self.scale * NUM_FISHER_SAMPLES))
        samples = [mixture[i] for i in range(num_samples)]
        save_file(fisher_diagonal(model, samples, seed), folder / "fisher.safetensors")
        sizes = {"latent_channels": parts.latents.shape[1], "latent_hidden_size": 64}
        add("vae", flow_loss_coef=FLOW_LOSS_COEF, **sizes)
        model.save_pretrained(folder)


def target_config(architecture: str, num_vae_experts: int) -> RosettaConfig:
    """The token types and pools of an architecture in the miniature."""
    if architecture == "moe":
        return RosettaConfig.moe()
    if architecture == "mot":
        return RosettaConfig.mot(num_gen_experts=num_vae_experts)
    config = RosettaConfig()
    config.expert_pools["vae"] = num_vae_experts
    if architecture == "no shared expert":
        config.token_types = [{**token_type, "shared_expert": None} for token_type in config.token_types]
    return config


def fisher_diagonal(model, samples: list[dict], seed: int) -> dict[str, torch.Tensor]:
    """
    The diagonal of the true Fisher information of the trained parameters: squared gradients of the log-likelihood of
    labels that the model draws itself, where the samples have some, sample by sample (Kirkpatrick et al., arXiv
    1612.00796; why not of the samples' own labels, see arXiv 2502.11756).
    """
    generator = torch.Generator().manual_seed(seed)
    named = {name: param for name, param in model.named_parameters() if param.requires_grad}
    diagonal = {name: torch.zeros_like(param) for name, param in named.items()}
    collate = RosettaDataCollator(model.config.pad_token_id or 0)
    model.eval()
    for sample in samples:
        batch = collate([sample])
        labels = batch.pop("labels")[:, 1:]
        log_probs = F.log_softmax(model(**batch, use_cache=False).logits[:, :-1].float(), -1)[labels != -100]
        drawn = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)
        model.zero_grad()
        (-log_probs.gather(1, drawn).sum()).backward()
        for name, param in named.items():
            if param.grad is not None:
                diagonal[name] += param.grad.square()
    model.zero_grad()
    return {name: total / len(samples) for name, total in diagonal.items()}


__all__ = ["Starts", "fisher_diagonal", "target_config"]
