"""Arguments of [`RosettaTrainer`]."""

import re
from dataclasses import dataclass, field

from transformers import TrainingArguments

from .optimizer.anchor import STORAGES
from .optimizer.maop import GRANULARITIES, SECOND_MOMENTS


@dataclass
class RosettaTrainingArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] and what is Rosetta's own: DiffLR, shielding, MAOP and the timesteps of flow
    matching. Defaults that differ from transformers' are the authors'.

    Raises:
        ValueError: if an argument is out of its range, or asks for what [`RosettaTrainer`] does not do.
    """

    generation_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate of the modules that serve generated token types only (DiffLR, Algorithm 1). "
            "`learning_rate` is that of all others. Default: the same rate. The paper's last stage: 1e-4, with a "
            "`learning_rate` of 1e-5."
        },
    )
    latent_projections_at_generation_rate: bool = field(
        default=False,
        metadata={
            "help": "Also train the latent projections and the time embeddings at `generation_learning_rate`. "
            "The authors train them at the base rate."
        },
    )
    shield_steps: int = field(
        default=0,
        metadata={
            "help": "Number of optimizer steps at the start of the run in which the shared expert gets gradients from "
            "text tokens only (paper, B.1, stage 1). The authors: 5000 in the last stage."
        },
    )
    maop: bool = field(
        default=True,
        metadata={
            "help": "Project the gradients of the shared expert that serves text onto the normal plane of their "
            "momentum where they oppose it (equation 3), once shielding is over. The paper does so in the last stage."
        },
    )
    maop_granularity: str = field(
        default="tensor",
        metadata={
            "help": "What MAOP projects as one vector: each `tensor`, the shared expert of each `layer`, or all of "
            "them together (`global`).",
            "choices": list(GRANULARITIES),
        },
    )
    maop_second_moment: str = field(
        default="projected",
        metadata={
            "help": "Which gradient MAOP lets into Adam's second moment: the `projected` one, as the paper, or the "
            "`raw` one, so that a direction that is often taken out is not stepped along faster for it "
            "(arXiv 2604.22407).",
            "choices": list(SECOND_MOMENTS),
        },
    )
    anchor_strength: float | None = field(
        default=None,
        metadata={
            "help": "After each step pull the weights to where the stage began, so strongly times the importance that "
            "an earlier stage gave each of them (relative to their mean) times the rate. Default: no pull. `inf` "
            "holds them."
        },
    )
    anchor_importance_from: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint of the earlier stage, whose second moments are the importances, or a `.safetensors` "
            "file of importances by the names of parameters. A resumed run goes on with its own."
        },
    )
    anchor_parameters: str | None = field(
        default=None,
        metadata={
            "help": "Regular expression that is searched for in the names of the parameters to anchor. Default: all "
            "that the earlier stage had."
        },
    )
    anchor_storage: str = field(
        default="float32",
        metadata={
            "help": "How the anchor is kept: 8 bytes a weight (`float32`), 6 (`bfloat16`, which rounds importances), "
            "or on the `cpu`.",
            "choices": list(STORAGES),
        },
    )
    decay_all_parameters: bool = field(
        default=False,
        metadata={"help": "Apply weight decay to norms and biases too, as the authors do."},
    )
    optimizer_state_from: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint of an earlier stage whose optimizer state is carried over to the parameters that live "
            "on, by name. Default: all moments start fresh, and MAOP has nothing to protect in the first step, then "
            "what this stage has learnt so far. Carried over, it protects what the earlier stage was learning at its "
            "end. A resumed run goes on with its own state."
        },
    )
    max_nonfinite_steps: int = field(
        default=10,
        metadata={
            "help": "Stop the run after so many steps in a row whose loss or gradient was not finite. Each is "
            "skipped: weights and moments stay, data and schedule move on. Read when logging and saving and every so "
            "many steps, in order not to wait for the device. Under `fp16` the gradient scaler skips instead."
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Keep an exponential moving average of the trained weights, with this decay once it has warmed "
            "up. It is in each checkpoint, and in the end a model of its own in `output_dir/ema`. Default: none."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "As transformers', which waits for the device. `loss` is of finite losses in any case."},
    )
    logit_mean: float = field(
        default=0.0, metadata={"help": "Mean of the logit of the timesteps drawn for flow matching."}
    )
    logit_std: float = field(
        default=1.0, metadata={"help": "Standard deviation of the logit of the timesteps drawn for flow matching."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of AdamW."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of AdamW."})
    use_cache: bool = field(
        default=True,
        metadata={"help": "`use_cache` of the configuration that is saved. Training itself never uses a cache."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop dataset columns that the model does not take; the collator needs them."}
    )

    def __post_init__(self):
        if self.generation_learning_rate is not None and self.generation_learning_rate < 0:
            raise ValueError(
                f"`generation_learning_rate` must be None or at least 0, got {self.generation_learning_rate}."
            )
        if self.shield_steps < 0:
            raise ValueError(f"`shield_steps` must be at least 0, got {self.shield_steps}.")
        if self.maop_granularity not in GRANULARITIES:
            raise ValueError(f"`maop_granularity` must be one of {GRANULARITIES}, got {self.maop_granularity!r}.")
        if self.maop_second_moment not in SECOND_MOMENTS:
            raise ValueError(f"`maop_second_moment` must be one of {SECOND_MOMENTS}, got {self.maop_second_moment!r}.")
        self._check_anchor()
        if self.max_nonfinite_steps < 1:
            raise ValueError(f"`max_nonfinite_steps` must be at least 1, got {self.max_nonfinite_steps}.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be None or in [0, 1), got {self.ema_decay}.")
        if self.logit_std <= 0:
            raise ValueError(f"`logit_std` must be above 0, got {self.logit_std}.")
        if self.optim not in ("adamw_torch", "adamw_torch_fused"):
            raise ValueError(f"`optim` must be 'adamw_torch' or 'adamw_torch_fused', got {str(self.optim)!r}.")
        if self.label_smoothing_factor != 0:
            raise ValueError(
                f"`label_smoothing_factor` must be 0, the model computes its own losses; "
                f"got {self.label_smoothing_factor}."
            )
        if self.deepspeed is not None:
            raise ValueError(f"`deepspeed` must be None, got {self.deepspeed!r}: models are sharded by FSDP2.")
        if self.push_to_hub:
            raise ValueError(
                "`push_to_hub` must be False: checkpoints are no releases. Set `hub_model_id` and call "
                "`trainer.push_to_hub()` after training."
            )
        super().__post_init__()
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "`accelerator_config.dispatch_batches` must be None or False: images are not one entry a row, and "
                "cannot be cut as rows are."
            )
        self.accelerator_config.dispatch_batches = False  # by default accelerate's for iterable data sets
        if self.save_total_limit == 1 and self.metric_for_best_model is not None:
            raise ValueError(
                "`save_total_limit` must be at least 2 with `metric_for_best_model`, got 1: the best checkpoint and "
                "the last one are kept."
            )

    def _check_anchor(self):
        if self.anchor_strength is not None and not self.anchor_strength >= 0:
            raise ValueError(f"`anchor_strength` must be None or at least 0, got {self.anchor_strength}.")
        if (self.anchor_strength is None) != (self.anchor_importance_from is None):
            raise ValueError(
                "`anchor_importance_from` must be given with `anchor_strength`, and only with it; got "
                f"{self.anchor_importance_from!r} and {self.anchor_strength}."
            )
        if self.anchor_storage not in STORAGES:
            raise ValueError(f"`anchor_storage` must be one of {STORAGES}, got {self.anchor_storage!r}.")
        try:
            re.compile(self.anchor_parameters or "")
        except re.error as error:
            raise ValueError(
                f"`anchor_parameters` must be a regular expression, got {self.anchor_parameters!r}: {error}."
            ) from error


__all__ = ["RosettaTrainingArguments"]
