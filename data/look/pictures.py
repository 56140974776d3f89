"""The pictures on the page of a dataset: cases by label, exact copies, and images that look alike."""

import numpy as np

from data.look.contact_sheets import IMAGES_PER_CASE, NOT_LABELLED, Album, Sheet
from data.look.lookalikes import MAX_BITS, lookalikes
from data.look.overview import POSITIVE, UNCERTAIN, Overview, shortened
from data.page import LINE_BREAK, Bar, Content, Html, Image, bars, image_rows, join, paragraph, tag

NUM_COPIES, NUM_LOOKALIKES, NUM_COMPARED = 6, 8, 60
MAX_LABELS_SHOWN = 6


def case_rows(overview: Overview, album: Album, sheets: list[Sheet]) -> Html:
    """Sampled cases by label, the images of each in a row."""
    parts: list[Content] = []
    for sheet in sheets:
        parts.append(tag("h3", f"{shortened(sheet.title)}: {len(sheet.cases)} of {sheet.num_cases:,} cases"))
        groups = []
        for case in sheet.cases:
            first, number = int(overview.first_C[case]), int(overview.images_C[case])
            images = [_picture(overview, album, row) for row in range(first, first + min(number, IMAGES_PER_CASE))]
            shown = [image for image in images if image is not None]
            caption: list[Content] = [*_caption(overview, first)]
            if number > len(shown):
                caption += [LINE_BREAK, f"{len(shown)} of {number:,} images"]
            groups.append((shown, join(caption)))
        parts.append(image_rows(groups))
    if album.num_left_out:
        parts.append(paragraph(f"{album.num_left_out} more images were left out to keep the page small."))
    return join(parts)


def copies(overview: Overview, album: Album) -> Html:
    """Images that are pixel for pixel the same, with where they stand."""
    groups = overview.exact_duplicates()
    if not groups:
        return paragraph("No image occurs twice.")
    counted = [
        Bar("in two splits", sum(map(overview.crosses_splits, groups))),
        Bar("of two patients", sum(map(overview.crosses_patients, groups))),
        Bar("in two cases", sum(len(np.unique(overview.case_of[rows])) > 1 for rows in groups)),
        Bar("in all", len(groups)),
    ]
    parts = [bars(["the same pixels", "images"], counted, "Images that stand in the dataset more than once")]
    shown = [group for rows in groups[:NUM_COPIES] if (group := _group(overview, album, rows.tolist(), ""))]
    return join([*parts, image_rows(shown)]) if shown else join(parts)


def lookalike_pairs(overview: Overview, album: Album) -> Html:
    """The pairs of images of different cases that look most alike, exact copies aside, for a person to judge."""
    column = overview.column
    pairs_M2 = lookalikes(column("dhash").astype(np.uint64), overview.case_of, overview.pixels_N)
    differences = []
    for one, other in pairs_M2[:NUM_COMPARED].tolist():
        first, second = album.gist(one), album.gist(other)
        if first is not None and second is not None:
            differences.append((float(np.abs(first - second).mean()), one, other))
    crossing = int((overview.split_N[pairs_M2[:, 0]] != overview.split_N[pairs_M2[:, 1]]).sum())
    counted = overview.dataset.manifest.duplicates  # by the import, which has compared all images
    number = counted.get("near_pairs", len(pairs_M2))
    told = (
        f"{number:,} pairs of images of different cases have perceptual hashes that differ in at most {MAX_BITS} of 64 "
        f"bits, {counted.get('near_pairs_across_splits', crossing):,} of them across splits. Pictures of one kind are "
        "alike by nature: strangers may be among these pairs."
        if number
        else f"No two images of different cases have perceptual hashes within {MAX_BITS} of 64 bits."
    )
    parts: list[Content] = [tag("h3", "Nearest pairs"), paragraph(told)]
    groups = []
    for difference, one, other in sorted(differences)[:NUM_LOOKALIKES]:
        group = _group(overview, album, [one, other], f"mean difference {difference:.1f} of 255")
        if group:
            groups.append(group)
    return join([*parts, image_rows(groups)] if groups else parts)


def _group(overview: Overview, album: Album, rows: list[int], told: str) -> tuple[list[Image], Html] | None:
    """Pictures side by side, with the case, label and split of each; None where none can be shown."""
    shown = [(row, image) for row in rows[:4] if (image := _picture(overview, album, row)) is not None]
    if not shown:
        return None
    lines = [join(_caption(overview, row, LINE_BREAK if number else "")) for number, (row, _) in enumerate(shown)]
    whose = "different patients" if overview.crosses_patients(np.array(rows)) else "one patient"
    if len(np.unique(overview.case_of[rows])) == 1:
        whose, lines = "inside one case", lines[:1]
    ending = ", ".join(part for part in (whose, told) if part)
    more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
    return [image for _, image in shown], join([*lines, more, LINE_BREAK, ending])


def _picture(overview: Overview, album: Album, row: int) -> Image | None:
    content = album.thumbnail(row)
    if content is None:
        return None
    return Image(content, "", alt=f"image of case {overview.column('key')[row]}, {_label(overview, row)}")


def _caption(overview: Overview, row: int, before: Content = "") -> list[Content]:
    """Key, label and split of the case of a row."""
    key, split = overview.column("key")[row], overview.column("split")[row]
    return [before, tag("b", key), LINE_BREAK, f"{_label(overview, row)} · {split}"]


def _label(overview: Overview, row: int) -> str:
    """What the case of a row is labelled."""
    names = overview.dataset.label_names
    state = overview.state_CK[int(overview.case_of[row])]
    positive = [name for name, kind in zip(names, state) if kind == POSITIVE]
    doubtful = [f"{name}?" for name, kind in zip(names, state) if kind == UNCERTAIN]
    if positive or doubtful:
        shown = [*positive, *doubtful]
        return ", ".join(map(shortened, shown[:MAX_LABELS_SHOWN])) + (" …" if len(shown) > MAX_LABELS_SHOWN else "")
    if not names or not np.isfinite(overview.labels_CK[int(overview.case_of[row])]).any():
        return NOT_LABELLED
    return f"not {names[0]}" if len(names) == 1 else "no label positive"
