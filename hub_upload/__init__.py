"""Checkpoints in and out: conversion of the authors' files, model card, upload."""

from .card import model_card
from .checkpoint_conversion import convert, revert
from .state_dict_conversion import convert_state_dict, revert_state_dict


__all__ = ["convert", "convert_state_dict", "model_card", "revert", "revert_state_dict"]
