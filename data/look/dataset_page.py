"""One page about a dataset, on which a person sees in a minute what is wrong with it.

Counts come from the index and the manifest; of the images only a sample is read, so that the page stays a
few MB and takes seconds, whatever the size of the dataset.
"""

import re
from pathlib import Path

import numpy as np

from clusters.config import InputError, absolute
from clusters.storage import Folder
from data.dataset import open_dataset
from data.look.contact_sheets import Album, contact_sheets, sampled_rows
from data.look.counts import attributes_section, cases_section, labels_section, sizes_section
from data.look.findings import Finding, findings
from data.look.overview import Overview
from data.look.pictures import case_rows, copies, lookalike_pairs
from data.manifest import Manifest
from data.page import Bar, Content, Html, Section, bars, folded, join, note, page, pairs, paragraph, table, tag, tiles

NUM_SAMPLED, MAX_FINDINGS = 160, 24


def look(location: str, out: str = "") -> str:
    """Write the page of a dataset folder (local path or URL); returns where it lies.

    `out` is an .html file, by default NAME-look.html in the current folder: the dataset folder itself
    stays as it is. Raises InputError for a dataset that cannot be opened, another kind of `out`, or a folder of it
    that is not there.
    """
    dataset = open_dataset(location)
    target = page_path(out or f"{_file_name(dataset.manifest.name)}-look.html")
    overview = Overview(dataset)
    Folder(target.parent).write(target.name, look_page(overview).encode())
    return str(target)


def page_path(out: str) -> Path:
    """Where a page is to be written. Raises InputError where that is no local .html file, or its folder not there."""
    target = Path(absolute(out))
    if "://" in out or target.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"out={out}: the page is one local .html file; name it so")
    if not target.parent.is_dir():
        raise InputError(f"out={out}: there is no folder {target.parent}; make it, or name another one")
    return target


def look_page(overview: Overview) -> str:
    """The page of a dataset, as HTML."""
    dataset, manifest = overview.dataset, overview.dataset.manifest
    album = Album(dataset)
    cases = case_rows(overview, album, contact_sheets(overview))
    twins = copies(overview, album) + lookalike_pairs(overview, album)
    flat = np.flatnonzero(overview.column("dhash") == 0)[:50].tolist()
    num_seen = album.look_at([*flat, *sampled_rows(dataset, NUM_SAMPLED)])
    sections = [
        Section("What it is", _about(manifest)),
        Section("Worth a look", _worth_a_look(overview, album, num_seen)),
        Section("Splits", _splits(manifest)),
        Section("Labels", labels_section(overview)),
        Section("Cases and patients", cases_section(overview)),
        Section("Attributes", attributes_section(overview)),
        Section("Image sizes", sizes_section(overview)),
        Section("Duplicates", twins),
        Section("Left out", _left_out(manifest)),
        Section("Contact sheets", cases),
    ]
    counts = manifest.counts
    lead = f"{counts.images:,} images of {counts.cases:,} cases of {counts.patients:,} patients, {_task(manifest)}."
    return page(f"{manifest.name}: a look at the dataset", sections, lead)


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "dataset"


def _task(manifest: Manifest) -> str:
    names = manifest.labels
    return {
        "multiclass": f"one of {len(names)} classes each",
        "binary": f"labelled {', '.join(names)} or not",
        "multilabel": f"{len(names)} labels that do not exclude each other",
    }.get(manifest.task, "without labels")


def _about(manifest: Manifest) -> Html:
    counts, files = manifest.counts, manifest.files.values()
    ids = {
        "source": "as published",
        "keyed": "HMAC-SHA256 of the source's ids, with a key that lies outside the dataset",
    }
    shares = ", ".join(f"{name} {share:g}" for name, share in manifest.split.get("fractions", {}).items())
    facts: dict[str, Content] = {
        "source": manifest.source,
        "licence": manifest.licence or None,
        "citation": manifest.citation or None,
        "a case is": manifest.case,
        "ids": f"{manifest.ids}: {ids.get(manifest.ids, '')}",
        "split": f"by the keyed hash of the {manifest.patient_unit} ({shares}), salt {manifest.split.get('salt_id')}, "
        "unless the source has official splits",
        "images": ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in manifest.images.items()),
        "files": f"{len(manifest.files):,}, {sum(file.size for file in files) / 1e6:,.1f} MB",
        "fingerprint": tag("code", manifest.sha256),
    }
    figures = [
        ("images", f"{counts.images:,}", f"{counts.images / max(1, counts.cases):.2f} a case"),
        ("cases", f"{counts.cases:,}", f"{counts.cases / max(1, counts.patients):.2f} a patient"),
        ("patients", f"{counts.patients:,}", "each in one split"),
        ("left out", f"{manifest.quarantined.count:,}", "raw images that could not be used"),
    ]
    return tiles(figures) + pairs(facts)


def _worth_a_look(overview: Overview, album: Album, num_seen: int) -> Html:
    """The findings, and what the sampled images looked like."""
    found = findings(overview)
    kinds = sorted(set(album.odd.values()))
    for kind in kinds:
        rows = [row for row, oddity in album.odd.items() if oddity == kind]
        keys = [str(overview.column("key")[row]) for row in rows[:4]]
        more = " and more" if len(rows) > len(keys) else ""
        found.append(Finding(f"{len(rows)} of {num_seen} images looked at are {kind}: cases {', '.join(keys)}{more}."))
    for problem in list(album.unreadable.values())[:3]:
        found.insert(0, Finding(f"An image could not be read: {problem}", serious=True))
    parts = [note(finding.sentence, kind="warning" if finding.serious else "note") for finding in found]
    if not parts:
        parts = [paragraph("Nothing.")]
    elif len(parts) > MAX_FINDINGS:
        rest = parts[MAX_FINDINGS:]
        parts = [*parts[:MAX_FINDINGS], folded(f"{len(rest)} more", join(rest))]
    parts.append(
        paragraph(
            "Looked for: empty splits, classes with few patients or none, missing labels, exact copies, attributes "
            "that give the label or the split away, patients with very many images, small or long images; and, in ",
            f"{num_seen} images read, damage, darkness and flat colour.",
        )
    )
    return join(parts)


def _splits(manifest: Manifest) -> Html:
    total = max(1, manifest.counts.images)
    rows = [
        [name, f"{part.cases:,}", f"{part.images:,}", f"{part.patients:,}", f"{100 * part.images / total:.1f} %"]
        for name, part in manifest.splits.items()
    ]
    counts = manifest.counts
    rows.append(["all", f"{counts.cases:,}", f"{counts.images:,}", f"{counts.patients:,}", "100 %"])
    return table(["split", "cases", "images", "patients", "share of images"], rows, "Counts by split")


def _left_out(manifest: Manifest) -> Html:
    bad = manifest.quarantined
    if not bad.count:
        return paragraph("Every raw image could be used.")
    reasons = [Bar(reason, number) for reason, number in sorted(bad.reasons.items(), key=lambda item: -item[1])]
    parts = [bars(["reason", "raw images"], reasons, "Raw images that could not be used")]
    parts.append(paragraph(f"{bad.dropped_cases:,} cases were left without an image."))
    listed = tag("ul", join(tag("li", line[:200]) for line in bad.rows))
    parts.append(folded(f"The first {len(bad.rows)}" if bad.count > len(bad.rows) else "Which", listed))
    return join(parts)
