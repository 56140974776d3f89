"""`model/` in a results folder: all that is needed to use the fine-tuned model, and nothing that runs code.

encoder.safetensors   the encoder, fine-tuned or as it was pretrained
head.safetensors      weight (K, D) and bias (K): logits = features · weightᵀ + bias; with attention, its weights too
model.json            task, labels, input, thresholds, temperature, where it comes from, and what binds its use; written
                      last

Shapes: D features, K labels.
"""

import hashlib
import json
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from clusters.config import InputError
from clusters.storage import Folder
from finetune.cohort import Cohort
from finetune.config import FinetuneConfig
from finetune.contenders import load
from finetune.evaluate import Judged
from finetune.heads import POOLING, Head
from finetune.linear import Choice
from finetune.model import POOLINGS, Decision, Model, ModelCard
from finetune.tasks import TASKS
from finetune.terms import origin_of, terms
from finetune.two_heads import TwoHeads
from pretrain.encoder import EncoderConfig, create_encoder
from pretrain.encoder_folder import load_weights
from pretrain.heads import EncoderWithHead, head_of

CARD = "model.json"
MODEL_FILES = ("encoder.safetensors", "head.safetensors", CARD)
SCHEMA_VERSION = 2


def model_folder(location: str) -> Folder:
    """The model folder at a location: itself, or `model/` in a results folder. Raises InputError for neither."""
    folder = Folder(location)
    for candidate in (folder, folder / "model"):
        if candidate.exists(CARD):
            return candidate
    raise InputError(f"{location}: no {CARD} here; give a finished results folder of python -m finetune or its model/")


def load_model(location: str) -> Model:
    """The model of a results folder, in evaluation mode on the CPU; every file is checked against its hash.

    Raises InputError for a folder that is none, of another schema, or of which a byte was altered.
    """
    folder = model_folder(location)
    card, files = _read_card(folder)
    tensors = {name: _checked(folder, name, files[name]) for name in MODEL_FILES if name != CARD}
    encoder = create_encoder(card.encoder, card.size_px)
    num_features = int(encoder.num_features)  # type: ignore[arg-type]
    if card.projection:
        num_features = int(card.projection[-1]["outputs"])
        encoder = EncoderWithHead(encoder, head_of(card.projection), num_features)
    head = Head(num_features, len(card.labels), POOLINGS[card.pooling])
    load_weights(encoder, tensors["encoder.safetensors"], folder.file("encoder.safetensors"), card.encoder.name)
    load_weights(head, tensors["head.safetensors"], folder.file("head.safetensors"), "the head")
    return Model(card, encoder, head).eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def write_model(
    folder: Folder,
    judged: Judged,
    choice: Choice | None,
    cohort: Cohort,
    config: FinetuneConfig,
    out: Folder,
) -> None:
    """Write the model of one contender: the head from `choice`, or encoder and head as trained in `out`."""
    contender, task = judged.outcome.contender, cohort.task
    encoder, card = load(contender, config)
    parts = _trained(out / "training" / contender.name) if choice is None else _with_head(encoder, choice)
    made_from = {
        "encoder": contender.fingerprint,
        "lineage": contender.lineage,
        "dataset": cohort.dataset.fingerprint,
        "trained_on": origin_of(cohort.dataset.manifest),
        "recipe": config.recipe(),
    }
    told: dict[str, Any] = {
        "task": task.kind,
        "task_described": task.describe(),
        "labels": list(task.label_names),
        "classes": list(task.class_names),
        "thresholds": judged.label_thresholds or {},
        "temperature": judged.temperature,
        "pooling": POOLING[config.pooling],
        "encoder": card.config.structure(),
        "projection": card.projection,
        "input": {
            "size_px": config.size_px or card.size_px,
            "crop": "largest centred square",
            "mean": list(card.mean[: card.config.channels]),
            "std": list(card.std[: card.config.channels]),
            "processing": cohort.dataset.manifest.images,
        },
        "made_from": made_from,
        "terms": terms(made_from),
    }
    save_model(folder, parts, told)


def save_model(folder: Folder, parts: dict[str, dict[str, Tensor]], told: dict[str, Any]) -> None:
    """Write the tensors of `encoder` and `head`, and then the card: what is `told`, and the files' hashes."""
    files = {f"{part}.safetensors": safetensors.torch.save(tensors) for part, tensors in parts.items()}
    for name, content in files.items():
        folder.write(name, content)
    records = {name: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in files.items()}
    card = {"schema_version": SCHEMA_VERSION, **told, "files": records}
    folder.write_json(CARD, {**card, "fingerprint": _fingerprint(card)})


def record_latency(folder: Folder, rows: list[dict[str, Any]]) -> None:
    """Write into the card how long one image takes; nothing else of it changes, nor does its fingerprint."""
    folder.write_json(CARD, {**folder.read_json(CARD), "latency": rows})


def _trained(training: Folder) -> dict[str, dict[str, Tensor]]:
    """Encoder and head as full fine-tuning left them."""
    weights = safetensors.torch.load(training.read("model.safetensors"))
    return {
        part: {name.removeprefix(f"{part}."): t for name, t in weights.items() if name.startswith(f"{part}.")}
        for part in ("encoder", "head")
    }


def _with_head(encoder: nn.Module, choice: Choice) -> dict[str, dict[str, Tensor]]:
    """The encoder as it was pretrained, and the linear head that was fitted on it."""
    head = {name: torch.from_numpy(values) for name, values in choice.head.weights().items()}
    return {"encoder": {n: t.contiguous() for n, t in encoder.state_dict().items()}, "head": head}


def _fingerprint(told: dict[str, Any]) -> str:
    what = {key: value for key, value in told.items() if key not in ("fingerprint", "latency")}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _read_card(folder: Folder) -> tuple[ModelCard, dict[str, dict[str, Any]]]:
    """The card, and size and hash of each file. Raises InputError where it is damaged, altered or of before."""
    where = folder.file(CARD)
    try:
        told = folder.read_json(CARD)
        if told["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{where} has schema_version {told['schema_version']}, this program reads {SCHEMA_VERSION}; run the "
                "fine-tuning again, which makes model/ anew from what was trained"
            )
        if told["fingerprint"] != _fingerprint(told):
            raise InputError(f"{where} was altered (its own hash differs); copy the model folder again")
        given = told["input"]
        card = ModelCard(
            task=told["task"],
            described=told["task_described"],
            labels=tuple(told["labels"]),
            classes=tuple(told["classes"]),
            decision=Decision(told["thresholds"], float(told["temperature"])),
            pooling=told["pooling"],
            encoder=EncoderConfig(**told["encoder"]),
            projection=told["projection"],
            size_px=int(given["size_px"]),
            mean=tuple(given["mean"]),
            std=tuple(given["std"]),
            processing=given["processing"],
            made_from=told["made_from"],
            latency=told.get("latency", []),
            fingerprint=told["fingerprint"],
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is damaged ({type(error).__name__}: {error}); copy the model folder again") from None
    if card.task not in (*TASKS, TwoHeads.kind) or card.pooling not in POOLINGS:
        raise InputError(f"{where}: task '{card.task}' with '{card.pooling}' is of a newer program; update this one")
    return card, told["files"]


def _checked(folder: Folder, name: str, record: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file whose hash is the card's."""
    try:
        content = folder.read(name)
    except FileNotFoundError:
        raise InputError(f"{folder.file(name)} is not there; copy the model folder again") from None
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise InputError(f"{folder.file(name)} was altered (its hash differs); copy the model folder again")
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise InputError(f"{folder.file(name)}: not safetensors ({error}); copy the model folder again") from None
