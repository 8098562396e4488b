"""Checkpoints in and out: conversion of the authors' files, model card, upload."""

from .convert import convert, convert_state_dict, revert, revert_state_dict


__all__ = ["convert", "convert_state_dict", "revert", "revert_state_dict"]
