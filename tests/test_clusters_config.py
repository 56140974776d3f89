"""One typed object: what is read, what is refused, and what the refusal says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from clusters.command import describe
from clusters.config import InputError, absolute, differences, load_config
from pretrain.config import PretrainConfig


def recipe(
    tmp_path: Path, text: str = "stages:\n  - {method: simclr, epochs: 2}\n  - {method: micle, steps: 5}\n"
) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_then_yaml_then_command_line(tmp_path: Path) -> None:
    words = [
        recipe(tmp_path),
        "data=/d",
        "run=/r",
        "stages.1.steps=7",
        "stages.0.optim.lr=1e-3",
        "views.size_px=64",
    ]
    config = load_config(PretrainConfig, words)
    assert [stage.method for stage in config.stages] == ["simclr", "micle"]
    assert config.stages[1].steps == 7
    assert config.stages[0].optim.lr == 0.001
    assert config.views.size_px == 64
    assert config.views.crop_area == (0.08, 1.0)


@pytest.mark.parametrize(
    ("words", "length"),
    [
        (["stages.1.epochs=3"], (3, None)),
        (["stages.1.epochs=3", "stages.1.steps=null"], (3, None)),
        (["stages.1.epochs=3", "stages.1.steps=8"], (None, 8)),
        (["stages.1.epochs=null"], (None, 5)),
    ],
)
def test_of_epochs_and_steps_the_last_one_typed_counts(
    tmp_path: Path, words: list[str], length: tuple[float | None, int | None]
) -> None:
    config = load_config(PretrainConfig, [recipe(tmp_path), "data=/d", "run=/r", *words])
    assert (config.stages[1].epochs, config.stages[1].steps) == length
    assert config.stages[0].epochs == 2


@pytest.mark.parametrize("text", [None, "seed: 3\n"])
def test_a_place_in_a_list_that_nobody_has_given_is_one_of_its_default(tmp_path: Path, text: str | None) -> None:
    def load(*words: str) -> PretrainConfig:
        file = [] if text is None else [recipe(tmp_path, text)]
        return load_config(PretrainConfig, [*file, "data=/d", "run=/r", *words])

    (stage,) = load("stages.0.batch_size=64", "stages.0.optim.lr=0.5").stages
    assert (stage.method, stage.epochs, stage.batch_size, stage.optim.lr) == ("simclr", 100, 64, 0.5)
    (stage,) = load("stages.0.steps=5").stages
    assert (stage.epochs, stage.steps) == (None, 5)
    assert load("stages.0.method=micle").stages == load("stages=[{method: micle, epochs: 100}]").stages
    assert load("views.crop_area.0=0.3").views.crop_area == (0.3, 1.0)
    assert load().stages[0].batch_size != 64 and load().views.crop_area == (0.08, 1.0), "the default stays what it is"
    with pytest.raises(
        InputError, match=r"stages\.1\.epochs: there is no place 1, since the default of 'stages' has 1;"
    ):
        load("stages.1.epochs=3")


def test_epochs_and_steps_in_one_recipe_are_refused(tmp_path: Path) -> None:
    text = "stages: [{method: simclr, epochs: 2, steps: 5}]"
    with pytest.raises(InputError, match="either epochs or steps"):
        load_config(PretrainConfig, [recipe(tmp_path, text), "data=/d", "run=/r"])


def test_text_is_taken_as_it_was_typed(tmp_path: Path) -> None:
    config = load_config(
        PretrainConfig, [recipe(tmp_path), "data=/d/a #b: c", "run=2024-13-45", "tracking.project=2024"]
    )
    assert (config.data, config.run, config.tracking.project) == ("/d/a #b: c", "2024-13-45", "2024")


def test_config_is_frozen(tmp_path: Path) -> None:
    config = load_config(PretrainConfig, [recipe(tmp_path), "data=/d", "run=/r"])
    with pytest.raises(ValidationError):
        config.seed = 1  # type: ignore[misc]


def test_a_refusal_says_where_the_value_stands(tmp_path: Path) -> None:
    path = recipe(tmp_path, "seed: -1\n")
    with pytest.raises(InputError, match=f"'seed' in {path}"):
        load_config(PretrainConfig, [path, "data=/d", "run=/r"])
    with pytest.raises(InputError, match=r"'stages\.0\.batch_size' in the command line"):
        load_config(PretrainConfig, [recipe(tmp_path), "data=/d", "run=/r", "stages.0.batch_size=1"])
    with pytest.raises(InputError, match=r"'stages.0.pair_within' in the command line \(a key of other"):
        load_config(PretrainConfig, [recipe(tmp_path), "data=/d", "run=/r", "stages.0.pair_within.view=same"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data=/d", "run=/r", "sead=1"], ["'sead'", "nearest: seed"]),
        (["data=/d", "run=/r", "cluster.num_worker=1"], ["'cluster.num_worker'", "nearest: num_workers"]),
        (["data=/d", "run=/r", "stages.0.tempreature=1"], ["'stages.0.tempreature'", "nearest: temperature"]),
        (["data=/d", "run=/r", "stages.0.temperature=0"], ["'stages.0.temperature'", "0.01"]),
        (["data=/d", "run=/r", "stages.5.epochs=1"], ["stages.5.epochs", "list of 2"]),
        (["data=/d", "run=/r", "stages.0.epochs=null"], ["either epochs or steps"]),
        (["data=/d", "run=/r", "seed.x=3"], ["'seed'", "valid integer"]),
        (["data=/d", "run=/r", "views.crop_aspect=[0,1]"], ["'views.crop_aspect.0'", "greater than 0"]),
        (["data=/d", "run=/r", "views.crop_area=[0.5,0.2]"], ["crop_area must go from low to high"]),
        (["data=/d", "run=/r", "views.size_px=20000000"], ["'views.size_px'", "4096"]),
        (["run=/r"], ["'data' is missing in", "; add data=… (data: dataset folder, path or URL, or several: [a,b])"]),
        (
            ["data=/d", "run=/r", "weights.1=2"],
            ["weights.1: there is no place 1, since 'weights' has none by default; give all of it as weights=[…]"],
        ),
        (["data=/d", "run=/r", "seed.0=3"], ["'seed'", "valid integer"]),
        (["data=/d", "run"], ["'run' is not key=value"]),
        (["data=/d", "run=/r", "precision=fp8"], ["'precision'", "bf16"]),
        (
            ["data=/d", "run=/r", "stages.0.method=dino"],
            ["'stages.0'", "there is no method 'dino'; there are 'simclr'"],
        ),
    ],
)
def test_bad_words_are_refused_by_name(tmp_path: Path, words: list[str], told: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        load_config(PretrainConfig, [recipe(tmp_path), *words])
    message = str(refusal.value)
    assert "\n" not in message
    for part in told:
        assert part in message


@pytest.mark.parametrize("text", ["a: [", "- just a list", "a: b: c", "seed: 1\nseed: 2"])
def test_a_recipe_that_is_not_one_is_named(tmp_path: Path, text: str) -> None:
    path = recipe(tmp_path, text)
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        load_config(PretrainConfig, [path, "data=/d", "run=/r"])
    with pytest.raises(InputError, match="no such recipe file"):
        load_config(PretrainConfig, [path + "x", "data=/d", "run=/r"])


def test_a_recipe_lies_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "lr=0.1").mkdir()
    path = shutil.copy(recipe(tmp_path), tmp_path / "lr=0.1/recipe.yaml")
    assert load_config(PretrainConfig, [str(path), "data=/d", "run=/r=1"]).run == "/r=1"


def test_help_names_every_field_with_its_default() -> None:
    text = describe(PretrainConfig)
    for key in (
        "data ",
        "cluster.num_workers",
        "stages.i.temperature",
        "stages.i.optim.warmup",
        "views.blur_sigma",
    ):
        assert key in text
    lines = [line for line in text.splitlines() if line.startswith("  stages.i.optim.momentum")]
    assert len(lines) == 1 and "0.9" in lines[0] and "LARS" in lines[0]


def test_help_says_what_all_stages_have_once_and_names_all_choices() -> None:
    lines = describe(PretrainConfig).splitlines()
    keys = [line.split()[0] for line in lines if line.startswith("  ") and not line.endswith(".")]
    assert keys.count("stages.i.epochs") == keys.count("stages.i.optim.lr") == 1
    assert keys.count("stages.i.temperature") == 3 and keys.count("stages.i.pair_within") == 1
    assert "views.blur" in keys and "stages.i.views.blur" not in keys
    assert any(line.startswith("  stages.i.views:") and line.endswith("those of views.") for line in lines)
    assert "(lars | adamw | sgd)" in next(line for line in lines if line.startswith("  stages.i.optim.name"))
    assert keys.index("on_change") < keys.index("encoder.name")


def test_relative_paths_are_refused_under_a_ray_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert absolute("runs/x") == str(Path("runs/x").absolute())
    assert absolute("s3://bucket/x") == "s3://bucket/x"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert absolute("/runs/x") == "/runs/x"
    with pytest.raises(InputError, match="would vanish"):
        absolute("runs/x")


def test_differences_name_each_leaf() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": 3}}
    assert differences(old, {"a": 1, "b": {"c": [1, 3], "d": 3}, "e": 4}) == [
        "b.c: [1, 2] -> [1, 3]",
        "e: None -> 4",
    ]


def test_command_line_ends_with_one_line_and_code_2() -> None:
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "pretrain",
        "pretrain/recipes/synthetic.yaml",
        "data=/d",
        "run=/r",
        "sead=1",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert ended.returncode == 2
    imported = [line for line in ended.stderr.splitlines() if line.startswith("import time:")]
    (told,) = (line for line in ended.stderr.splitlines() if line not in imported)
    assert told.startswith("error: unknown key 'sead'")
    loaded = {line.split("|")[-1].strip() for line in imported}
    assert "torch" in loaded and "timm" not in loaded, "timm takes seconds, and a refused config needs none of it"


def test_help_that_nobody_reads_to_the_end_says_nothing_more() -> None:
    command = f"{sys.executable} -m data --help | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith("Datasets")
    assert done.stderr == ""
