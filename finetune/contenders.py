"""What is compared on one results page: the encoder that was asked for, and its baselines.

A baseline is one word of a recipe:

untrained               the same network with fresh weights
pca                     logistic regression on principal components of small pixels
orb                     ORB keypoints, bag of visual words, linear SVM (Yadav & Jadhav, 2019, J. Big Data 6:113)
knn                     nearest neighbours by the encoder's features
imagenet:PATH           the same network from weights of others, read from a file or a folder in timm's layout
imagenet:timm:default   the same network from the weights that timm publishes, from the hub's cache or the hub
vgg16[:WEIGHTS]         VGG16 from such weights; without any they are random
inception_v3[:WEIGHTS]  InceptionV3 likewise
anything else           the location of another encoder
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clusters.config import InputError, absolute, nearest
from finetune.config import FinetuneConfig

if TYPE_CHECKING:
    from torch import nn

    from pretrain.encoder_folder import EncoderCard

PCA_SIZE_PX, PCA_COMPONENTS = 32, 64
ORB_SIZE_PX, ORB_KEYPOINTS, ORB_WORDS = 224, 200, 200
CLASSICAL = ("pca", "orb", "knn")
PUBLISHED = {"vgg16": "VGG16", "inception_v3": "InceptionV3"}
WORDS = ("untrained", *CLASSICAL, "imagenet", *PUBLISHED)
Kind = Literal["encoder", "untrained", "published", "pca", "orb", "knn"]


@dataclass(frozen=True)
class Contender:
    """One row of the comparison. `fingerprint` says what it is, wherever it lies.

    `numbers_of` says whose numbers of an image it goes by, where those are another contender's.
    """

    name: str
    title: str
    kind: Kind
    location: str
    fingerprint: str
    architecture: str
    lineage: list[dict[str, Any]]
    head: Literal["linear", "full"]
    numbers_of: tuple[str, str] | None = None

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

    Raises InputError for a location that holds no encoder, weights that do not fit, or the same baseline twice.
    """
    found = [_pretrained("pretrained", config.encoder, config)]
    for word in config.baselines:
        made = _baseline(word, found[0], config)
        if made.fingerprint in {other.fingerprint for other in found}:
            raise InputError(f"baselines: '{word}' is compared already; take it out")
        if made.name in {other.name for other in found}:
            raise InputError(f"baselines: a second {made.name} ('{word}') in one table; give it a run of its own")
        found.append(made)
    return found


def absolute_baseline(word: str) -> str:
    """A baseline's word with its path made absolute. Raises InputError for one that is nearly a known word."""
    from pretrain.weights_source import TIMM_DEFAULT

    name, separator, location = word.partition(":")
    if word in WORDS:
        return word
    _refuse_misspelt(word)
    if separator and names_published(word):
        return word if location == TIMM_DEFAULT else f"{name}:{absolute(location)}"
    return absolute(word)


def names_published(word: str) -> bool:
    """Whether a word is of a network of others, rather than of a place or a baseline without one."""
    name = word.partition(":")[0]
    return name == "imagenet" or name in PUBLISHED


def _refuse_misspelt(word: str) -> None:
    """A word that is no place either would be told as one that holds no encoder."""
    name, separator, _ = word.partition(":")
    if "/" in name or "://" in word or Path(word).exists():
        return
    if separator and name in ("untrained", *CLASSICAL):
        raise InputError(f"baselines: '{word}' is no folder here, and '{name}' takes nothing after it")
    if name in WORDS:
        return
    if hint := nearest(name, WORDS):
        raise InputError(
            f"baselines: '{name}'{hint} is neither a known baseline ({', '.join(WORDS)}) nor a folder here"
        )


def card_of(contender: Contender, config: FinetuneConfig) -> "EncoderCard":
    """The card of a contender's network, of which nothing is computed; of those that have one."""
    from pretrain.encoder_folder import read_card

    if contender.kind == "published":
        return _published_card(contender.location, config)
    return untrained_card(config) if contender.kind == "untrained" else read_card(contender.location)


def weights_bytes(contender: Contender, config: FinetuneConfig) -> int:
    """Bytes of the weights of a contender's network; the untrained one's are about those of the encoder it is like."""
    import torch

    from pretrain.encoder import create_encoder
    from pretrain.encoder_folder import WEIGHTS, encoder_folder

    if contender.kind != "published":
        return encoder_folder(contender.location).size(WEIGHTS)
    card = card_of(contender, config)
    with torch.device("meta"):
        network = create_encoder(card.config, config.size_px or card.size_px)
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def load(contender: Contender, config: FinetuneConfig) -> tuple["nn.Module", Any]:
    """The encoder's network with its weights, and the card of its input."""
    from pretrain.encoder_folder import load_encoder, untrained_like

    if contender.kind == "published":
        return _load_published(contender.location, config)
    if contender.kind == "untrained":
        card = untrained_card(config)
        return untrained_like(card, config.seed, config.size_px), card
    return load_encoder(contender.location, config.size_px)


