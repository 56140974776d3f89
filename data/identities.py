"""Source ids → the ids that a dataset carries: as published, or keyed so that nobody can go back."""

import hmac
import json
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from clusters.config import InputError
from clusters.storage import Folder
from data.config import ImportConfig
from data.listing import say
from data.splits import PUBLIC_SALT, salt_id

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
    keyring: Path | None = None

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
            # Not every file name is Unicode: surrogates stand for the bytes that are not.
            told = f"{kind}:{source_id}".encode("utf-8", "surrogatepass")
            return hmac.digest(self.id_key, told, "sha256").hex()[:20]
        name = source_id.lower()
        if not KEY_PATTERN.fullmatch(name):
            shown = ascii(source_id if len(source_id) <= 80 else f"{source_id[:77]}...")
            raise InputError(f"{kind} id {shown} does not match [a-z0-9_-], 1 to 64 characters; use ids=keyed")
        return name


def load_identities(config: ImportConfig) -> Identities:
    """The identities that the config asks for; makes the keyring on first use of ids=keyed.

    Raises InputError for a keyring inside the dataset folder, one that others can read or that cannot be
    read, and one that is not that of the dataset in link=.
    """
    if config.ids == "source":
        identities = Identities(keyed=False, id_key=b"", salt=PUBLIC_SALT)
    else:
        path, out = keyring_path(config.keyring), Folder(config.out).path
        for place, what in ((path, "keyring"), (whois_folder(path), "the table of source ids beside the keyring,")):
            if out is not None and place.resolve().is_relative_to(out.resolve()):
                raise InputError(
                    f"{what} {place} lies inside out=; whoever has the dataset would have it: give another keyring="
                )
        if not path.exists():
            if config.link:
                raise InputError(
                    f"keyring {path} is not there, but link={config.link} was made with keyring "
                    f"{_linked(config)}; give keyring= the file that it was made with"
                )
            if _make_keyring(path):
                say(config, f"made the keyring {path}; keep a copy of it, without it no patient is known again")
        identities = read_keyring(path)
    if config.link and (theirs := _linked(config)) != salt_id(identities.salt):
        raise InputError(
            f"link={config.link} was made with keyring {theirs}, keyring {identities.keyring} is "
            f"{salt_id(identities.salt)}: no patient would be known again; give keyring= the file that it was made with"
        )
    return identities


def keyring_path(location: str) -> Path:
    """The keyring that the user names, or the user's own one."""
    if location:
        return Path(location)
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "manyview" / "keyring.json"


def whois_folder(keyring: Path) -> Path:
    """Where the tables lie that lead from keyed ids back to those of the source."""
    return keyring.with_name(f"{keyring.stem}-whois")


def read_keyring(path: Path) -> Identities:
    """The keys of a keyring. Raises InputError for one that others may read, that is damaged, or that is a folder."""
    if path.is_dir():
        raise InputError(f"keyring={path} is a folder; give a file in it, such as keyring={path / 'keyring.json'}")
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077 and _keeps_modes(path.parent):
            raise InputError(f"keyring {path} can be used by others (mode {mode:04o}); chmod 600 {path}")
        keys = json.loads(path.read_text(encoding="utf-8"))
        id_key, salt = bytes.fromhex(keys["id_key"]), keys["split_salt"]
        if len(id_key) < 16 or not isinstance(salt, str) or len(salt) < 16:
            raise ValueError("a key that can be guessed")
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"keyring {path} is not a readable keyring (JSON with id_key and split_salt); "
            "restore it from a copy, or give keyring=NEW_FILE for new ids"
        ) from None
    return Identities(keyed=True, id_key=id_key, salt=salt, keyring=path)


def _linked(config: ImportConfig) -> str:
    """Public name of the keyring of the dataset in link=. Raises InputError where its ids are of another kind."""
    from data.manifest import read_manifest  # which needs the plan, and that this module

    manifest = read_manifest(Folder(config.link))
    if manifest.ids != config.ids:
        raise InputError(
            f"link={config.link} has ids={manifest.ids}, this import {config.ids}; give ids={manifest.ids}"
        )
    return str(manifest.split["salt_id"])


def _keeps_modes(folder: Path) -> bool:
    """Whether files here have modes of their own: on FAT and some network disks all have the same one."""
    if os.name != "posix":
        return False
    probe = folder / f".{secrets.token_hex(8)}.probe"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError:
        return True
    try:
        return not stat.S_IMODE(probe.stat().st_mode) & 0o077
    finally:
        probe.unlink()


def _make_keyring(path: Path) -> bool:
    """Write new keys, readable by this user alone; False where a second process was faster, whose keys stay."""
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
        return False
    finally:
        temporary.unlink()
    return True
