"""The Trainer of Rosetta: transformers' Trainer and the few things that are Rosetta's."""

import contextlib
import math
import os
import random

import torch
from torch.distributed.tensor import DTensor

from .checkpoints.adapters import check_adapters_hold_what_is_trained, has_adapters
from .checkpoints.changed_arguments import hyperparameters, take_up
from .checkpoints.sharding import reduce_in_fp32, routers_in_fp32, run_idle_parts, unsharded_model
from .checkpoints.stop_on_sigterm import StopAtStepEnd
from .checkpoints.whole_checkpoints import WholeCheckpoints
from .checks import check_arguments, check_parallelism
from .data import RosettaDataStream, StreamLoader
from .data.drawing import with_latents
from .data.each_once import REPEATED, each_once
from .data.loader import EpochOfStream, check_position
from .figures.batch_counts import count_targets
from .figures.evaluation_figures import EvaluationFigures
from .figures.expert_figures import ExpertFigures
from .figures.flops import peak_flops, training_flops
from .figures.source_losses import SourceLosses
from .figures.throughput import Throughput
from .figures.trackers import group_names
from .figures.training_figures import UNSEEN_UNITS, TrainingFigures
from .flow_matching import generated_feature_keys, noised_batch
from .optimizer.anchor import Anchor, find_importances
from .optimizer.carry_over import carry_over_optimizer_state, check_takes_moments
from .optimizer.earlier_state import find_optimizer_state
from .optimizer.from_arguments import optimizer_from_arguments, warn_if_maop_has_no_effect
from .optimizer.maop import MAOPAdamW
from .optimizer.nonfinite_guard import NonfiniteGuard, spread_nonfinite
from .optimizer.weight_average import WeightAverage
from .stages.publishing import Publishing
from .stages.run_description import RunDescription, model_facts, training_facts
from .stages.training_record import recorded_arguments
from .training_arguments import RosettaTrainingArguments


