"""The hand-off: an encoder folder that anyone can use, with its card and what it has seen."""

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
from torch import nn

from clusters.storage import Folder
from data.combined import AnyDataset, parts_of
from data.dataset import Dataset
from pretrain.config import PretrainConfig
from pretrain.encoder import fixes_size, small_stem
from pretrain.encoder_folder import (
    CARD,
    CONFIG,
    PROJECTION,
    SEEN,
    WEIGHTS,
    Seen,
    digest_of_seen,
    fingerprint_of,
    hash64,
)
from pretrain.heads import describe_layers
from pretrain.stage import Rows
from pretrain.views import ViewConfig

GENERIC = ("table", "folder", "dicom", "wds")
"""Sources that read anybody's data."""


def export_encoder(
    folder: Folder,
    encoder: nn.Module,
    config: PretrainConfig,
    views: ViewConfig,
    lineage: list[dict[str, Any]],
    seen: Seen,
    head: nn.Module | None = None,
) -> str:
    """Write an encoder folder; returns its fingerprint. `config.json` is written last: it is the commit.

    `head` are the layers of the projection head that go along.
    """
    weights = _serialised(encoder)
    layers, projection = (describe_layers(head), _serialised(head)) if head is not None else ([], b"")
    fingerprint = fingerprint_of(weights, projection)
    folder.write(WEIGHTS, weights)
    if layers:
        folder.write(PROJECTION, projection)
    folder.write(SEEN, seen_table(seen))
    folder.write(CARD, _card(config, views, lineage, fingerprint, layers).encode())
    told = _timm_config(encoder, config, views)
    ours = {"encoder": config.encoder.structure(), "fingerprint": fingerprint, "lineage": lineage, "projection": layers}
    folder.write_json(CONFIG, {**told, "manyview": ours})
    return fingerprint


def copy_encoder(source: Folder, target: Folder) -> None:
    """Copy an encoder folder, its commit last."""
    for name in (WEIGHTS, PROJECTION, SEEN, CARD, CONFIG):
        if name != PROJECTION or source.exists(name):
            target.write(name, source.read(name))


def seen_in(dataset: AnyDataset, rows: Rows, before: Seen | None) -> Seen:
    """What a stage has seen: these rows of the dataset, and all that its weights had seen before."""
    patients = dict(before.patients) if before else {}
    images = before.images if before else frozenset()
    for part, mine in rows_of_parts(dataset, rows):
        scheme = ids_scheme(part)
        found = {hash64(str(p)) for p in set(part.column("patient")[mine])}
        patients[scheme] = patients.get(scheme, frozenset()) | found
        images |= {hash64(str(h)) for h in set(part.column("pixel_sha256")[mine])}
    return Seen(patients, images)


def rows_of_parts(dataset: AnyDataset, rows: Rows) -> list[tuple[Dataset, Rows]]:
    """Each dataset folder behind a dataset, and which of its own rows these ascending rows are."""
    parts = parts_of(dataset)
    ends = np.cumsum([part.num_images for part in parts])
    cut = np.split(rows, np.searchsorted(rows, ends[:-1]))
    return [(part, mine - end + part.num_images) for part, mine, end in zip(parts, cut, ends)]


def origins(dataset: AnyDataset, rows: Rows, splits: list[str]) -> list[dict[str, Any]]:
    """For the lineage: each dataset that these rows come from, by name, fingerprint and licence."""
    return [
        {
            "name": part.manifest.name,
            "fingerprint": part.fingerprint,
            "licence": part.manifest.licence,
            "source": part.manifest.source,
            "splits": splits,
            "images": len(mine),
        }
        for part, mine in rows_of_parts(dataset, rows)
    ]


def ids_scheme(dataset: Dataset) -> str:
    """Whose patient ids a dataset has: equal schemes can be compared, others not.

    Published ids are comparable within one dataset ("patient 1" of another is somebody else; what an importer
    for everybody reads is told apart by its name), keyed ones within one keyring.
    """
    manifest = dataset.manifest
    if manifest.ids == "keyed":
        return f"keyed:{manifest.split['salt_id']}"
    return f"source:{manifest.source}" + (f":{manifest.name}" if manifest.source in GENERIC else "")


def seen_table(seen: Seen) -> bytes:
    """The bytes of a seen.parquet; `encoder_folder.seen_in_file` reads them."""
    rows = [("patient", number, scheme) for scheme in sorted(seen.ids) for number in sorted(seen.patients[scheme])]
    rows += [("image", number, "") for number in sorted(seen.images)]
    kinds, hashes, schemes = zip(*rows)
    table = pa.table({"kind": pa.array(kinds), "hash": pa.array(hashes, pa.uint64()), "ids": pa.array(schemes)})
    buffer, ids = io.BytesIO(), json.dumps(sorted(seen.ids))
    pq.write_table(table.replace_schema_metadata({"ids": ids, "sha256": digest_of_seen(table, ids)}), buffer)
    return buffer.getvalue()


