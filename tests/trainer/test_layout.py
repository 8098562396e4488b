"""The package's own order: imports point down and hold no circle, and files stay small."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PACKAGES = ("modeling_rosetta", "trainer", "hub_upload")
# Each may import what stands before it. The files on the trainer's floor stand among its rooms.
ORDER = [
    "modeling_rosetta",
    "trainer.flow_matching",
    "trainer.lora",
    "trainer.optimizer",
    "trainer.training_arguments",
    "trainer.checks",
    "trainer.html_page",
    "trainer.data",
    "trainer.evaluation",
    "trainer.figures",
    "trainer.checkpoints",
    "trainer.stages",
    "trainer.rosetta_trainer",
    "trainer",
]
# `push_to_hub` is transformers' method: it calls the Hub, and is imported when it is called.
UP = {("trainer.stages.publishing", "hub_upload")}


def _modules(package):
    for file in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), file


MODULES = {name: file for package in PACKAGES for name, file in _modules(package)}


def _imports(name, file):
    """The modules of this project that one imports, as they are meant: `from . import a` is `a`."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            submodules = [f"{source}.{alias.name}" for alias in node.names if f"{source}.{alias.name}" in MODULES]
            yield from submodules or [source]


IMPORTS = {
    name: {imported for imported in _imports(name, file) if imported.split(".")[0] in PACKAGES}
    for name, file in MODULES.items()
}


def _place(name):
    room = max((place for place in ORDER if name == place or name.startswith(f"{place}.")), key=len)
    return ORDER.index(room)


def test_imports_hold_no_circle():
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] == "trainer"])
def test_imports_of_the_trainer_point_down(name):
    for imported in IMPORTS[name]:
        if (name, imported) not in UP:
            assert imported.split(".")[0] != "hub_upload"
            assert _place(imported) <= _place(name), f"{name} imports {imported}"


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] == "modeling_rosetta"])
def test_the_model_knows_nothing_of_the_other_packages(name):
    assert {imported.split(".")[0] for imported in IMPORTS[name]} <= {"modeling_rosetta"}


def test_a_floor_that_is_seen_at_a_glance():
    assert len(list((ROOT / "trainer").glob("*.py"))) <= 8


@pytest.mark.parametrize("name", MODULES)
def test_files_are_of_a_size_to_read(name):
    if name not in ("modeling_rosetta.modeling_rosetta", "modeling_rosetta.processing_rosetta"):
        assert len(MODULES[name].read_text().splitlines()) <= 400
