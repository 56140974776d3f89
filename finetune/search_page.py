"""A search as a page and as a table for a terminal: the grid on validation, the chosen pair, its seeds on test."""

import json
from typing import Any

from data.page import Html, Section, folded, join, note, page, paragraph, table, tag, text, tiles
from finetune.report.words import patient_units

NAMES = {
    "auroc": "AUROC", "auprc": "AUPRC", "balanced_accuracy": "balanced accuracy", "top1": "accuracy",
    "top3": "top 3", "f1": "F1", "brier": "Brier score", "ece": "calibration error",
    "mae": "MAE", "rmse": "RMSE", "pearson": "Pearson", "spearman": "Spearman",
}  # fmt: skip


def score_of(row: dict[str, Any]) -> float:
    """A trial's score on validation."""
    return float(row["val_auroc"] if "val_auroc" in row else row["val_score"])


def titled(test: dict[str, Any]) -> dict[str, Any]:
    """What is told of each figure, by the name that it is shown under; figures of a number as `MAE, EF`."""
    labels = {NAMES.get(name, name): told for name, told in test.items() if name != "numbers"}
    numbers = test.get("numbers", {}).items()
    return labels | {f"{NAMES[one]}, {name}": told for name, found in numbers for one, told in found.items()}


def summary(results: dict[str, Any]) -> str:
    """The grid, a row a learning rate, and the figures on test."""
    lrs, decays, cells = _cells(results)
    shown = [["learning rate", *(f"decay {decay:g}" for decay in decays)]]
    for lr in lrs:
        shown.append([f"{lr:g}", *(_value(cells[lr, decay], results) for decay in decays)])
    widths = [max(len(row[place]) for row in shown) for place in range(len(shown[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in shown]
    lines.append("score on validation; * chosen")
    lines += [f"{told}, left out" for told in _failed(results)]
    for name, figure in titled(results["test"]).items():
        if figure["mean"] is not None:
            spread = "" if figure["sd"] is None else f" ± {figure['sd']:.4f}"
            lines.append(f"test {name}: {figure['mean']:.4f}{spread} over {figure['seeds']} seeds")
    return "\n".join(lines)


def search_page(results: dict[str, Any]) -> str:
    """The whole page."""
    best, dataset, failed = results["chosen"], results["dataset"], _failed(results)
    lead = (
        f"{results['model']['title']} on {dataset['name']}: {len(results['grid'])} pairs of learning rate and weight "
        f"decay judged on validation; the best, {best['lr']:g} and {best['weight_decay']:g}, tested with "
        f"{len(results['seeds'])} seeds{f', of which {len(failed)} diverged' if failed else ''}."
    )
    sections = [
        Section("Result", _result(results)),
        Section("Grid", _grid(results)),
        Section("Seeds", _seeds(results)),
        Section("How it was done", _method(results)),
    ]
    return page(f"{dataset['name']}: search of learning rate and weight decay", sections, lead)


def _result(results: dict[str, Any]) -> Html:
    shown = [
        (
            name,
            f"{figure['mean']:.3f}",
            "" if figure["sd"] is None else f"± {figure['sd']:.3f} over seeds",
        )
        for name, figure in titled(results["test"]).items()
        if figure["mean"] is not None
    ]
    left_out = [f"{told}: the figures are of the other seeds alone." for told in _failed(results)]
    return join([*(note(told, kind="warning") for told in [*results["warnings"], *left_out]), tiles(shown)])


def _grid(results: dict[str, Any]) -> Html:
    lrs, decays, cells = _cells(results)
    scores = [score_of(row) for row in cells.values() if row is not None and "failed" not in row]
    low, high = min(scores), max(scores)
    head = [tag("th", "learning rate ↓ decay →"), *(tag("th", f"{decay:g}", {"scope": "col"}) for decay in decays)]
    body = []
    for lr in lrs:
        row = [tag("th", f"{lr:g}", {"scope": "row"})]
        for decay in decays:
            cell = cells[lr, decay]
            share = 0.0
            if cell is not None and "failed" not in cell and high > low:
                share = (score_of(cell) - low) / (high - low)
            colour = f"background:rgb(var(--accent-rgb)/{0.85 * share:.2f})" + (";color:#fff" if share > 0.65 else "")
            row.append(tag("td", text(_value(cell, results)), {"style": colour}))
        body.append(tag("tr", join(row)))
    whole = tag("thead", tag("tr", join(head))) + tag("tbody", join(body))
    box = tag("div", tag("table", whole, {"class": "confusion"}), {"class": "scroll", "tabindex": 0})
    return box + paragraph("Score on validation: darker is better, * is chosen.")


def _seeds(results: dict[str, Any]) -> Html:
    names = list(titled(results["test"]))
    rows = [
        [row["seed"], "diverged", *(None for _ in names)]
        if "failed" in row
        else [row["seed"], f"{score_of(row):.4f}", *(_number(titled(row["test"])[name]) for name in names)]
        for row in results["seeds"]
    ]
    return table(["seed", "validation", *names], rows, "The chosen pair on test.")


def _failed(results: dict[str, Any]) -> list[str]:
    """The seeds of the chosen pair that diverged, and why."""
    return [f"seed {row['seed']} diverged ({row['failed']})" for row in results["seeds"] if "failed" in row]


def _method(results: dict[str, Any]) -> Html:
    times, earlier = results["test_evaluations"], results["test_evaluations_of_earlier_choices"]
    units = patient_units(results)
    before = f", {earlier} of them for choices from smaller grids, or of other seeds, before" if earlier else ""
    texts = [
        "The grid and the number of seeds follow Azizi et al. (2021): seven learning rates and four weight decays by "
        "default, the best on validation trained again with other seeds. No trial looks at the test split.",
        f"The test split was evaluated {times} time{'s' if times != 1 else ''}{before}: once for each seed of a pair. "
        f"Each seed has a report of its own with intervals over {units}.",
        f"The spread over seeds says how much the training varies, not how the figures would vary with other {units}.",
    ]
    return join(
        [*(paragraph(t) for t in texts), folded("Config", tag("pre", json.dumps(results["identity"], indent=2)))]
    )


def _cells(results: dict[str, Any]) -> tuple[list[float], list[float], dict[tuple[float, float], Any]]:
    rows = {(row["lr"], row["weight_decay"]): row for row in results["grid"]}
    lrs, decays = (sorted({key[place] for key in rows}) for place in (0, 1))
    return lrs, decays, {(lr, decay): rows.get((lr, decay)) for lr in lrs for decay in decays}


def _value(row: dict[str, Any] | None, results: dict[str, Any]) -> str:
    if row is None:
        return "–"
    if "failed" in row:
        return "diverged"
    return f"{score_of(row):.4f}" + (" *" if row == results["chosen"] else "")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
