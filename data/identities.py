"""Source ids → the ids that a dataset carries: as published, or keyed so that nobody can go back."""

import hashlib
import hmac
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from clusters.config import InputError
from data.config import ImportConfig
from data.splits import PUBLIC_SALT

# A dot would split a WebDataset key and merge two samples into one; anything else is for tar names.
KEY_PATTERN = re.compile(r"[a-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Identities:
    """Turns ids of the source into ids of the dataset, and holds the salt of the split.

    A hash of a hospital number without a secret is itself an identifier (it can be searched for), so
    keyed ids are HMAC-SHA256 with a key that stays outside the dataset.
    """

    keyed: bool
    id_key: bytes
    salt: str

    def case(self, source_id: str) -> str:
        """Key of a case. Raises InputError for a published id that cannot be one."""
        return self._name("case", source_id)

    def patient(self, source_id: str) -> str:
        """Id of a patient. Raises InputError for a published id that cannot be one."""
        return self._name("patient", source_id)

    def image(self, name: str, file: str) -> str:
        """What stands for an image in the plan: its name, which tells the file only where ids are published."""
        return f"{name}: {self._name('image', file)}" if self.keyed else name

    def _name(self, kind: str, source_id: str) -> str:
        if self.keyed:
            return hmac.new(self.id_key, f"{kind}:{source_id}".encode(), hashlib.sha256).hexdigest()[:20]
        name = source_id.lower()
        if not KEY_PATTERN.fullmatch(name):
            raise InputError(
                f"{kind} id '{source_id[:80]}' does not match [a-z0-9_-], 1 to 64 characters; use ids=keyed"
            )
        return name


def load_identities(config: ImportConfig) -> Identities:
    """The identities that the config asks for; makes the keyring on first use of ids=keyed.

    Raises InputError for a keyring inside the dataset folder or one that cannot be read.
    """
    if config.ids == "source":
        return Identities(keyed=False, id_key=b"", salt=PUBLIC_SALT)
    path = Path(config.keyring) if config.keyring else _default_keyring()
    if "://" not in config.out and path.resolve().is_relative_to(Path(config.out).resolve()):
        raise InputError(f"keyring {path} lies inside out=; whoever has the dataset would have the keys")
    if not path.exists():
        _make_keyring(path)
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
        return Identities(keyed=True, id_key=bytes.fromhex(keys["id_key"]), salt=keys["split_salt"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"keyring {path} is not a readable keyring (JSON with id_key and split_salt); "
            "restore it from a copy, or give keyring=NEW_FILE for new ids"
        ) from None


def _default_keyring() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "manyview" / "keyring.json"


def _make_keyring(path: Path) -> None:
    """Write new keys, readable by this user alone; a second process that is faster wins."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys = {"version": 1, "id_key": secrets.token_hex(32), "split_salt": secrets.token_hex(32)}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(keys, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
