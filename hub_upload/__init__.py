"""Checkpoints in and out: conversion of the authors' files, model card, upload."""
