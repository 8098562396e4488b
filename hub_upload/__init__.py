"""Checkpoints in and out: conversion of the authors' files, upcycling of dense ones, model card, upload."""

from .card import model_card
from .checkpoint_conversion import convert, revert
from .checkpoint_upcycling import upcycle_checkpoint
from .publication import push
from .space import push_space
from .state_dict_conversion import convert_state_dict, revert_state_dict
from .verification import verify


__all__ = [
    "convert",
    "convert_state_dict",
    "model_card",
    "push",
    "push_space",
    "revert",
    "revert_state_dict",
    "upcycle_checkpoint",
    "verify",
]
