"""The hand-off: an encoder folder that anyone can use, with its card and what it has seen."""

import hashlib
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
from pretrain.encoder import CARD, CONFIG, SEEN, WEIGHTS, Seen, hash64
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
) -> str:
    """Write an encoder folder; returns its fingerprint. `config.json` is written last: it is the commit."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    fingerprint = hashlib.sha256(weights).hexdigest()
    folder.write(WEIGHTS, weights)
    folder.write(SEEN, _seen_table(seen))
    folder.write(CARD, _card(config, views, lineage, fingerprint).encode())
    folder.write_json(CONFIG, _timm_config(encoder, config, views, lineage, fingerprint))
    return fingerprint


def copy_encoder(source: Folder, target: Folder) -> None:
    """Copy an encoder folder, its commit last."""
    for name in (WEIGHTS, SEEN, CARD, CONFIG):
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


def _seen_table(seen: Seen) -> bytes:
    rows = [("patient", number, scheme) for scheme in sorted(seen.ids) for number in sorted(seen.patients[scheme])]
    rows += [("image", number, "") for number in sorted(seen.images)]
    kinds, hashes, schemes = zip(*rows)
    table = pa.table({"kind": pa.array(kinds), "hash": pa.array(hashes, pa.uint64()), "ids": pa.array(schemes)})
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"ids": json.dumps(sorted(seen.ids))}), buffer)
    return buffer.getvalue()


def _timm_config(
    encoder: nn.Module,
    config: PretrainConfig,
    views: ViewConfig,
    lineage: list[dict[str, Any]],
    fingerprint: str,
) -> dict[str, Any]:
    known: dict[str, Any] = getattr(encoder, "pretrained_cfg", {})
    return {
        "architecture": config.encoder.name,
        "num_classes": 0,
        "num_features": encoder.num_features,
        "global_pool": known.get("pool", "avg"),
        "pretrained_cfg": {
            "tag": "manyview",
            "input_size": [3, views.size_px, views.size_px],
            "mean": list(views.mean),
            "std": list(views.std),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "num_classes": 0,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
        "manyview": {
            "encoder": config.encoder.model_dump(mode="json"),
            "fingerprint": fingerprint,
            "lineage": lineage,
        },
    }


def _card(config: PretrainConfig, views: ViewConfig, lineage: list[dict[str, Any]], fingerprint: str) -> str:
    datasets = {dataset["fingerprint"]: dataset for entry in lineage for dataset in entry["datasets"]}.values()
    data_lines = "\n".join(
        f"- {d['name']}: {d['images']} images of splits {', '.join(d['splits'])}; licence {d['licence']}; "
        f"source: {d['source']}; fingerprint `{d['fingerprint'][:16]}`"
        for d in datasets
    )
    stage_lines = "\n".join(f"- {entry['stage']}: {entry['steps']} steps of {entry['batch_size']}" for entry in lineage)
    return f"""---
library_name: timm
tags: [image-feature-extraction, medical, self-supervised]
license: other
---
# {config.encoder.name}, pretrained by {" → ".join(entry["method"] for entry in lineage)}

An image encoder: {views.size_px} px RGB images to features. It gives no diagnosis by itself.

## Use
{_usage(config)}
Input: pixels in 0..1, minus mean {list(views.mean)}, divided by std {list(views.std)}.

## Made from
{data_lines}

Stages:
{stage_lines}

Weights SHA-256 `{fingerprint}`. `seen.parquet` holds 64-bit hashes of every patient and image it was
pretrained on, so that an evaluation on them can be refused.

## Intended use and limits
Research on images like those above. Not a medical device. Images from other devices, hospitals, skin tones or
populations may be encoded worse: measure before use. The licences of the data bind what may be done with the
weights. Self-supervised encoders can retain details of their training images: weights made from images
of identifiable patients deserve the protection of the images themselves.
"""


def _usage(config: PretrainConfig) -> str:
    if config.encoder.stem == "standard":
        return '```python\nmodel = timm.create_model("local-dir:PATH", pretrained=True, num_classes=0)\n```'
    return f"""The first convolution was fitted to small images, which timm's names cannot say:
```python
model = timm.create_model("{config.encoder.name}", num_classes=0)
model.conv1 = torch.nn.Conv2d(3, model.conv1.out_channels, 3, stride=1, padding=1, bias=False)
model.maxpool = torch.nn.Identity()
model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
```"""
