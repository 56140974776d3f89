"""What binds the use of a fine-tuned model: the data it was made from, their licences, and what it is not for."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.manifest import Manifest

NOT_FOR = "Diagnosis, triage or treatment of a patient: it is not a medical device, and nothing here shows use in care."
INTENDED = "Research on images like those that it was trained on with labels."
UNSTATED = ("", "not stated")
"""What an import says of the licence where nobody told it one."""
Told = Mapping[str, Any]


def origin_of(manifest: Manifest) -> dict[str, str]:
    """A dataset in a model's card: its names and its licence, never its place."""
    return {name: str(getattr(manifest, name)) for name in ("name", "source", "licence")}


def terms(made_from: Told) -> dict[str, Any]:
    """The terms, from what a model's card says it was made from.

    What a card does not say, as those of before, is said to be unknown.
    """
    lineage = made_from.get("lineage", ())
    labelled = made_from.get("trained_on", {})
    pretrained = {told.get("fingerprint"): told for stage in lineage for told in _datasets(stage)}.values()
    return {
        "trained_on": _origin(labelled),
        "pretrained_on": [_origin(told) for told in pretrained],
        "pretrained_from": _beginnings(lineage),
        "licence": _bound_by([labelled, *pretrained], bool(_beginnings(lineage))),
        "intended_use": INTENDED,
        "not_for": NOT_FOR,
    }


def _datasets(stage: Told) -> Sequence[Told]:
    return stage.get("datasets", ())


def _origin(told: Told) -> dict[str, str]:
    origin = {name: str(told.get(name) or "unknown") for name in ("name", "source")}
    return {**origin, "licence": _licence(told)}


def _licence(told: Told) -> str:
    licence = str(told.get("licence", ""))
    return "unknown" if licence in UNSTATED else licence


def _beginnings(lineage: Sequence[Told]) -> list[str]:
    """Weights of which nobody knows what they were made from."""
    if not lineage:
        return ["weights of which nothing is known"]
    origins = [stage.get("starts_from") or {} for stage in lineage]
    return [f"{told['weights']}: made from data that is not known" for told in origins if told.get("seen") == "unknown"]


def _bound_by(origins: Sequence[Told], others: bool) -> str:
    """One sentence for a person; the licences once each, in their order."""
    known = list(dict.fromkeys(licence for told in origins if (licence := _licence(told)) != "unknown"))
    unnamed = [str(told.get("name") or "the data") for told in origins if _licence(told) == "unknown"]
    parts = [f"What is made from data is bound by its licence: {'; '.join(known)}."] if known else []
    if unnamed:
        whose = ", ".join(dict.fromkeys(unnamed))
        parts.append(f"The licence of {whose} is unknown: ask whose data it is before the model is passed on.")
    if others:
        parts.append("That of the weights it was pretrained from, and of their data, is unknown here.")
    return " ".join(parts)