def _baseline(word: str, first: Contender, config: FinetuneConfig) -> Contender:
    from pretrain.encoder_folder import read_card

    if word == "untrained":
        card = untrained_card(config)
        what = f"untrained:{card.structure}:{card.mean}:{card.std}:{config.seed}"
        title = f"{card.architecture}, untrained"
        return Contender(word, title, word, config.encoder, what, card.architecture, [], config.head)
    if word == "knn":
        numbers_of = (first.name, first.fingerprint)
        title, what = f"Nearest neighbours by features of {first.architecture}", f"knn:{first.fingerprint}"
        return Contender(word, title, word, config.encoder, what, "kNN", first.lineage, "linear", numbers_of)
    if word == "pca":
        what = f"pca:{PCA_COMPONENTS}:{PCA_SIZE_PX}:{config.seed}"
        return Contender(word, f"PCA-{PCA_COMPONENTS} of {PCA_SIZE_PX} px pixels", word, "", what, "PCA", [], "linear")
    if word == "orb":
        what = f"orb:{ORB_WORDS}:{ORB_KEYPOINTS}:{ORB_SIZE_PX}:{config.seed}"
        return Contender(word, f"ORB, {ORB_WORDS} visual words, linear SVM", word, "", what, "ORB", [], "linear")
    if names_published(word):
        return _published(word, config)
    _refuse_misspelt(word)
    card = read_card(word)
    return _pretrained(f"encoder-{card.fingerprint[:8]}", word, config)


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


def _published(word: str, config: FinetuneConfig) -> Contender:
    """A network of others, checked without computing anything."""
    from pretrain.encoder import check_encoder
    from pretrain.initial_weights import check_start
    from pretrain.views import ViewConfig
    from pretrain.weights_source import NONE, find_weights

    with _told_as(word):
        card = _published_card(word, config)
        size_px = config.size_px or card.size_px
        check_encoder(card.config, size_px)
        check_start(card.config, ViewConfig(size_px=size_px))
        if card.config.weights == NONE:
            source, what = "untrained: no file of its weights was given", f"untrained:{card.structure}:{config.seed}"
        else:
            weights = find_weights(card.config)
            if weights.card is not None:
                mend = f"give its folder as a baseline, without '{word.partition(':')[0]}:'"
                raise InputError(f"{word.partition(':')[2]} is an encoder of Manyview; {mend}")
            source, what = weights.title, weights.fingerprint()
    name = word.partition(":")[0]
    title = f"{PUBLISHED.get(name, card.architecture)}, {source}"
    return Contender(name, title, "published", word, what, card.architecture, [], config.head)


def _published_card(word: str, config: FinetuneConfig) -> "EncoderCard":
    """The network that a word names, and the input that timm says it was published with."""
    import timm

    from pretrain.encoder import SIMCLR_RESNETS, EncoderConfig, native_size_px
    from pretrain.encoder_folder import EncoderCard, read_card
    from pretrain.weights_source import TIMM_DEFAULT

    name, _, location = word.partition(":")
    channels = 3
    if name == "imagenet":
        if not location:
            raise InputError(
                "encoder.weights: which weights? Give imagenet:timm:default, timm's own of this network (from the "
                "hub's cache or the hub), or imagenet:PATH with a .safetensors file of timm's or torchvision's names, "
                "or a folder in timm's layout"
            )
        ours = read_card(config.encoder).config
        # Nobody publishes ImageNet weights under SimCLR's names: those of the plain network stand for them.
        name = _told_architecture(location) or (ours.name.split("_")[0] if ours.name in SIMCLR_RESNETS else ours.name)
        channels = ours.channels
    encoder = EncoderConfig(name=name, channels=channels, weights=location or "none")
    # timm's own weights are those of the name's tag, each with an input of its own; a file tells no tag.
    known = timm.get_pretrained_cfg(encoder.name if location == TIMM_DEFAULT else encoder.timm_name)
    mean, std = (known.mean, known.std) if known else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return EncoderCard(encoder, mean, std, native_size_px(encoder), "", [], [])  # type: ignore[arg-type]


def _told_architecture(location: str) -> str | None:
    """The network that a folder in timm's layout names; none of a file."""
    from clusters.storage import Folder
    from pretrain.weights_source import TIMM_DEFAULT

    if location == TIMM_DEFAULT or location.endswith(".safetensors") or not Folder(location).exists("config.json"):
        return None
    try:
        return Folder(location).read_json("config.json").get("architecture")
    except (ValueError, AttributeError):
        return None


def _load_published(word: str, config: FinetuneConfig) -> "tuple[nn.Module, EncoderCard]":
    from pretrain.encoder_folder import untrained_like
    from pretrain.initial_weights import start
    from pretrain.views import ViewConfig
    from pretrain.weights_source import NONE

    with _told_as(word):
        card = _published_card(word, config)
        size_px = config.size_px or card.size_px
        if card.config.weights == NONE:
            return untrained_like(card, config.seed, size_px), card
        return start(card.config, ViewConfig(size_px=size_px, mean=card.mean, std=card.std)).encoder, card


@contextmanager
def _told_as(word: str) -> Iterator[None]:
    """Refusals of weights name the key of pretraining; here it is a baseline."""
    try:
        yield
    except InputError as error:
        name, told = word.partition(":")[0], str(error)
        for key in ("encoder.weights", "encoder.name"):
            told = told.removeprefix(f"{key}: ")
        told = told.replace("views.size_px", "size_px").replace("set encoder.name to", "give a file of")
        told = told.replace("set encoder.weights=none, or another encoder.name", f"give a file, as {name}:PATH")
        raise InputError(f"baselines: {name}: {told}") from None
