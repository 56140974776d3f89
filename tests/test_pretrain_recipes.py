"""Every pretraining recipe loads, says what it is for, and is one that a cluster can run."""

from pathlib import Path

import pytest

from clusters.config import load_config
from pretrain.config import PretrainConfig

RECIPES = sorted((Path(__file__).parents[1] / "pretrain" / "recipes").glob("*.yaml"))
POLICIES = {
    "scin": "dermatology",
    "ham10000": "dermatology",
    "imagenet_then_derm": "dermatology",
    "chexpert": "chest_xray",
    "nih14": "chest_xray",
    "pcam": "pathology",
}


def recipe(name: str) -> PretrainConfig:
    path = next(path for path in RECIPES if path.stem == name)
    return load_config(PretrainConfig, [str(path), "data=/none", "run=/none"])


def head(path: Path) -> str:
    lines = path.read_text().splitlines()
    return "\n".join(lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))])


def test_the_recipes_of_the_paper_are_there() -> None:
    assert {path.stem for path in RECIPES} >= {"synthetic", *POLICIES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_its_hardware_and_its_score(path: Path) -> None:
    opening = head(path)
    command = next(line for line in opening.splitlines() if "python -m pretrain" in line)
    assert f"pretrain/recipes/{path.name} data=DIR run=DIR" in command
    assert "Hardware:" in opening
    assert "Score:" in opening
    assert max(map(len, path.read_text().splitlines())) <= 120


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_divided_among_eight_workers(path: Path) -> None:
    config = recipe(path.stem)
    assert all(stage.batch_size % 8 == 0 for stage in config.stages)


@pytest.mark.parametrize("name", POLICIES)
def test_a_recipe_has_the_views_of_its_field(name: str) -> None:
    assert recipe(name).views.policy == POLICIES[name]


def test_the_paper_s_settings() -> None:
    simclr, micle = recipe("imagenet_then_derm").stages
    assert (simclr.method, simclr.batch_size, simclr.optim.lr, simclr.steps) == ("simclr", 512, 0.3, 150_000)
    assert (micle.method, micle.batch_size, micle.optim.lr, micle.steps) == ("micle", 128, 0.1, 100_000)
    (chest,) = recipe("chexpert").stages
    assert (chest.batch_size, chest.optim.lr, chest.steps) == (1024, 0.5, 100_000)
    assert recipe("imagenet_then_derm").encoder.weights != "none"


def test_slides_have_no_patient_mask_and_their_own_size() -> None:
    config = recipe("pcam")
    assert config.views.size_px == 96
    assert all(getattr(stage, "patient_mask", False) is False for stage in config.stages)