class RosettaTrainer(Publishing, WholeCheckpoints):
    """
    [`~transformers.Trainer`] for [`RosettaForCausalLMAndImageGeneration`]. It takes batches with clean `latents`
    `(L, C)` and `latent_grid_hw` `(I, 2)`, and

    - trains with [`MAOPAdamW`] at differential rates ([`diff_lr_groups`]); the shared expert is shielded for the first
      `shield_steps` steps, and under MAOP from then on;
    - draws timesteps and noise (a batch that brings `noisy_latents` is left alone). They depend on the seed, the step
      and the rank only, so that a resumed run draws what the uninterrupted one would have;
    - divides the text loss by the text targets and the flow loss by the drawn images of the *global* batch, over
      micro-batches and ranks;
    - logs each loss and each pool's capacity rate as means over the logging interval, the counts behind them, tokens
      and samples of each type, each parameter group's learning rate, the figures of MAOP, tokens a second and the time
      left, and on known GPUs the share of their peak that is used ([`training_flops`]);
    - with `anchor_strength` pulls the weights to where the stage began ([`Anchor`]);
    - skips and counts steps that are not finite ([`NonfiniteGuard`]);
    - saves checkpoints that are complete whenever the run is killed, and with `ema_decay` the average of the weights;
    - says from where a run goes on and what was changed, which takes effect, or is refused where it cannot;
    - evaluates with the same noise each time, whatever the batch size, and reports each loss on its own as well.

    Args:
        args ([`RosettaTrainingArguments`])
        vae (`AutoencoderKLFlux2`, *optional*): makes the latents of batches that bring pixels in their place. It is
            frozen, and no part of the model.
        kwargs: As for [`~transformers.Trainer`], without `compute_metrics`, `compute_loss_func` and
            `preprocess_logits_for_metrics`. An optimizer in `optimizers` is taken as it is; one that
            `optimizer_cls_and_kwargs` says gets the groups of DiffLR.

    Attributes:
        facts (`dict`): what a script knows of the run besides, by name, as JSON: compared when the run goes on.
        optimizer_is_of_arguments (`bool`): whether there is one, and nobody brought it or its class.

    Raises:
        ValueError: if `args` is of another class, an argument would have no effect, or sharding is not FSDP2's.
    """

    args: RosettaTrainingArguments

    def __init__(self, model=None, args: RosettaTrainingArguments | None = None, vae=None, **kwargs):
        check_arguments(args, kwargs)
        if args.device.type == "cpu":
            args.dataloader_pin_memory = False  # there is nothing to pin for, and torch warns of it
        super().__init__(model, args, **kwargs)
        group_names(self.callback_handler.callbacks)
        check_parallelism(self.accelerator, self.is_fsdp_enabled)
        reduce_in_fp32(self.accelerator)
        # Losses here are normalized by counts of their own, not by the Trainer's `num_items_in_batch`.
        self.model_accepts_loss_kwargs = False
        self.vae = None if vae is None else vae.to(args.device).eval().requires_grad_(False)
        self._noise = torch.Generator(device=args.device)
        self._stream_loader = None
        if isinstance(self.train_dataset, RosettaDataStream):
            args.ignore_data_skip = True  # the stream goes on where it was, nothing has to be skipped
            self.add_callback(EpochOfStream())
            self._source_losses = SourceLosses(self.model, self.train_dataset.sources, args.device)
        self.facts: dict = {}
        self.run: RunDescription | None = None
        self._stop = StopAtStepEnd(self) if args.enable_jit_checkpoint else None
        if self._stop is not None:
            self.add_callback(self._stop)
        self._guard = NonfiniteGuard(args.max_nonfinite_steps, args.device)
        self._average = None if args.ema_decay is None else WeightAverage(args.ema_decay)
        if self._average is not None:
            self.add_callback(self._average)
        self.optimizer_is_of_arguments = False
        if args.optimizer_state_from is not None:
            find_optimizer_state(args.optimizer_state_from)
            check_takes_moments(self.optimizer or self._chosen_optimizer[0], **self._chosen_optimizer[1])
        self._anchor = None
        if args.anchor_strength is not None:
            find_importances(args.anchor_importance_from)
            settings = (args.anchor_importance_from, args.anchor_parameters, args.anchor_storage)
            self._anchor = Anchor(args.anchor_strength, *settings)
        self._training_figures = TrainingFigures(self.model.config, args.device)
        self._evaluation_figures = EvaluationFigures(self.model.config, args.device)
        self._expert_figures = ExpertFigures(self.model, args.device) if args.log_experts else None

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW with MAOP over the parameter groups of DiffLR, or what `optimizer_cls_and_kwargs` says, see
        [`optimizer_from_arguments`]."""
        if self.optimizer is None:
            model = self.model if model is None else model
            self.optimizer_is_of_arguments = self.optimizer_cls_and_kwargs is None
            optimizer_class, kwargs = self._chosen_optimizer
            names = self.get_decay_parameter_names(model)
            self.optimizer = optimizer_from_arguments(
                model, self.model.config, self.args, names, optimizer_class, **kwargs
            )
        warn_if_maop_has_no_effect(self._plain_optimizer, self.args)
        return self.optimizer

    def get_train_dataloader(self):
        """Of a [`RosettaDataStream`], which every rank and worker reads its own part of, a [`StreamLoader`]; of other
        data sets transformers'."""
        if not isinstance(self.train_dataset, RosettaDataStream):
            return super().get_train_dataloader()
        self._stream_loader = StreamLoader(
            self.train_dataset,
            self.data_collator,
            bad_records_folder=os.path.join(self.args.output_dir, "skipped_records"),
            batch_size=self._train_batch_size,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self._stream_loader

    def get_eval_dataloader(self, eval_dataset=None):
        """As transformers', but on several ranks no sample is dealt twice."""
        with each_once(self, eval_dataset) as shared:
            return super().get_eval_dataloader(shared)

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """As transformers', and in the end saves the averages as `output_dir/ema`, if it was not told to stop before.

        Raises:
            ValueError: before any work, if there is no such checkpoint, if something was changed that cannot be, or if
                what is trained is not what is saved.
        """
        check_adapters_hold_what_is_trained(self.model)
        if self._anchor is not None and has_adapters(self.model):
            raise ValueError(
                "`anchor_strength` must be None for a model with adapters: the weights below them stay as they are, "
                "and what they add is a product of two matrices, which no elementwise pull brings to zero."
            )
        checkpoint = self.find_checkpoint(resume_from_checkpoint)
        said = self.describe_run(checkpoint)
        if said and self.is_world_process_zero():
            print("\n".join(said), flush=True)
        output = super().train(checkpoint, *args, **kwargs)
        self._training_figures.check_targets()
        if self._average is not None and not self.was_stopped:
            averages = self._average.full_tensors(self.is_world_process_zero())
            model = unsharded_model(self.accelerator, self.model_wrapped)
            if model is not None:
                self.save_whole_model("ema", model, self._average.averaged_state_dict(model, averages))
            self.accelerator.wait_for_everyone()
        return output

    def describe_run(self, checkpoint: str | None) -> list[str]:
        """
        Sets `run`, the description of the run that goes on from `checkpoint`, or starts.

        Returns:
            `list[str]`: what is to be said of a run that goes on, a line each.

        Raises:
            ValueError: if it cannot go on.
        """
        facts = {**model_facts(self.model), **training_facts(self.args, self.lr_scheduler), **self.facts}
        brought = None if self.optimizer is None else type(self._plain_optimizer)
        facts["optimizer"] = (brought or self._chosen_optimizer[0]).__name__
        self.run = RunDescription(facts, recorded_arguments(self.args))
        if checkpoint is None:
            return []
        if isinstance(self.train_dataset, RosettaDataStream):
            check_position(checkpoint, self.train_dataset, self.args.dataloader_num_workers)
        return self.run.go_on(checkpoint)

    @property
    def was_stopped(self) -> bool:
        """Whether SIGTERM ended the run before its last step."""
        return self._stop is not None and self._stop.has_stopped

    def create_scheduler(self, num_training_steps, optimizer=None):
        """As transformers'; remembers the hyperparameters, before those of a checkpoint take their place."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        optimizer = self._plain_optimizer if optimizer is None else optimizer
        self._asked = hyperparameters(optimizer)
        return scheduler

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        with routers_in_fp32(self.accelerator, self.model):
            prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.is_fsdp_enabled:
            run_idle_parts(self.model)
        self._guard.load(resume_from_checkpoint)
        if self._average is not None:
            self._average.start(self.model, resume_from_checkpoint)
        if self._stream_loader is not None and resume_from_checkpoint is not None:
            self._stream_loader.load(resume_from_checkpoint)
        if resume_from_checkpoint is not None:
            self._training_figures.go_on()
            self.state.compute_steps(self.args, max_steps)  # how often to log and save, as the arguments say
            take_up(self._plain_optimizer, self.lr_scheduler, self._asked)
        if self._anchor is not None:
            self._anchor.start(self._plain_optimizer, resume_from_checkpoint)
        if self.args.optimizer_state_from is not None and resume_from_checkpoint is None:
            carry_over_optimizer_state(self._plain_optimizer, self.args.optimizer_state_from)
        peak = peak_flops(self.args.device)
        self._throughput = Throughput(
            training_flops(self.model),
            peak=None if peak is None else peak * self.accelerator.num_processes,
            first_step=self.state.global_step,
            last_step=max_steps,
        )
        return prepared

    def _run_epoch(self, *args, **kwargs):
        """As transformers', but a finished run that is resumed is not given another step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    @property
    def _chosen_optimizer(self) -> tuple[type[torch.optim.Optimizer], dict]:
        _, adamw = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        maop = {name: getattr(self.args, name) for name in ("maop_granularity", "maop_second_moment")}
        return self.optimizer_cls_and_kwargs or (MAOPAdamW, {**maop, **adamw})

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer itself, which accelerate wraps."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm before clipping, as one number on all ranks."""
        norm = torch.as_tensor(super()._get_grad_norm(model, grad_norm), device=self.args.device)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self.accelerator.scaler is None:
            self._guard.before_step(norm, self._plain_optimizer)
            if (self.state.global_step + 1) % self.args.max_nonfinite_steps == 0:
                self._guard.read()
        return norm

    def paused(self):
        """A context for what is no training, for callbacks: the logged throughput does not count its time."""
        return self._throughput.paused()

    @property
    def checkpoint_parts(self):
        parts = (self._guard, self._average, self._anchor, self._stream_loader, self.run)
        return [part for part in parts if part is not None]

    def _save_checkpoint(self, model, trial):
        self._guard.read()  # a run that is lost saves no more
        self._training_figures.check_targets()
        with self._throughput.paused():
            super()._save_checkpoint(model, trial)

    @property
    def is_shielding(self) -> bool:
        """Whether the next optimizer step belongs to the shielding phase."""
        return self.state.global_step < self.args.shield_steps

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, and the counts of [`count_targets`] over all of them and all
        ranks."""
        self._noise.manual_seed(self._noise_seed(self.state.global_step))
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.zeros(2 + len(self._generated_features), dtype=torch.long, device=device)
        for batch in batches:
            counts += count_targets(batch, self.model.config).to(device)
        return batches, self.accelerator.reduce(counts, reduction="sum")

    def training_step(self, model, inputs, num_items_in_batch=None):
        for group in self.optimizer.param_groups:
            group["maop_enabled"] = not self.is_shielding
        # The scheduler moves on before they are logged.
        groups = enumerate(self.optimizer.param_groups)
        self._learning_rates = {group.get("name", index): group["lr"] for index, group in groups}
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._training_figures.add_to_mean("loss", loss * self.current_gradient_accumulation_steps)
        return loss.nan_to_num(0.0, 0.0, 0.0)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """
        Args:
            num_items_in_batch (`torch.Tensor`, *optional*): the counts of [`count_targets`] over the
                global batch. By default the loss is that of `inputs` on their own.

        Raises:
            ValueError: if there is nothing to predict in `inputs`, or pixels come without a VAE.
        """
        inputs = dict(with_latents(inputs, self.vae))
        is_repeated = inputs.pop(REPEATED, False)
        targets = ("labels", "latents", "velocity_labels", *(keys[0] for keys in self._generated_features.values()))
        if all(inputs.get(key) is None for key in targets):
            raise ValueError(f"`inputs` must hold at least one of {targets}, got {sorted(inputs)}.")
        own_counts = count_targets(inputs, self.model.config)
        counts = own_counts if num_items_in_batch is None else num_items_in_batch
        noise = (self.args.logit_mean, self.args.logit_std, self._noise)
        batch = noised_batch(inputs, self.model.config, *noise, one_by_one=not model.training)
        if "sample_sources" in batch:
            self._source_losses.expect(batch, self.state)
        outputs = model(
            **batch,
            num_text_targets=counts[0],
            num_latent_images=counts[1],
            num_feature_targets=dict(zip(self._generated_features, counts[2:], strict=True)),
            shield_shared_expert=model.training and self.is_shielding,
            use_cache=False,
            output_router_logits=not model.training,
        )
        loss = outputs.loss
        if num_items_in_batch is not None:
            # The Trainer and DDP or FSDP average over micro-batches and ranks. The balance loss is a mean within each,
            # the others are shares of a global mean already, to be added up.
            micro_batches = self.current_gradient_accumulation_steps * self.accelerator.num_processes
            balance = self.model.config.router_aux_loss_coef * outputs.aux_loss
            loss = micro_batches * (loss - balance) + balance
        figures = self._training_figures if model.training else self._evaluation_figures
        if not is_repeated:
            figures.add_batch(inputs, outputs, own_counts, counts)
        if model.training:
            loss = spread_nonfinite(loss)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss of one batch. Logits and labels are not returned."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs), None, None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """As transformers', with the losses, the capacity rates and the counts behind them among the metrics. The loss
        is that of the samples as a whole, however they are batched; not finite if that of a batch is not."""
        self._noise.manual_seed(self._noise_seed("evaluation"))
        self._evaluation_figures.read(self.accelerator)  # what an evaluation that failed has left
        with self._throughput.paused() if self.is_in_train else contextlib.nullcontext():
            output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
            figures = self._evaluation_figures.read(self.accelerator)
        if not math.isfinite(output.metrics.get(f"{metric_key_prefix}_loss", math.nan)):
            figures["loss"] = math.nan
        output.metrics.update({f"{metric_key_prefix}_{name}": figure for name, figure in figures.items()})
        return output

    def log(self, logs, start_time=None):
        if "loss" in logs:  # of a training interval, not of an evaluation or the end
            figures = {"loss": math.nan, **self._training_figures.read(self.accelerator)}
            self._training_figures.check_targets()
            figures |= self._throughput.read(self.state.global_step, figures)
            logs.update({name: figure for name, figure in figures.items() if name not in UNSEEN_UNITS})
            logs["nonfinite_steps"] = self._guard.read()
            if self._stream_loader is not None:
                logs.update(self._stream_loader.skipped_on_all_ranks(self.accelerator))
                logs.update(self._source_losses.read(self.accelerator))
            logs.update({f"learning_rate_{name}": rate for name, rate in self._learning_rates.items()})
            if self._expert_figures is not None:
                logs.update(self._expert_figures.read(self.accelerator))
            if isinstance(self._plain_optimizer, MAOPAdamW):  # and not one that the user brought
                logs.update({f"maop_{name}": x for name, x in self._plain_optimizer.maop_figures().items()})
        super().log(logs, start_time)

    def _noise_seed(self, *key) -> int:
        # All ranks share `args.seed`, and the images of each must get noise of their own.
        return random.Random(f"{self.args.seed} {self.args.process_index} {key}").getrandbits(63)

    @property
    def _generated_features(self) -> dict[str, tuple[str, str, str]]:
        return generated_feature_keys(self.model.config)


__all__ = ["RosettaTrainer"]
