"""`python -m finetune report RESULTS …`: the page of a results folder made again, with what was measured since."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from clusters.command import describe
from clusters.config import Config, InputError, load_config
from clusters.storage import Folder
from data.dataset import open_dataset
from finetune.report.page import REPORT, Beside, model_of, write_report


class ReportConfig(Config):
    """Which results folder, and what else its page shows."""

    results: str = Field(description="results folder")
    data: str | None = Field(default=None, description="the dataset that was evaluated; without it no pictures")
    efficiency: str | None = Field(default=None, description="folder of python -m finetune efficiency, for its curves")
    external: list[str] = Field(default=[], description="out= of python -m finetune evaluate, for their figures")


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
    external = [found for place in config.external for found in _external(Folder(place), results, model)]
    efficiency = _efficiency(Folder(config.efficiency), results) if config.efficiency else None
    write_report(out, results, dataset, Beside(model, size_px, efficiency, external))
    print(f"report: {out.file(REPORT)}")


def _external(folder: Folder, results: dict[str, Any], model: Any) -> list[dict[str, Any]]:
    """The results of an evaluation, or of each in a folder. Raises InputError where one is of another model."""
    folders = [folder] if folder.exists("results.json") else [folder / name for name in folder.names()]
    found = {one.location: one.read_json("results.json") for one in folders if one.exists("results.json")}
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
    """Results of a sweep. Raises InputError where it is of another dataset, or has no curve of this encoder."""
    found = _read(folder, "efficiency.json", "give a folder of finetune efficiency")
    first, identity = next(iter(results["models"].values())), found["identity"]
    if identity["dataset"] != results["dataset"]["fingerprint"]:
        raise InputError(
            f"efficiency: {folder} is a sweep on another dataset; give one on {results['dataset']['name']}"
        )
    if first.get("fingerprint") not in identity["models"].values():
        raise InputError(f"efficiency: {folder} has no curve of {first['title']}; give a sweep with this encoder")
    return found


def _read(folder: Folder, name: str, mend: str) -> Any:
    if not folder.exists(name):
        raise InputError(f"{folder.location}: no {name} here; {mend}")
    return folder.read_json(name)
