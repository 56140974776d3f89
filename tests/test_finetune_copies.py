"""Images that stand in two splits, pixel for pixel, as an import can be told to keep: each command tells of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.dataset import Dataset
from finetune.cohort import COPIES
from finetune.config import FinetuneConfig
from finetune.efficiency import EfficiencyConfig, efficiency
from finetune.run import finetune
from finetune.search import SearchConfig, search
from tests import miniatures
from tests.finetune_runs import recipe, write_encoder
from tests.finetune_ways import ECHO
from tests.importers import imported
from tests.test_data_page import Outline

Copied = tuple[Dataset, str]


@pytest.fixture(scope="module")
def copied(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Copied:
    """Echo frames of which two of training are in test again, under another patient; an encoder of other images."""
    folder = tmp_path_factory.mktemp("copied")
    table = miniatures.echo_table(folder / "raw")
    rows = [line.split(",") for line in table.read_text().splitlines()]
    again = []
    for row in rows[1:3]:
        file = row[0].replace(".png", "-again.png")
        shutil.copy(table.parent / row[0], table.parent / file)
        again.append([file, "p999", *row[2:4], "test"])
    table.write_text("\n".join(",".join(row) for row in [*rows, *again]) + "\n")
    dataset = imported("table", table, folder / "dataset", *ECHO, "duplicates=keep")
    return dataset, write_encoder(folder / "encoder", synthetic_dataset)


def plainly(config: FinetuneConfig) -> None:
    finetune(config.model_copy(update={"baselines": ["untrained"]}))


def swept(config: FinetuneConfig) -> None:
    values = config.model_dump(exclude={"baselines"})
    sweep = {"encoders": [config.encoder, "untrained"], "fractions": [0.5], "draws": 2}
    efficiency(EfficiencyConfig.model_validate({**values, **sweep}))


def searched(config: FinetuneConfig) -> None:
    grid = {"learning_rates": [0.1], "weight_decays": [0.0], "seeds": 2}
    search(SearchConfig.model_validate({**config.model_dump(), "grid": grid}))


@pytest.mark.parametrize(
    ("run", "results", "page"),
    [
        (plainly, "results.json", "report.html"),
        (swept, "efficiency.json", "efficiency.html"),
        (searched, "search.json", "search.html"),
    ],
)
def test_copies_across_splits_are_told_by_each_command(
    run: Callable[[FinetuneConfig], None], results: str, page: str, copied: Copied, tmp_path: Path
) -> None:
    dataset, encoder = copied
    run(recipe(dataset, encoder, tmp_path, head="linear", label="reduced_ef"))
    told = f"{COPIES}there stand, pixel for pixel the same, 2 of {len(dataset.rows(['test']))} test images in training;"
    (warning,) = [one for one in json.loads((tmp_path / results).read_text())["warnings"] if one.startswith(COPIES)]
    assert warning.startswith(told)
    assert warning in Outline((tmp_path / page).read_text()).words
