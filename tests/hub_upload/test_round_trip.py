"""Push, verify, and load from the Hub's id where the project cannot be imported."""

import os
import subprocess
import sys

import torch

from hub_upload.push import push
from hub_upload.verify import verify
from modeling_rosetta import RosettaForCausalLMAndImageGeneration
from tests.hub_upload.conftest import REPO


def test_round_trip(saved, hub):
    push(saved, REPO, release="v1.0", license="apache-2.0")
    assert verify(REPO, "v1.0") == []
