"""The pictures of a run's report: views as trained, nearest neighbours, and a map of the validation images.

Shapes: N validation images, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.charts import NUM_MARKS, scatter
from data.combined import AnyDataset
from data.images import decode_stored, encode_jpeg
from data.loader import centre_square
from data.page import LINE_BREAK, Html, Image, image_rows, image_strip, join, note, paragraph, tag
from pretrain.batches import ViewBatches
from pretrain.colour_jitter import greyscale
from pretrain.config import PretrainConfig
from pretrain.methods import METHODS
from pretrain.monitor import Features, encode
from pretrain.stage import Rows

NUM_PAIRS, NUM_QUERIES, NUM_NEIGHBOURS = 6, 8, 5
MAX_EMBEDDED = 400
"""Images that are looked at: t-SNE takes about 2 s of a core for them."""
MIN_MAPPED = 10
VIEW_PX, PICTURE_PX, QUALITY = 112, 144, 80
NOT_LABELLED, NOTHING_POSITIVE, OTHERS = "not labelled", "no label positive", "other labels"


@dataclass(frozen=True)
class Embedded:
    """Validation images with their normalised features, and which of the named groups of labels each is in."""

    dataset: AnyDataset
    rows: Rows
    unit_ND: Features
    group_N: NDArray[np.int64]
    names: list[str]


def views_as_trained(config: PretrainConfig, number: int, dataset: AnyDataset, rows: Rows) -> Html:
    """The first pairs of a stage, as the network saw them but for rounding."""
    stage, views = config.stages[number], config.stage_views(number)
    samples = METHODS[stage.method].samples(dataset, rows)
    pair = METHODS[stage.method].pairing(stage, dataset, samples)  # type: ignore[arg-type]
    make = ViewBatches(
        dataset, samples, pair, views, config.seed, number, min(NUM_PAIRS, len(samples)), 0, 1,
        augment=True,
    )  # fmt: skip
    batch, keys = make(0), dataset.column("key")
    crops_VBCHW = batch.crops_VBCHW
    if config.encoder.channels == 1:
        crops_VBCHW = greyscale(crops_VBCHW.flatten(0, 1).float()).round().byte().expand(-1, 3, -1, -1)
        crops_VBCHW = crops_VBCHW.unflatten(0, batch.rows_VB.shape)
    groups = []
    for pair_V, views_VCHW in zip(batch.rows_VB.T.tolist(), crops_VBCHW.transpose(0, 1)):
        shown = [Image(_jpeg(view.permute(1, 2, 0).numpy(), VIEW_PX), "", alt="a view") for view in views_VCHW]
        kind = "two images" if len(set(pair_V)) > 1 else "one image"
        groups.append((shown, join([tag("b", str(keys[pair_V[0]])), LINE_BREAK, kind])))
    return image_rows(groups)


def embedded(encoder: Any, dataset: AnyDataset, config: PretrainConfig) -> Embedded | None:
    """Evenly chosen validation images through the encoder; None where there are too few."""
    rows = np.flatnonzero(dataset.column("split").astype(str) == "val")
    rows = rows[:: max(1, -(-len(rows) // MAX_EMBEDDED))]
    if len(rows) < MIN_MAPPED:
        return None
    views, channels = config.stage_views(len(config.stages) - 1), config.encoder.channels
    features_ND = encode(encoder, dataset, rows, views, config.precision, channels)
    unit_ND = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True).clip(1e-12)
    return Embedded(dataset, rows, unit_ND, *label_groups(dataset.labels[rows], dataset.label_names))


def label_groups(labels_NK: Features, names: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Which group each image is in, and the groups' names, the largest first, at most NUM_MARKS.

    An image with several labels is in the group of the one that is rarest here.
    """
    titles = [*names, f"not {names[0]}" if len(names) == 1 else NOTHING_POSITIVE, NOT_LABELLED]
    positive_NK = labels_NK > 0.5
    rarity_NK = np.where(positive_NK, positive_NK.sum(axis=0), np.iinfo(np.int64).max)
    unlabelled_N = ~np.isfinite(labels_NK).any(axis=1)
    title_N = np.full(len(labels_NK), len(names))
    if len(names):
        title_N = np.where(positive_NK.any(axis=1), rarity_NK.argmin(axis=1), title_N)
    title_N = np.where(unlabelled_N, len(names) + 1, title_N)
    counts = np.bincount(title_N, minlength=len(titles))
    order = [int(title) for title in np.argsort(-counts, kind="stable") if counts[title]]
    kept = order if len(order) <= NUM_MARKS else order[: NUM_MARKS - 1]
    place = {title: group for group, title in enumerate(kept)}
    group_N = np.array([place.get(int(title), len(kept)) for title in title_N], dtype=np.int64)
    return group_N, [titles[title] for title in kept] + ([OTHERS] if len(kept) < len(order) else [])


