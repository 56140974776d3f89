"""The folder in which an encoder is handed on, read: its network, its card, and whom it has seen.

It has the layout that timm and the Hugging Face hub load (`model.safetensors`, `config.json`, `README.md`), and
`seen.parquet`, which says whom and what it was pretrained on. Where layers of the projection head go along, they
stand in `projection.safetensors`, which timm leaves aside.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
import torch
from torch import nn

from clusters.config import InputError
from clusters.storage import Folder
from pretrain.encoder import EncoderConfig, change_size, create_encoder, fixes_size
from pretrain.heads import EncoderWithHead, head_of

WEIGHTS, CONFIG, CARD, SEEN = "model.safetensors", "config.json", "README.md", "seen.parquet"
MODEL_CARD = "model.json"  # of a fine-tuned model
PROJECTION = "projection.safetensors"


@dataclass(frozen=True)
class EncoderCard:
    """What a user of the encoder must know: its input, its identity and where it comes from.

    `mean` and `std` are per colour of pixels in 0..1, of a grey encoder thrice the same; `size_px` is the side it was
    pretrained at; `projection` are the layers of the projection head that go along.
    """

    config: EncoderConfig
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size_px: int
    fingerprint: str
    lineage: list[dict[str, Any]]
    projection: list[dict[str, Any]]

    @property
    def architecture(self) -> str:
        """The network's name."""
        return self.config.name

    @property
    def began_elsewhere(self) -> bool:
        """Whether it started from weights of others, of which nobody knows whom they have seen."""
        return began_elsewhere(self.lineage)

    @property
    def structure(self) -> str:
        """All that determines the network, as text."""
        what = {**self.config.structure(), "size_px": self.size_px, "projection": self.projection}
        return json.dumps(what, sort_keys=True)


@dataclass(frozen=True)
class Seen:
    """64-bit hashes of what an encoder was pretrained on: patients by the scheme of their ids, and images."""

    patients: Mapping[str, frozenset[int]]
    images: frozenset[int]

    @property
    def ids(self) -> frozenset[str]:
        """Whose patient ids they are."""
        return frozenset(self.patients)


def hash64(text: str) -> int:
    """A 64-bit hash of an id, for seen.parquet."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def encoder_folder(location: str) -> Folder:
    """The encoder folder at a location: itself, or `encoder/` in a run or stage folder."""
    folder = Folder(location)
    for candidate in (folder, folder / "encoder"):
        if candidate.exists(CONFIG) and candidate.exists(WEIGHTS):
            return candidate
    raise InputError(f"{location}: no {WEIGHTS} and {CONFIG} here; give a finished run or its encoder folder")


def read_card(location: str) -> EncoderCard:
    """Read an encoder's card. Raises InputError where the folder is not one that Manyview wrote."""
    folder = encoder_folder(location)
    try:
        config = folder.read_json(CONFIG)
        ours, pretrained = config["manyview"], config["pretrained_cfg"]
        return EncoderCard(
            config=EncoderConfig(**ours["encoder"]),
            mean=_three(pretrained["mean"]),
            std=_three(pretrained["std"]),
            size_px=int(pretrained["input_size"][-1]),
            fingerprint=ours["fingerprint"],
            lineage=[_with_datasets(stage) for stage in ours["lineage"]],
            projection=ours.get("projection", []),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder.file(CONFIG)}: not written by Manyview, or damaged ({type(error).__name__}: {error}); "
            "copy the encoder folder again"
        ) from None


def load_encoder(location: str, size_px: int | None = None) -> tuple[nn.Module, EncoderCard]:
    """An encoder with its weights, verified by hash, and its card; kept layers of the projection head included.

    A network that fixes its image size is fitted to `size_px`, where given. Raises InputError where weights are
    damaged or belong to another architecture.
    """
    encoder, card = load_backbone(location, size_px)
    if not card.projection:
        return encoder, card
    folder = encoder_folder(location)
    head = head_of(card.projection)
    load_weights(
        head, _tensors(folder.read(PROJECTION), folder.file(PROJECTION)), folder.file(PROJECTION), "projection head"
    )
    return _with_projection(encoder, head, card), card


def load_backbone(location: str, size_px: int | None = None) -> tuple[nn.Module, EncoderCard]:
    """The encoder as `load_encoder` gives it, but without layers of a projection head."""
    folder, card = encoder_folder(location), read_card(location)
    content = folder.read(WEIGHTS)
    if fingerprint_of(content, folder.read(PROJECTION) if card.projection else b"") != card.fingerprint:
        raise InputError(f"{folder.file(WEIGHTS)}: altered since its export; copy it again from its run")
    model = create_encoder(card.config, card.size_px)
    load_weights(model, _tensors(content, folder.file(WEIGHTS)), folder.file(WEIGHTS), card.architecture)
    if size_px not in (None, card.size_px) and fixes_size(card.config):
        change_size(model, card.config, size_px)
    return model, card


