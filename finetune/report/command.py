"""`python -m finetune report RESULTS …`: the page of a results folder made again, with what was measured since."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from clusters.command import describe
from clusters.config import Config, InputError, differences, load_config
from clusters.storage import Folder
from data.dataset import open_dataset
from finetune.config import FinetuneConfig
from finetune.report.page import REPORT, Beside, model_of, write_report
from finetune.report.words import listed
from finetune.sealed import read_sealed

STUDY = ("head", "label", "labels", "label_map", "numbers", "uncertain")
"""The settings that say what is learned: a sweep with others is of another study."""
DRAWN = ("seed", "label_seed", "label_fraction", "bootstrap", "operating")
"""Those in which a sweep has its own, or that its curves do not hang on."""


class ReportConfig(Config):
    """Which results folder, and what else its page shows."""

    results: str = Field(description="results folder")
    data: str | None = Field(default=None, description="the dataset that was evaluated; without it no pictures")
    efficiency: str | None = Field(default=None, description="folder of python -m finetune efficiency, for its curves")
    external: str | list[str] = Field(
        default=[], description="out= of python -m finetune evaluate, for their figures: one, or [a,b]"
    )


def usage() -> str:
    """What --help says."""
    return f"""usage: python -m finetune report RESULTS [data=DIR] [efficiency=DIR] [external=[DIR,DIR]]

Makes report.html and figures/ of a results folder again, with what was measured since.

key          default      meaning
{describe(ReportConfig)}"""


def run(argv: Sequence[str]) -> None:
    """Write the page. Raises InputError where the folder holds no results, or the dataset is another."""
    words = [f"results={argv[0]}", *argv[1:]] if argv and "=" not in argv[0] else list(argv)
    config = load_config(ReportConfig, words)
    out = Folder(config.results)
    results = _read(out, "results.json", "finish the run, or give its results folder")
    dataset = open_dataset(config.data) if config.data else None
    if dataset is not None and dataset.fingerprint != results["dataset"]["fingerprint"]:
        raise InputError(
            f"data: {config.data} is not the dataset of {config.results}, whose fingerprint is "
            f"{results['dataset']['fingerprint'][:16]}; give that one"
        )
    model, size_px = model_of(out)
    places = [config.external] if isinstance(config.external, str) else config.external
    external = [found for place in places for found in _external(Folder(place), results, model)]
    efficiency = _efficiency(Folder(config.efficiency), results) if config.efficiency else None
    write_report(out, results, dataset, Beside(model, size_px, efficiency, external))
    print(f"report: {out.file(REPORT)}")


def _external(folder: Folder, results: dict[str, Any], model: Any) -> list[dict[str, Any]]:
    """The results of an evaluation, or of each in a folder. Raises InputError where one is of another model."""
    folders = [folder] if folder.exists("results.json") else [folder / name for name in folder.names()]
    found = {one.location: read_sealed(one, "results.json") for one in folders if one.exists("results.json")}
    if not found:
        raise InputError(f"{folder.location}: no results.json here; give out= of finetune evaluate")
    wanted = results["identity"].get("model") or (model and model.card.fingerprint)
    for location, one in found.items():
        if one.get("kind") != "external" or one["identity"]["model"] != wanted:
            raise InputError(
                f"external: {location} is no evaluation of the model of this results folder; give out= of finetune "
                "evaluate with this folder"
            )
    return list(found.values())


def _efficiency(folder: Folder, results: dict[str, Any]) -> dict[str, Any]:
    """Results of a sweep. Raises InputError where it is of another dataset, study or encoder."""
    found = _read(folder, "efficiency.json", "give a folder of finetune efficiency")
    first, identity = next(iter(results["models"].values())), found["identity"]
    if identity["dataset"] != results["dataset"]["fingerprint"]:
        raise InputError(
            f"efficiency: {folder} is a sweep on another dataset; give one on {results['dataset']['name']}"
        )
    if first.get("fingerprint") not in identity["models"].values():
        raise InputError(f"efficiency: {folder} has no curve of {first['title']}; give a sweep with this encoder")
    return {**found, "about": _same_study(folder, results, identity["recipe"])}


def _same_study(folder: Folder, results: dict[str, Any], swept: dict[str, Any]) -> str:
    """What a sweep is of, in a sentence or two. Raises InputError where that is not what these results are of."""
    recipe, defaults = results["identity"].get("recipe", {}), FinetuneConfig.model_fields
    for key in STUDY:
        ours, theirs = (one.get(key, defaults[key].get_default()) for one in (recipe, swept))
        if ours != theirs:
            raise InputError(
                f"efficiency: {folder} is a sweep of another study, with {key}={theirs} where these results have "
                f"{key}={ours}; give a sweep of the same"
            )
    head = swept.get("head", defaults["head"].get_default())
    told = f"Learned with fewer labels: {listed(results['labels'])}, with head={head}."
    away = (*STUDY, *DRAWN)
    ours, theirs = ({key: value for key, value in one.items() if key not in away} for one in (recipe, swept))
    others = differences(ours, theirs)
    return told + (f" The sweep has other settings than this model: {'; '.join(others)}." if others else "")


def _read(folder: Folder, name: str, mend: str) -> Any:
    if not folder.exists(name):
        raise InputError(f"{folder.location}: no {name} here; {mend}")
    return read_sealed(folder, name)