def _serialised(module: nn.Module) -> bytes:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def _timm_config(encoder: nn.Module, config: PretrainConfig, views: ViewConfig) -> dict[str, Any]:
    """What timm and the hub read."""
    known: dict[str, Any] = getattr(encoder, "pretrained_cfg", {})
    channels, pool = config.encoder.channels, getattr(encoder, "global_pool", None)
    return {
        "architecture": config.encoder.timm_name,
        "num_classes": 0,
        "num_features": encoder.num_features,
        "global_pool": pool if isinstance(pool, str) else "avg",
        "model_args": config.encoder.model_args,
        "pretrained_cfg": {
            "tag": "manyview",
            "input_size": [channels, views.size_px, views.size_px],
            "fixed_input_size": fixes_size(config.encoder),
            "mean": list(views.mean[:channels]),
            "std": list(views.std[:channels]),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "num_classes": 0,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


def _card(
    config: PretrainConfig,
    views: ViewConfig,
    lineage: list[dict[str, Any]],
    fingerprint: str,
    layers: list[dict[str, Any]],
) -> str:
    datasets = {dataset["fingerprint"]: dataset for entry in lineage for dataset in entry["datasets"]}.values()
    data_lines = "\n".join(
        f"- {d['name']}: {d['images']} images of splits {', '.join(d['splits'])}; licence {d['licence']}; "
        f"source: {d['source']}; fingerprint `{d['fingerprint'][:16]}`"
        for d in datasets
    )
    stage_lines = "\n".join(f"- {entry['stage']}: {entry['steps']} steps of {entry['batch_size']}" for entry in lineage)
    channels = config.encoder.channels
    return f"""---
library_name: timm
tags: [image-feature-extraction, medical, self-supervised]
license: other
---
# {config.encoder.name}, pretrained by {" → ".join(entry["method"] for entry in lineage)}

An image encoder: {views.size_px} px {"RGB" if channels == 3 else "grey"} images to features. It gives no diagnosis by
itself.

## Use
{_usage(config)}
Input: pixels in 0..1, minus mean {list(views.mean[:channels])}, divided by std {list(views.std[:channels])}.
{_kept(layers)}
## Made from
{data_lines}

Stages:
{stage_lines}
{_beginnings(lineage)}
Weights SHA-256 `{fingerprint}`{f" (of {WEIGHTS} followed by {PROJECTION})" if layers else ""}. `seen.parquet` holds
64-bit hashes of every patient and image it was pretrained on, so that an evaluation on them can be refused.

## Intended use and limits
Research on images like those above. Not a medical device. Images from other devices, hospitals, skin tones or
populations may be encoded worse: measure before use. The licences of the data bind what may be done with the
weights. Self-supervised encoders can retain details of their training images: weights made from images
of identifiable patients deserve the protection of the images themselves.
"""


def _usage(config: PretrainConfig) -> str:
    if config.encoder.stem != "small":
        return '```python\nmodel = timm.create_model("local-dir:PATH", pretrained=True, num_classes=0)\n```'
    arguments = {"num_classes": 0, "in_chans": config.encoder.channels, **config.encoder.model_args}
    shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
    stem, conv, pool = small_stem(config.encoder)
    stem = f"model.{stem}" if stem else "model"
    return f"""The first convolution was fitted to small images, which timm's names cannot say:
```python
model = timm.create_model("{config.encoder.timm_name}", {shown})
first = {stem}.{conv}
{stem}.{conv} = torch.nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1, padding=1, bias=False)
{stem}.{pool} = torch.nn.Identity()
model.load_state_dict(safetensors.torch.load_file("{WEIGHTS}"))
```"""


def _kept(layers: list[dict[str, Any]]) -> str:
    if not layers:
        return ""
    first = f"first {len(layers)} layers" if len(layers) > 1 else "first layer"
    return (
        f"`{PROJECTION}` holds the {first} of the projection head, from which Manyview's "
        f"fine-tuning goes on: {layers[-1]['outputs']} features. timm loads the encoder without them.\n"
    )


def _beginnings(lineage: list[dict[str, Any]]) -> str:
    """Which weights the first stages started from, and whether it is known whom those had seen."""
    lines = []
    for entry in lineage:
        origin = entry.get("starts_from")
        if origin:
            unknown = "; whom these weights have seen is unknown" if origin["seen"] == "unknown" else ""
            lines.append(f"- {entry['stage']} starts from: {origin['weights']}, SHA-256 `{origin['sha256']}`{unknown}")
    return "\n".join(["", *lines, ""]) if lines else ""
