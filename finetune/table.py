"""`python -m finetune table RESULTS …`: figures of several results folders as one Markdown table."""

from collections.abc import Sequence
from typing import Any

from clusters.config import InputError
from clusters.storage import Folder
from finetune.report.words import with_own_titles
from finetune.sealed import read_sealed

FIGURES = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}


def usage() -> str:
    """What `--help` prints."""
    return """usage: python -m finetune table RESULTS [RESULTS …]

Prints the test figures of every model in some results folders, with their intervals, as a Markdown table: a row for
each head and model, a pair of columns for each share of the labels. What a paper or a README says is then what was
measured.

  python -m finetune table /runs/ham-linear /runs/ham-linear-10 /runs/ham-full"""


def run(argv: Sequence[str]) -> None:
    """Print the table."""
    found = {location: _results(location) for location in argv}
    _check_alike(found)
    print(markdown(list(found.values())))


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """The table of some results. Raises InputError where two say something else of the same model and labels."""
    cells: dict[tuple[str, str], dict[float, dict[str, Any]]] = {}
    for results in found:
        share = float(results["identity"]["recipe"]["label_fraction"])
        for model in with_own_titles(results)["models"].values():
            row = cells.setdefault((model["head"], model["title"]), {})
            if row.setdefault(share, model["test"]) != model["test"]:
                raise InputError(
                    f"{model['title']}, {model['head']} head, {100 * share:g} % of the labels: two results folders "
                    "differ in its figures; give one of them"
                )
    shares = sorted({share for row in cells.values() for share in row})
    titles = [f"{name}, {100 * share:g} % of labels" for share in shares for name in FIGURES.values()]
    lines = [_line(["head", "model", *titles]), _line(["---"] * (2 + len(titles)))]
    for (head, title), row in cells.items():
        figures = [_cell(row.get(share, {}).get(name)) for share in shares for name in FIGURES]
        lines.append(_line([head, title, *figures]))
    return "\n".join(lines)


def _check_alike(found: dict[str, dict[str, Any]]) -> None:
    """Raise InputError where figures of two folders cannot stand in one table."""
    (name, one), *others = found.items()
    told = {
        "dataset": lambda results: f"{results['dataset']['name']} ({results['dataset']['fingerprint'][:8]})",
        "labels": lambda results: ", ".join(results["labels"]),
        "confidence of the intervals": lambda results: f"{100 * results['bootstrap']['confidence']:g} %",
    }
    for other_name, other in others:
        for what, of in told.items():
            if of(one) != of(other):
                raise InputError(
                    f"{what}: {of(one)} in {name} and {of(other)} in {other_name}; give results folders of the same"
                )


def _results(location: str) -> dict[str, Any]:
    folder = Folder(location)
    try:
        found = read_sealed(folder, "results.json")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{location} has no results.json: not a results folder, or its run has not ended") from None
    if found.get("kind") != "finetune":
        raise InputError(f"{location} is of another command; give results folders of fine-tuning itself")
    return found


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    if figure["value"] is None:
        return "undefined"
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
