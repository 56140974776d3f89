"""What is compared on one results page: the encoder that was asked for, and its baselines."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from finetune.config import FinetuneConfig

if TYPE_CHECKING:
    from torch import nn

    from pretrain.encoder_folder import EncoderCard

PCA_SIZE_PX, PCA_COMPONENTS = 32, 64


@dataclass(frozen=True)
class Contender:
    """One row of the comparison. `fingerprint` says what it is, wherever it lies."""

    name: str
    title: str
    kind: Literal["encoder", "untrained", "pca"]
    location: str
    fingerprint: str
    architecture: str
    lineage: list[dict[str, Any]]
    head: Literal["linear", "full"]

    def describe(self) -> dict[str, Any]:
        """For the results: everything but where it lies."""
        return {
            "title": self.title,
            "kind": self.kind,
            "architecture": self.architecture,
            "fingerprint": self.fingerprint,
            "lineage": self.lineage,
            "head": self.head,
        }


def contenders(config: FinetuneConfig) -> list[Contender]:
    """The encoder, called `pretrained`, then the baselines in their order.

    Raises InputError for a location that holds no encoder, or the same baseline twice.
    """
    from clusters.config import InputError
    from pretrain.encoder_folder import read_card

    found = [_pretrained("pretrained", config.encoder, config)]
    for baseline in config.baselines:
        if baseline == "untrained":
            card = untrained_card(config)
            what = f"untrained:{card.structure}:{config.seed}"
            title = f"{card.architecture}, untrained"
            found.append(
                Contender("untrained", title, "untrained", config.encoder, what, card.architecture, [], config.head)
            )
        elif baseline == "pca":
            what = f"pca:{PCA_COMPONENTS}:{PCA_SIZE_PX}:{config.seed}"
            title = f"PCA-{PCA_COMPONENTS} of {PCA_SIZE_PX} px pixels"
            found.append(Contender("pca", title, "pca", "", what, "PCA", [], "linear"))
        else:
            card = read_card(baseline)
            found.append(_pretrained(f"encoder-{card.fingerprint[:8]}", baseline, config))
    for number, contender in enumerate(found):
        if contender.fingerprint in {other.fingerprint for other in found[:number]}:
            raise InputError(f"baselines: '{config.baselines[number - 1]}' is compared already; take it out")
    return found


def load(contender: Contender, config: FinetuneConfig) -> tuple["nn.Module", Any]:
    """The encoder's network with its weights, and the card of its input."""
    from pretrain.encoder_folder import load_encoder, untrained_like

    if contender.kind == "untrained":
        card = untrained_card(config)
        return untrained_like(card, config.seed, config.size_px), card
    return load_encoder(contender.location, config.size_px)


def untrained_card(config: FinetuneConfig) -> "EncoderCard":
    """The card of the untrained baseline: the encoder's, but for what `untrained:` says of its network.

    Raises InputError where the network cannot be made so.
    """
    from pretrain.encoder import check_encoder
    from pretrain.encoder_folder import read_card

    card, changed = read_card(config.encoder), config.untrained.model_dump(exclude_none=True)
    if not changed:
        return card
    card = replace(card, config=card.config.model_copy(update=changed))
    check_encoder(card.config, config.size_px or card.size_px)
    return card


def _pretrained(name: str, location: str, config: FinetuneConfig) -> Contender:
    from pretrain.encoder import check_encoder
    from pretrain.encoder_folder import read_card

    card = read_card(location)
    if config.size_px is not None:
        check_encoder(card.config, config.size_px)
    methods = " → ".join(str(stage["method"]) for stage in card.lineage) or "weights given"
    title = f"{card.architecture}, {methods}"
    return Contender(name, title, "encoder", location, card.fingerprint, card.architecture, card.lineage, config.head)
