"""What the documents promise is run: README commands, examples, recipes, links."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from bayesarch.nets import Supernet, architecture_cost
from bayesarch.spaces import Architecture
from bayesarch.workflows.config import settle
from helpers import jobs_here

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_two_commands_are_there():
    first, second = blocks("bash")[:2]
    assert "bayesarch run" in first
    assert "make lint types test" in second
    assert "make lint types test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_readme_commands(tmp_path, monkeypatch, typed):
    """Every bayesarch command of the README, in order, in an empty folder, then its Python; all in this process."""
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("console") for line in block.splitlines() if line.startswith("$ bayesarch ")]
    assert len(commands) >= 6
    with jobs_here():
        for command in commands:
            assert typed(*shlex.split(command)[2:]).out.strip(), f"{command} says nothing"
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})  # the README is ours


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples(example):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_take_effect(recipe):
    record = yaml.safe_load(recipe.read_text())
    settled = settle(record).record()
    for section, fields in record.items():
        for field, value in fields.items():
            assert settled[section][field] == value
    assert recipe.read_text().startswith("# ")


@pytest.mark.parametrize("document", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda p: p.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize(
    ("recipe", "input_shape", "classes", "params"),
    [
        ("bpnas-cifar10", (3, 32, 32), 10, 129_306),
        ("bpnas-cifar100", (3, 32, 32), 100, 135_156),
        ("bpnas-imagenet16-120", (3, 16, 16), 120, 136_456),
        ("photographs-224", (3, 224, 224), 7, None),
    ],
)
def test_recipes_fit_the_shape_of_their_data(recipe, input_shape, classes, params):
    """The data are not here; its network is, with the parameters that the benchmark gives for cell 0."""
    settings = settle(yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text()))
    text = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    arch = Architecture.parse(text, settings.space)
    cost = architecture_cost(arch, sizes=settings.sizes, input_shape=input_shape, classes=classes)
    if params is not None:
        assert cost.params == params
    sizes = settings.sizes.model_copy(update={"channels": 2, "cells": 1})
    net = Supernet(
        settings.space,
        input_shape=input_shape,
        classes=classes,
        sizes=sizes,
        generator=torch.Generator().manual_seed(0),
    )
    assert net(torch.zeros(2, *input_shape), net.one_hot(arch), frozenset(arch.columns)).shape == (2, classes)
    if recipe == "photographs-224":
        assert net.stem(torch.zeros(2, *input_shape)).shape == (2, 2, 28, 28)
