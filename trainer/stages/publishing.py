"""A Trainer that publishes its repository on the Hub."""

from pathlib import Path

from diffusers import AutoencoderKLFlux2
from transformers import Trainer

from .repository import save_repository_of


class Publishing(Trainer):
    """[`~transformers.Trainer`] whose `push_to_hub` publishes as [`~hub_upload.push`] does."""

    vae: AutoencoderKLFlux2 | None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        vae=None,
        stage: str | None = None,
        data: str | None = None,
        **kwargs,
    ):
        """
        Publishes the model as [`~hub_upload.push`] does: complete, checked, as one commit of `args.hub_model_id`. The
        repository is saved to `output_dir/repository` first, with this training as the next stage of its record, and
        stays there: `python -m hub_upload push` can send it again.

        Args:
            commit_message (`str`, *optional*)
            blocking (`bool`): must be `True`.
            token (`str`, *optional*): by default `args.hub_token`, or the one that is logged in.
            revision (`str`, *optional*): the branch; by default `args.hub_revision`, or `"main"`.
            private (`bool`, *optional*): whether a new repository is; by default `args.hub_private_repo`.
            vae (`AutoencoderKLFlux2`, *optional*): needed if the model draws; by default the trainer's.
            stage, data (`str`, *optional*): as for [`training_record`].
            kwargs: as for [`~hub_upload.push`], such as `release`, `create_pr`, `dry_run`, `license` and `language`.

        Returns:
            `CommitInfo` on the first process, `None` on the others and after a dry run.

        Raises:
            ValueError: before anything is saved, if an argument is not as it must be or a part is missing.
        """
        if not blocking:
            raise ValueError("`blocking` must be True: the one commit is made when all files have arrived.")
        # Only this method knows the Hub, and only when it is called.
        from hub_upload import push

        if self.args.hub_model_id is None:
            raise ValueError("`args.hub_model_id` must be the id of the repository, such as 'name/model'; it is None.")
        if not hasattr(self.processing_class, "draw_prompt"):
            raise ValueError(
                "`processing_class` of the trainer must be a RosettaProcessor to be published with the model, got "
                f"{type(self.processing_class).__name__}."
            )
        vae = self.vae if vae is None else vae
        if vae is None and self.model.config.token_type_index("noisy_latents") is not None:
            raise ValueError("`vae` must be given: the model draws, and its repository decodes with the VAE.")
        folder = Path(self.args.output_dir) / "repository"
        save_repository_of(self, folder, vae, stage, data)
        if not self.is_world_process_zero():
            return None
        return push(
            folder,
            self.args.hub_model_id,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message,
            token=token or self.args.hub_token,
            **kwargs,
        )


__all__ = ["Publishing"]
