"""report.html: a finished run on one page, from its metrics.jsonl, its encoder and its dataset."""

import json
from typing import Any

import numpy as np

from clusters import distributed
from clusters.storage import Folder
from clusters.tracking import duration, read_metrics, say
from data.charts import Line, line_chart
from data.combined import AnyDataset
from data.page import Bar, Content, Html, Section, bars, folded, grid, join, note, page, paragraph, table, tag, tiles
from pretrain.config import PretrainConfig
from pretrain.encoder_folder import EncoderCard, load_encoder
from pretrain.monitor import SCORES, probe_dataset
from pretrain.report_pictures import embedded, label_map, neighbours, too_few, views_as_trained
from pretrain.stage import Rows

REPORT = "report.html"
NAMES: dict[str, str] = dict(zip(SCORES, ("kNN", "linear head")))
TIMES = {
    "data_wait": "waiting for data",
    "step": "forward and backward",
    "optimizer": "optimiser",
    "checkpoint": "checkpoints",
    "probe": "probes",
}
HERE_ONLY: dict[str, Any] = {
    **dict.fromkeys(("data", "held_out", "run", "cluster", "loader", "checkpoint", "tracking", "on_change"), True),
    "encoder": {"weights"},
}
"""Fields of the config that say where a run was and not what it did; paths may name people."""
Records = list[dict[str, Any]]


def write_report(run: Folder, config: PretrainConfig, dataset: AnyDataset, rows: Rows) -> None:
    """Leave report.html in the run folder; on one rank. What goes wrong is said: the run is whole without it."""
    try:
        run.write(REPORT, report_page(run, config, dataset, rows).encode())
        say(f"report: {run.file(REPORT)}")
    except Exception as error:
        say(f"no {REPORT} ({type(error).__name__}: {error}); the run is whole without it")


def report_page(run: Folder, config: PretrainConfig, dataset: AnyDataset, rows: Rows) -> str:
    """The page; it loads nothing from anywhere and names cases by their keys alone."""
    encoder, card = load_encoder(str(run))
    names = [config.stage_name(number) for number in range(len(config.stages))]
    records = {name: read_metrics(run / name) for name in names}
    encoder.to(distributed.device())
    found = embedded(encoder, probe_dataset(dataset, config.probe.dataset), config)
    trained_on = " and ".join(dict.fromkeys(origin["name"] for e in card.lineage for origin in e["datasets"]))
    views = [tag("h3", name) + views_as_trained(config, number, dataset, rows) for number, name in enumerate(names)]
    sections = [
        Section("At the end", _result(config, records)),
        *(Section(name, _stage(config, number, records[name])) for number, name in enumerate(names)),
        Section("What it saw", paragraph("The first pairs of each stage, augmented as in training.") + join(views)),
        Section("Nearest neighbours", too_few() if found is None else neighbours(found)),
        Section("Map", too_few() if found is None else label_map(found)),
        Section("Data and lineage", _lineage(card)),
        Section("How to read it, and limits", _reading(config)),
    ]
    lead = f"{config.encoder.name}, {len(rows):,} images of the splits {', '.join(config.splits)}, seed {config.seed}."
    return page(f"{trained_on}: pretraining by {' → '.join(s.method for s in config.stages)}", sections, lead)


def _result(config: PretrainConfig, records: dict[str, Records]) -> Html:
    last = list(records.values())[-1]
    shown: list[tuple[Content, Content, Content]] = []
    for score, name in NAMES.items():
        values = [record[score] for record in last if record.get(score) is not None]
        if values:
            shown.append((f"AUROC, {name}", f"{values[-1]:.3f}", f"on validation; best on the way {max(values):.3f}"))
    losses = [record for record in last if record.get("loss") is not None]
    if losses:
        collapsed = losses[-1].get("loss_collapsed")
        shown.append(
            ("loss", f"{losses[-1]['loss']:.3f}", f"collapsed: {collapsed:.3f}" if collapsed else "at the end")
        )
    seconds = sum(_seconds(config, number, r) for number, r in enumerate(records.values()))
    images = sum(
        stage.batch_size * max((record["step"] for record in found), default=0)
        for stage, found in zip(config.stages, records.values())
    )
    shown.append(("samples seen", f"{images:,}", f"in {duration(seconds)} of training"))
    alarms = [record for found in records.values() for record in found if "alarm" in record]
    told = note("No alarm was raised.") if not alarms else note(
        f"{len(alarms)} alarm{'s were' if len(alarms) > 1 else ' was'} raised, see the stages below.", kind="warning"
    )  # fmt: skip
    return tiles(shown) + told


