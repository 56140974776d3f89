"""What is wrong with an encoder folder that a run has written, by the hash that it was finished with."""

from typing import Any

from clusters.config import InputError
from clusters.storage import Folder
from pretrain.encoder_folder import CONFIG, PROJECTION, SEEN, UNREADABLE, WEIGHTS, fingerprint_of, seen_of


def harm_of(encoder: Folder, fingerprint: str) -> str | None:
    """What is wrong with the encoder of a finished stage: a file that is gone, or other bytes than were written."""
    missing = [file for file in (WEIGHTS, CONFIG, SEEN) if not encoder.exists(file)]
    if missing:
        return f"encoder/{missing[0]} is gone"
    told = _told(encoder)
    if told is None:
        return f"encoder/{CONFIG} is damaged"
    if told.get("projection") and not encoder.exists(PROJECTION):
        return f"encoder/{PROJECTION} is gone"
    kept = encoder.read(PROJECTION) if told.get("projection") else b""
    if fingerprint_of(encoder.read(WEIGHTS), kept) != fingerprint:
        return f"encoder/{WEIGHTS} was altered"
    content = encoder.read(SEEN)  # raises where storage is out of reach: that is no harm
    try:
        seen_of(content)
    except UNREADABLE:
        return f"encoder/{SEEN} was altered"
    return None


def harm_at_the_top(run: Folder, last: str, fingerprint: str) -> str | None:
    """Why the encoder at the top of a run is to be copied from its last stage; None where it is that one, unharmed.

    Raises InputError where the stage's own is damaged too.
    """
    told = _told(run / "encoder") or {}
    if not run.exists("encoder"):
        harm = "encoder/ is not there yet"
    elif told.get("fingerprint", fingerprint) != fingerprint:
        harm = "encoder/ is that of another stage"
    else:
        harm = harm_of(run / "encoder", fingerprint)
    damaged = harm and harm_of(run / last / "encoder", fingerprint)
    if damaged:
        raise InputError(f"{run}: {last} is marked finished and {damaged}; remove {run / last} to do it again")
    return harm


def foreign_encoder(run: Folder) -> str | None:
    """Why nothing may be written over what lies at the top of a run; None where it is ours, however damaged."""
    encoder = run / "encoder"
    if not run.exists("encoder") or _told(encoder) is not None or encoder.exists(SEEN):
        return None
    return f"{encoder}: not an encoder that Manyview wrote; give another run=, or remove it if it is one all the same"


def _told(encoder: Folder) -> dict[str, Any] | None:
    """What an encoder's config.json tells Manyview; None where that says nothing."""
    try:
        told = encoder.read_json(CONFIG)["manyview"]
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
        return None
    return told if isinstance(told, dict) else None
