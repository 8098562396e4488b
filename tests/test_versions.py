"""What setup.cfg claims, what the two constraints files pin and what pre-commit runs cannot drift apart."""

import configparser
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


ROOT = Path(__file__).parents[1]


def _claims() -> dict[str, list[Requirement]]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    claims = {}
    for line in "\n".join(lists).split("\n"):
        if line:
            requirement = Requirement(line)
            claims.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return claims


def _pinned(file: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


CLAIMS = _claims()


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_every_claim_is_pinned_within_it(file):
    pinned = _pinned(file)
    outside = [str(r) for name, claims in CLAIMS.items() for r in claims if pinned.get(name) not in r.specifier]
    assert not outside


@pytest.mark.parametrize("name", CLAIMS)
def test_the_lowest_version_is_the_one_that_is_tested(name):
    floors = {Version(s.version) for claim in CLAIMS[name] for s in claim.specifier if s.operator == ">="}
    assert floors == {_pinned("constraints-lowest.txt")[name]}


def test_pre_commit_runs_the_pinned_ruff():
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    (revision,) = re.findall(r"ruff-pre-commit\n\s*rev: v(\S+)", config)
    assert Version(revision) == _pinned("constraints.txt")["ruff"]
