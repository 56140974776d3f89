"""What a label-efficiency sweep leaves for people: the curves as SVG and PNG, a CSV, and a page."""

import base64
import csv
import io
import json
from typing import Any

from clusters.storage import Folder
from data.page import Html, Section, figure, folded, join, note, page, pairs, paragraph, table, tag
from finetune.cells import safe
from finetune.labels_saved import in_words, percent, sentence, share_of, untested, why_not_as_asked
from finetune.report.words import patient_units

FILES = ("efficiency.html", "efficiency.svg", "efficiency.png", "efficiency.csv")
COLOURS = ("#0b6e75", "#9a5b13", "#6b4fa0", "#4d6b1f", "#b0346d", "#1f5fae", "#7a3b1e", "#3d4650")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""The page's colours, and marks that tell the curves apart without them."""


def write_outputs(out: Folder, results: dict[str, Any]) -> None:
    """Write the files of FILES."""
    drawn = {kind: draw(results, kind) for kind in ("svg", "png")}
    for kind, content in drawn.items():
        out.write(f"efficiency.{kind}", content)
    out.write("efficiency.csv", _csv(results).encode())
    out.write("efficiency.html", _page(results, drawn["svg"]).encode())


def names_of(curves: dict[str, Any]) -> dict[str, str]:
    """What each curve is called; two encoders of one kind by their fingerprints too."""
    titles = [curve["title"] for curve in curves.values()]
    return {
        name: curve["title"] + (f" ({curve['fingerprint'][:8]})" if titles.count(curve["title"]) > 1 else "")
        for name, curve in curves.items()
    }


def draw(results: dict[str, Any], kind: str) -> bytes:
    """The curves over the share of labels, on a logarithmic axis, with bands from the lowest to the highest draw."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "manyview", "svg.fonttype": "none", "font.size": 10}):
        picture = Figure(figsize=(6.4, 4.0), dpi=200, layout="constrained")
        axes = picture.add_subplot()
        names = names_of(results["curves"])
        for number, (name, curve) in enumerate(results["curves"].items()):
            points, colour = curve["points"], COLOURS[number % len(COLOURS)]
            shares = [100 * share_of(point) for point in points]
            means = [point["mean"] for point in points]
            axes.plot(shares, means, color=colour, marker=MARKS[number % len(MARKS)], markersize=4, label=names[name])
            low, high = ([point[end] for point in points] for end in ("low", "high"))
            axes.fill_between(shares, low, high, color=colour, alpha=0.18, linewidth=0)
        target = results["curves"][results["baseline"]]["points"][-1]["mean"]
        axes.axhline(target, color="#5a6876", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        ticks = {percent(share_of(row)): 100 * share_of(row) for row in results["training"]}
        axes.set_xticks(list(ticks.values()), list(ticks))
        axes.minorticks_off()
        axes.set_xlabel(f"share of the labelled training {patient_units(results)}")
        axes.set_ylabel(f"{results['figure']} on test")
        axes.grid(alpha=0.25)
        axes.legend(loc="lower right", frameon=False)
        stream = io.BytesIO()
        picture.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return stream.getvalue()


def _csv(results: dict[str, Any]) -> str:
    """One row a model."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["model", "fraction", "share", "draw", "training_patients", "training_cases", "val", "test"])
    for name, curve in results["curves"].items():
        for point, row in zip(curve["points"], results["training"]):
            for draw_number, (model, counts) in enumerate(zip(point["draws"], row["draws"])):
                val = model.get("val_auroc", model.get("val_score"))
                numbers = [counts["patients"], counts["cases"], val, model["test"]]
                share = counts.get("share", share_of(point))
                writer.writerow([safe(name), point["fraction"], share, draw_number, *numbers])
    return stream.getvalue()


def _page(results: dict[str, Any], picture: bytes) -> str:
    names, dataset = names_of(results["curves"]), results["dataset"]
    sections = [
        Section("Result", _result(results, names, picture)),
        Section("Numbers", _numbers(results, names)),
        Section("How it was done, and limits", _method(results)),
    ]
    test = results["test"]
    lead = (
        f"{dataset['name']}: models trained with small and larger shares of the labels, tested on the same "
        f"{test['cases']} cases of {test['patients']} {patient_units(results)}."
    )
    return page(f"{dataset['name']}: how many labels are enough", sections, lead)


def _result(results: dict[str, Any], names: dict[str, str], picture: bytes) -> Html:
    parts = [note(warning, kind="warning") for warning in results["warnings"]]
    baseline = names[results["baseline"]]
    for name, saved in results["labels_saved"].items():
        parts.append(paragraph(sentence(names[name], baseline, results["figure"], saved)))
    parts += [paragraph(untested(patient_units(results)))] if results["labels_saved"] else []
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture).decode()}"
    shown = Html(f'<img src="{source}" alt="Curves; the numbers stand in the table below" style="max-width:100%">')
    box = tag("div", shown, {"style": "background:#fff;max-width:46rem"})
    caption = (
        "Mean of the draws, with a band from the lowest to the highest draw; dashed: the baseline with all labels."
    )
    return join([*parts, figure(box, caption)])


def _numbers(results: dict[str, Any], names: dict[str, str]) -> Html:
    rows = []
    for place, row in enumerate(results["training"]):
        patients = sorted(counts["patients"] for counts in row["draws"])
        shown: list[Any] = [in_words(row), " to ".join(str(n) for n in dict.fromkeys([patients[0], patients[-1]]))]
        for curve in results["curves"].values():
            point = curve["points"][place]
            shown.append(f"{point['mean']:.3f} ({point['low']:.3f} to {point['high']:.3f})")
        rows.append(shown)
    caption = f"{results['figure']} on test: mean of the draws (lowest to highest)."
    units = patient_units(results)
    why = why_not_as_asked(results["training"], units)
    caption += f" Labels: share of the labelled training {units}. {why}".rstrip()
    return table(["labels", units, *names.values()], rows, caption)


def _method(results: dict[str, Any]) -> Html:
    times = results["test_evaluations"]
    head = "a linear head on frozen features" if results["head"] == "linear" else "encoder and head, trained whole"
    draws, whole = results["draws"], len(results["training"][-1]["draws"])
    of_all = "" if draws == 1 else "With all labels they differ in what else a seed draws."
    units = patient_units(results)
    measured = ", with high and low values of each number" if results["identity"]["recipe"].get("numbers") else ""
    texts = [
        f"Each model is {head}. Of every class the same share of the {units} is drawn, at least one{measured}; a "
        f"smaller share of a draw lies within its larger ones; {draws} draws of each share. "
        + ("With all labels there is one model." if whole < draws else of_all),
        "Strength or epoch are chosen on the validation split, which is whole for every share; so with very few labels "
        f"the validation {units} are more than those trained on, and a study with as few in all would do worse.",
        f"Shares are the {units} learned from of all labelled training {units}, whatever share was asked for.",
        "Labels saved: the smallest share from which on the mean curve stays at or above the baseline with all labels, "
        "interpolated over the logarithm of the share.",
        f"The test split was evaluated {times} times in this folder, once for each model.",
        f"Limits: bands show how much it matters which {units} were labelled, not how the figures would vary with "
        f"other test {units}.",
    ]
    rows = {name: tag("code", curve["fingerprint"]) for name, curve in results["curves"].items()}
    identity = json.dumps(results["identity"], indent=2)
    return join([*(paragraph(text) for text in texts), pairs(rows), folded("Config", tag("pre", identity))])
