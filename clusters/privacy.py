"""`tracking.privacy: strict`: what leaves nothing of people and places in what is kept or sent, and sends nothing."""

import os
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from clusters.config import InputError
from clusters.storage import Folder

# For libraries that would ask a hub, report an error or count a use by themselves.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_DISABLE_CODE": "true",
}

# What a W&B run would otherwise hold of the machine, its user, the command line and what was printed.
STRICT_SETTINGS: dict[str, Any] = {
    "host": "private",
    "username": "private",
    "email": "private",
    "disable_job_creation": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}

PLACE = "(a place)"


def go_offline() -> None:
    """Have no library of this process, or of those that it starts, make a call of its own over the network."""
    os.environ.update(OFFLINE)
    hub = sys.modules.get("huggingface_hub.constants")
    if hub is not None:  # it has read its variable already
        hub.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def close_folder(run: Folder) -> None:
    """Let nobody but its owner into a run folder on this machine, and into what is written from now on.

    Raises InputError where it is another's, and open.
    """
    os.umask(0o077)
    if run.path is None:
        return
    run.path.mkdir(parents=True, exist_ok=True)
    if stat.S_IMODE(run.path.stat().st_mode) & 0o077:
        with suppress(OSError):
            run.path.chmod(0o700)
        if stat.S_IMODE(run.path.stat().st_mode) & 0o077:
            raise InputError(
                f"{run}: others can look into it, and it cannot be made 0700 by this user, as tracking.privacy=strict "
                "asks; give a folder of your own"
            )


def without_places(value: Any) -> Any:
    """A plain config with every path, URL and address of a machine in it replaced: they are often named after people
    and hospitals.
    """
    if isinstance(value, dict):
        return {key: PLACE if key == "address" and item else without_places(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(item) for item in value]
    if isinstance(value, str) and any(mark in value for mark in ("/", "\\", "~")):
        return PLACE
    return value


def remove_logs(directory: str | None) -> None:
    """Remove W&B's own logs of a run, which name paths, host and user; its curves stay."""
    if directory is not None:
        shutil.rmtree(Path(directory) / "logs", ignore_errors=True)
        for link in Path(directory).parent.glob("debug*.log"):
            link.unlink(missing_ok=True)
