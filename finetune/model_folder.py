"""`model/` in a results folder: all that is needed to use the fine-tuned model, and nothing that runs code.

encoder.safetensors   the encoder, fine-tuned or as it was pretrained
head.safetensors      weight (K, D) and bias (K): logits = features · weightᵀ + bias
model.json            task, labels, input, decision threshold, and where it comes from; written last
"""

import hashlib

import safetensors.torch
import torch

from clusters.storage import Folder
from finetune.cohort import Cohort
from finetune.config import FinetuneConfig
from finetune.contenders import load
from finetune.evaluate import Judged
from finetune.heads import POOLING
from finetune.linear import Choice

MODEL_FILES = ("encoder.safetensors", "head.safetensors", "model.json")


def write_model(
    folder: Folder, judged: Judged, choice: Choice | None, cohort: Cohort, config: FinetuneConfig, out: Folder
) -> None:
    """Write the model of one contender: the head from `choice`, or encoder and head as trained in `out`."""
    contender = judged.outcome.contender
    encoder, card = load(contender, config)
    if choice is None:
        weights = safetensors.torch.load((out / "training" / contender.name).read("model.safetensors"))
        parts = {
            part: {name.removeprefix(f"{part}."): t for name, t in weights.items() if name.startswith(f"{part}.")}
            for part in ("encoder", "head")
        }
    else:
        head = {
            "weight": torch.from_numpy(choice.head.weight_KD),
            "bias": torch.from_numpy(choice.head.bias_K),
        }
        parts = {"encoder": {n: t.contiguous() for n, t in encoder.state_dict().items()}, "head": head}
    files = {f"{part}.safetensors": safetensors.torch.save(tensors) for part, tensors in parts.items()}
    for name, content in files.items():
        folder.write(name, content)
    folder.write_json(
        "model.json",
        {
            "schema_version": 1,
            "task": cohort.task.kind,
            "labels": list(cohort.task.label_names),
            "classes": list(cohort.task.class_names),
            "threshold": judged.threshold,
            "pooling": POOLING[config.full.pooling if choice is None else "none"],
            "encoder": card.config.structure(),
            "projection": card.projection,
            "input": {
                "size_px": config.size_px or card.size_px,
                "crop": "largest centred square",
                "mean": list(card.mean[: card.config.channels]),
                "std": list(card.std[: card.config.channels]),
            },
            "made_from": {
                "encoder": contender.fingerprint,
                "lineage": contender.lineage,
                "dataset": cohort.dataset.fingerprint,
                "recipe": config.recipe(),
            },
            "files": {name: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in files.items()},
        },
    )
