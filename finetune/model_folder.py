"""`model/` in a results folder: all that is needed to use the fine-tuned model, and nothing that runs code.

encoder.safetensors   the encoder, fine-tuned or as it was pretrained
head.safetensors      weight (K, D) and bias (K): logits = features · weightᵀ + bias; with attention, its weights too
model.json            task, labels, input, thresholds, temperature, and where it comes from; written last

Shapes: I images, N cases, B batch, D features, K labels, H and W pixels.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from clusters.config import InputError
from clusters.storage import Folder
from finetune.bootstrap import Floats, Integers
from finetune.cohort import Cohort
from finetune.config import FinetuneConfig
from finetune.contenders import load
from finetune.evaluate import Judged
from finetune.full_config import Pooling
from finetune.heads import POOLING, Head, pool_images
from finetune.linear import Choice
from finetune.study import task_from
from finetune.tasks import TASKS, pool_cases
from finetune.two_heads import TwoHeads
from pretrain.encoder import EncoderConfig, create_encoder
from pretrain.encoder_folder import load_weights
from pretrain.heads import EncoderWithHead, head_of
from pretrain.views import normalise

CARD = "model.json"
MODEL_FILES = ("encoder.safetensors", "head.safetensors", CARD)
SCHEMA_VERSION = 2
POOLINGS: dict[str, Pooling] = {words: kind for kind, words in POOLING.items()}
"""What the card says of a case's answer → how `pool_images` makes it of its images' numbers."""


@dataclass(frozen=True)
class Decision:
    """What validation froze: a threshold per label (none where the largest probability decides), the temperature.

    Logits are divided by the temperature before they become probabilities; 1 changes nothing.
    """

    thresholds: dict[str, float] = field(default_factory=dict)
    temperature: float = 1.0


@dataclass(frozen=True)
class ModelCard:
    """What a user of the model must know. `processing`: how the dataset's images were made from their files.

    `mean` and `std` are per channel of the encoder, of pixels in 0..1; `fingerprint` is of everything but the latency.
    """

    task: str
    described: dict[str, Any]
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    decision: Decision
    pooling: str
    encoder: EncoderConfig
    projection: list[dict[str, Any]]
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    processing: dict[str, Any]
    made_from: dict[str, Any]
    latency: list[dict[str, Any]]
    fingerprint: str


class Model(nn.Module):
    """A fine-tuned model: RGB images in 0..1, (B, 3, H, W), to logits (B, K); normalises by itself.

    Where a case's answer is made by attention, an image's score stands in a last column, beside its logits.
    """

    def __init__(self, card: ModelCard, encoder: nn.Module, head: Head) -> None:
        super().__init__()
        self.card, self.task = card, task_from(card.described)
        self.encoder, self.head = encoder, head

    def features(self, images_B3HW: Tensor) -> Tensor:
        """What the encoder makes of images in 0..1, (B, D)."""
        card = self.card
        return self.encoder(normalise(images_B3HW, card.mean, card.std, card.encoder.channels))

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Logits, before the temperature."""
        return self.head(self.features(images_B3HW))

    @torch.inference_mode()
    def logits(self, pixels_B3HW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (B, K) of pixels as the loader gives them, on the device on which the model stands."""
        pixels = torch.from_numpy(pixels_B3HW).to(self.head.weight.device)
        images = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)
        return self(images).float().cpu().numpy()

    def probabilities(self, logits_IK: Floats) -> Floats:
        """Probability of each label, (I, K), at the frozen temperature."""
        return self.task.probabilities(self._at_temperature(logits_IK[:, : len(self.card.labels)]))

    def pool(self, case_I: Integers, logits_IK: Floats) -> tuple[Integers, Floats]:
        """Each case's number, (N,) ascending, and its probabilities, (N, K), at the frozen temperature."""
        return pool_cases(case_I, self.probabilities(self.pooled(case_I, logits_IK)))

    def pooled(self, case_I: Integers, logits_IK: Floats) -> Floats:
        """Logits of each image's case, (I, K), or of the image itself where a case's answer is the mean of those."""
        return pool_images(logits_IK, case_I, POOLINGS[self.card.pooling])

    def _at_temperature(self, logits_IK: Floats) -> Floats:
        """Logits divided by the temperature; numbers, which have none, as they are."""
        num_labels = len(self.yes_or_no)
        scaled = logits_IK[:, :num_labels] / self.card.decision.temperature
        return np.concatenate([scaled, logits_IK[:, num_labels:]], axis=1)

    @property
    def yes_or_no(self) -> tuple[str, ...]:
        """The labels that have a probability: all but those that are numbers."""
        return tuple(label for label in self.card.labels if label not in self.task.number_names)

    @property
    def one_of_several(self) -> bool:
        """Whether the labels exclude each other, so that the largest probability decides."""
        return self.yes_or_no == tuple(self.card.classes) and len(self.yes_or_no) > 1

    def decide(self, probabilities_NK: Floats) -> NDArray[np.int64]:
        """What is decided at the frozen thresholds: class number (N, 1) where one of several, else 0 or 1, (N, K)."""
        labels = self.yes_or_no
        if self.one_of_several:
            return probabilities_NK[:, : len(labels)].argmax(axis=1)[:, None]
        thresholds = [self.card.decision.thresholds.get(label, 0.5) for label in labels]
        return (probabilities_NK[:, : len(labels)] >= np.array(thresholds)).astype(np.int64)


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
        "made_from": {
            "encoder": contender.fingerprint,
            "lineage": contender.lineage,
            "dataset": cohort.dataset.fingerprint,
            "recipe": config.recipe(),
        },
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
