"""What lmms-eval finds of Rosetta by the entry point `lmms_eval.models`; nothing else imports this."""


def manifest():
    """The model `rosetta`, whose class is imported when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("rosetta", chat_class_path="trainer.evaluation.lmms_model.Rosetta")


__all__ = ["manifest"]
