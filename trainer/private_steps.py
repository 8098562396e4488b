"""
The private steps of transformers' Trainer that are overridden here all the same: no public one does it, and a new
version may move them without a word. `tests/trainer/test_private_steps.py` then names which.
"""

from typing import NamedTuple


class PrivateStep(NamedTuple):
    """
    Args:
        called_by (`str`): the method of transformers' Trainer in which it is a step.
        reason (`str`): what hangs on it, and why no callback or public method would do.
    """

    called_by: str
    reason: str


PRIVATE_STEPS = {
    "_prepare_for_training": PrivateStep(
        "_inner_training_loop",
        "Sharding keeps the routers in fp32, and what a checkpoint holds besides is loaded into the sharded model: "
        "between the two there is no callback, and on_train_begin does not know the checkpoint.",
    ),
    "_run_epoch": PrivateStep(
        "_inner_training_loop", "A finished run that is resumed would be given another step: no callback can skip it."
    ),
    "_get_grad_norm": PrivateStep(
        "_run_epoch",
        "By the norm before clipping it is seen that a step is not finite, and skipped: on_pre_optimizer_step comes "
        "after clipping, and does not get the norm.",
    ),
    "_save_checkpoint": PrivateStep(
        "_maybe_log_save_evaluate",
        "Checkpoints are renamed when they are whole: on_save comes when they have their name.",
    ),
    "_load_from_checkpoint": PrivateStep(
        "train", "transformers finds the adapters of a PeftModel only, and there one of several."
    ),
    "_load_best_model": PrivateStep("_finalize_training", "As `_load_from_checkpoint`."),
    "_issue_warnings_after_load": PrivateStep(
        "_load_from_checkpoint", "Tied weights, which are saved once, would be said to be missing."
    ),
    "_get_output_dir": PrivateStep("_save_checkpoint", "The folder that a checkpoint is written into before that."),
    "_save_rng_state": PrivateStep(
        "_save_checkpoint", "What a checkpoint holds besides is written into it before it is whole."
    ),
}


__all__ = ["PRIVATE_STEPS", "PrivateStep"]