def neighbours(found: Embedded) -> Html:
    """Some images, each with those of other cases that the encoder finds most alike."""
    case_N, keys = found.dataset.case_of[found.rows], found.dataset.column("key")
    alike_NN = found.unit_ND @ found.unit_ND.T
    parts: list[Html] = []
    for query in _queries(found):
        alike_N = np.where(case_N == case_N[query], -np.inf, alike_NN[query])
        nearest = [
            place for place in np.argsort(-alike_N, kind="stable")[:NUM_NEIGHBOURS] if np.isfinite(alike_N[place])
        ]
        shown = []
        for place in (query, *map(int, nearest)):
            name = found.names[found.group_N[place]]
            told = "asked for" if place == query else f"cosine {alike_N[place]:.3f}"
            same = "good" if found.group_N[place] == found.group_N[query] else "bad"
            row = int(found.rows[place])
            caption = join([tag("b", name), LINE_BREAK, told, LINE_BREAK, str(keys[row])])
            picture = _jpeg(decode_stored(found.dataset.read(row)), PICTURE_PX)
            shown.append(Image(picture, caption, "" if place == query else same, alt=f"{name}, {told}"))
        parts.append(image_strip(shown))
    agree, chance = 100 * _agreement(found, alike_NN, case_N), 100 * _chance(found)
    told = paragraph(
        f"Each row begins with an image of the validation split, followed by the {NUM_NEIGHBOURS} of other cases whose "
        f"features are nearest; a green edge: the same label. Of {len(found.rows)} images, {agree:.0f} % have a "
        f"nearest neighbour of their own label; drawn at random it would be {chance:.0f} %."
    )
    return join([told, *parts])


def label_map(found: Embedded) -> Html:
    """t-SNE of the features, marked by label."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(found.rows) - 1) / 3)
    points_N2 = TSNE(perplexity=perplexity, init="pca", random_state=0, metric="cosine").fit_transform(found.unit_ND)
    told = paragraph(
        f"t-SNE (perplexity {perplexity:.3g}) of the encoder's features of {len(found.rows)} validation images. Near "
        "is alike; distances between groups and their sizes mean nothing."
    )
    return join([told, scatter("Map of the validation images", points_N2, found.group_N.tolist(), found.names)])


def too_few() -> Html:
    """Said where there is nothing to look at."""
    return note(f"The validation split has fewer than {MIN_MAPPED} images, so there is nothing to look at here.")


def _queries(found: Embedded) -> list[int]:
    """Places of images of as many groups as there are, in turn, one a case."""
    _, first = np.unique(found.dataset.case_of[found.rows], return_index=True)
    by_group = [first[found.group_N[first] == group].tolist() for group in range(len(found.names))]
    turns = [members[turn] for turn in range(NUM_QUERIES) for members in by_group if turn < len(members)]
    return sorted(turns[:NUM_QUERIES], key=lambda place: int(found.group_N[place]))


def _agreement(found: Embedded, alike_NN: Features, case_N: NDArray[np.integer]) -> float:
    others_NN = np.where(case_N[:, None] == case_N, -np.inf, alike_NN)
    return float((found.group_N[others_NN.argmax(axis=1)] == found.group_N).mean())


def _chance(found: Embedded) -> float:
    shares = np.bincount(found.group_N) / len(found.group_N)
    return float((shares**2).sum())


def _jpeg(pixels: NDArray[np.uint8], size_px: int) -> bytes:
    return encode_jpeg(centre_square(np.ascontiguousarray(pixels), size_px), quality=QUALITY)