def untrained_like(card: EncoderCard, seed: int, size_px: int | None = None) -> nn.Module:
    """The same network, kept layers included, with fresh weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = create_encoder(card.config, size_px or card.size_px)
        return _with_projection(encoder, head_of(card.projection), card) if card.projection else encoder


def fingerprint_of(weights: bytes, projection: bytes) -> str:
    """SHA-256 of the weights, followed by those of the kept layers where there are any."""
    digest = hashlib.sha256(weights)
    digest.update(projection)
    return digest.hexdigest()


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], where: str, architecture: str) -> None:
    """Load weights that must fit exactly. Raises InputError naming the first that does not."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        name = next(n for n in sorted(expected.keys() | found.keys()) if expected.get(n) != found.get(n))
        raise InputError(
            f"{where}: not the weights of {architecture}: {name} is {found.get(name, 'absent')}, "
            f"expected {expected.get(name, 'absent')}; copy the folder again, its files do not belong together"
        )
    model.load_state_dict(weights)


class Altered(ValueError):
    """It says something else than what was written."""


UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""What the bytes of a damaged seen.parquet raise; pyarrow knows an OSError of its own."""


def read_seen(location: str) -> Seen:
    """Whom and what an encoder was pretrained on."""
    return seen_in_file(encoder_folder(location), "this encoder", "copy the encoder folder again")


def began_elsewhere(lineage: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some stage started from weights of others, of which nobody knows whom they have seen."""
    return any(entry.get("starts_from", {}).get("seen") == "unknown" for entry in lineage)


def home_of(folder: Folder) -> str:
    """Whose a file of weights in this folder is: `encoder` or `model` of Manyview, beside which stands whom it saw.

    Empty for a file of others, and where storage does not say (S3 forbids to look for what may not be listed).
    """
    try:
        if folder.exists(SEEN):
            return "encoder"
        return "model" if {"made_from", "task_described"} <= set(folder.read_json(MODEL_CARD)) else ""
    except (OSError, ValueError, TypeError):
        return ""


def seen_in_file(folder: Folder, who: str, mend: str) -> Seen:
    """What a folder's seen.parquet says. Raises InputError with the mend where it cannot be read."""
    try:
        return seen_of(folder.read(SEEN))
    except UNREADABLE as error:
        told = "altered" if isinstance(error, Altered) else f"cannot be read ({type(error).__name__})"
        raise InputError(f"{folder.file(SEEN)}: {told}, so nobody can tell whom {who} has seen; {mend}") from None


def seen_of(content: bytes) -> Seen:
    """What the bytes of a seen.parquet say. Raises one of UNREADABLE."""
    table = pq.read_table(io.BytesIO(content))
    kinds, hashes = table.column("kind").to_pylist(), table.column("hash").to_pylist()
    told = table.schema.metadata
    ids = json.loads(told[b"ids"])
    if b"sha256" in told and told[b"sha256"].decode() != digest_of_seen(table, told[b"ids"].decode()):
        raise Altered  # those of before have no hash
    # Encoders of before named the schemes without saying whose id is whose: then each may be of any.
    schemes = table.column("ids").to_pylist() if "ids" in table.column_names else [None] * len(kinds)
    patients = [(number, scheme) for kind, number, scheme in zip(kinds, hashes, schemes) if kind == "patient"]
    return Seen(
        patients={name: frozenset(n for n, scheme in patients if scheme in (name, None)) for name in ids},
        images=frozenset(number for kind, number in zip(kinds, hashes) if kind == "image"),
    )


def digest_of_seen(table: pa.Table, ids: str) -> str:
    """SHA-256 of what a seen.parquet says: no patient is to be lost from it by a flipped bit or rows that are cut."""
    content = json.dumps([ids, *(table.column(name).to_pylist() for name in ("kind", "hash", "ids"))])
    return hashlib.sha256(content.encode()).hexdigest()


def _tensors(content: bytes, where: str) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise InputError(f"{where}: no safetensors file ({error}); copy the encoder folder again") from None


def _with_projection(encoder: nn.Module, head: nn.Module, card: EncoderCard) -> nn.Module:
    return EncoderWithHead(encoder, head, int(card.projection[-1]["outputs"]))


def _with_datasets(stage: dict[str, Any]) -> dict[str, Any]:
    """A stage of the lineage; encoders of before had one dataset each and named it `dataset`."""
    return stage if "datasets" in stage else {**stage, "datasets": [stage["dataset"]]}


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in (values * 3 if len(values) == 1 else values))
    return red, green, blue