def _stage(config: PretrainConfig, number: int, records: Records) -> Html:
    """Alarms and curves of one stage."""
    stage = config.stages[number]
    alarms = [
        note(tag("b", record["alarm"]), f" at step {record['step']}: {record['reason']}", kind="warning")
        for record in records
        if "alarm" in record
    ]
    told = f"{stage.method}, {max((r['step'] for r in records), default=0):,} steps of {stage.batch_size} samples."
    collapsed = next((r["loss_collapsed"] for r in records if r.get("loss_collapsed")), None)
    rule = None if collapsed is None else (float(collapsed), "collapsed")
    charts = [
        line_chart("Loss", _lines(records, {"loss": "loss"}), rule, "over steps"),
        line_chart("AUROC on validation", _lines(records, NAMES), caption="macro, over cases"),
        line_chart("RankMe", _both(records, "rankme"), caption="directions that are used"),
        line_chart("Std", _both(records, "std"), caption="1: spread evenly, 0: collapsed"),
        line_chart("Alignment and uniformity", _lines(records, {"health/alignment": "alignment",
                   "health/uniformity": "uniformity"}), caption="lower is better"),
        line_chart("Learning rate", _lines(records, {"lr": "lr"})),
        line_chart("Gradient norm", _lines(records, {"grad_norm": "gradient norm"})),
        line_chart("Share of the time", _lines(records, {f"time/{p}": TIMES[p] for p in ("step", "data_wait")})),
    ]  # fmt: skip
    parts = [paragraph(told), *alarms, grid([chart for chart in charts if chart], wide=True)]
    return join([*parts, _times(records)])


def _lines(records: Records, names: dict[str, str]) -> list[Line]:
    """The curve of each metric over steps; null in a record breaks it. Of a step done again, its last record."""
    curves = (
        (title, {float(record["step"]): record[name] for record in records if name in record})
        for name, title in names.items()
    )
    return [Line(title, [(step, curve[step]) for step in sorted(curve)]) for title, curve in curves]


def _both(records: Records, figure: str) -> list[Line]:
    return _lines(records, {f"health/{figure}_encoder": "encoder", f"health/{figure}_projection": "projection"})


def _times(records: Records) -> Html:
    """Where the time went over all of the stage, each window by its length."""
    timed = [record for record in records if record.get("time/step") is not None and record.get("samples_per_s")]
    if not timed:
        return join([])
    weights = 1 / np.array([record["samples_per_s"] for record in timed])
    shares = {
        name: float(np.average([record.get(f"time/{part}") or 0.0 for record in timed], weights=weights))
        for part, name in TIMES.items()
    }
    shares["the rest: metrics, logging"] = max(0.0, 1 - sum(shares.values()))
    rows = [Bar(name, round(100 * share, 1)) for name, share in shares.items()]
    speed = len(timed) / weights.sum()
    parts = [bars(["", "% of the time"], rows, f"Where the time went, at {speed:,.3g} samples/s")]
    waits = [record["time/communication"] for record in timed if record.get("time/communication") is not None]
    if waits:
        parts.append(paragraph(
            f"{100 * float(np.mean(waits)):.1f} % of the time, part of the above, went into collectives of loss, batch "
            "norm and metrics, waiting for slower ranks included; the gradient's all-reduce runs beside the backward "
            "pass and is not in it."
        ))  # fmt: skip
    return join(parts)


def _seconds(config: PretrainConfig, number: int, records: Records) -> float:
    """Time that the steps of a stage took, without restarts and what was lost by them."""
    seconds, before = 0.0, 0
    for record in records:
        if record.get("samples_per_s"):
            seconds += (record["step"] - before) * config.stages[number].batch_size / record["samples_per_s"]
            before = record["step"]
    return seconds


def _lineage(card: EncoderCard) -> Html:
    rows = [
        [
            entry["stage"],
            origin["name"],
            f"{origin['images']:,}",
            ", ".join(origin["splits"]),
            origin["licence"] or None,
            f"{entry['steps']:,} × {entry['batch_size']}",
            tag("code", origin["fingerprint"][:16]),
        ]
        for entry in card.lineage
        for origin in entry["datasets"]
    ]
    header = ["stage", "dataset", "images", "splits", "licence", "steps × batch", "fingerprint"]
    parts = [table(header, rows, "Learned from, without labels", numeric=False)]
    for entry in card.lineage:
        if origin := entry.get("starts_from"):
            parts.append(
                paragraph(f"{entry['stage']} starts from {origin['weights']}, SHA-256 {origin['sha256'][:16]}.")
            )
    parts.append(paragraph("Weights SHA-256 ", tag("code", card.fingerprint)))
    return join(parts)


def _reading(config: PretrainConfig) -> Html:
    nearest = config.probe.neighbours
    texts = [
        "Collapsed is what the loss shows where all images have the same projection. RankMe (Garrido et al., 2023) "
        "counts the directions in which features extend, not centred; std is that of normalised features times the "
        "root of their width; alignment and uniformity (Wang & Isola, 2020) are of projections. All are of one batch.",
        f"The probes learn on labelled training cases and are asked about validation cases: the {nearest} nearest by "
        "cosine, and a logistic regression of fixed strength on standardised features. A case's features are the mean "
        "of its images'. They compare moments of one run; what the encoder is good for is measured by fine-tuning. "
        "The test split is not touched.",
        "Not a medical device. This page holds images of the dataset: its licence and the protection of its patients "
        "hold for the page too.",
    ]
    shown = json.dumps(config.model_dump(mode="json", exclude=HERE_ONLY), indent=2)
    return join([*(paragraph(t) for t in texts), folded("Config", tag("pre", shown))])
