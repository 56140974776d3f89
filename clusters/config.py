"""One run is one typed, frozen object: defaults, then a YAML file, then `key=value` on the command line.

    run = load_config(PretrainConfig, ["recipe.yaml", "data=/data/ham", "stages.0.epochs=5"])

Unknown keys are refused with their path and the nearest name that exists.
"""

import difflib
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticUndefined

from clusters.config_fields import alternatives, known_keys, listed_default, meaning, takes_text


class InputError(ValueError):
    """Bad input from a person: one line that says what, where and how to mend it."""


class Transient(InputError):
    """What may be over when it is tried again (memory that ran out): Ray's workers do, up to cluster.max_failures."""


class Config(BaseModel):
    """Base of every config: frozen, strict about names, each field described with its unit.

    `alternatives`: keys that say the same thing in different ways, of which the one given last on the command line
    counts.
    """

    alternatives: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


C = TypeVar("C", bound=Config)


def load_config(kind: type[C], argv: Sequence[str]) -> C:
    """Read `[FILE.yaml] key=value …` into a validated config.

    Dotted keys reach into sections and lists (`cluster.num_workers=2`, `stages.1.epochs=10`).
    Raises InputError for a file that is not there, a word that is not `key=value`, or a value or
    key that the config does not take.
    """
    values: dict[str, Any] = {}
    source = "the command line"
    overrides = list(argv)
    if overrides and ("=" not in overrides[0] or "/" in overrides[0].partition("=")[0]):
        source = overrides.pop(0)
        values = _read_yaml(source)
    for word in overrides:
        key, separator, text = word.partition("=")
        if not separator or not key:
            raise InputError(f"'{word}' is not key=value; see --help for the keys")
        path = key.split(".")
        value = text if takes_text(kind, path, listed=text.startswith("[")) else _parse_value(text)
        _assign(kind, values, key, value)
        for other in alternatives(kind, path) if value is not None else ():
            _assign(kind, values, other, None)
    return validate(kind, values, source, {word.partition("=")[0] for word in overrides})


def validate(kind: type[C], values: dict[str, Any], source: str, typed: Collection[str] = ()) -> C:
    """Build the config, or raise InputError naming the first offending key and where it stands.

    `typed` are dotted keys that come from the command line rather than from `source`.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(kind, values, error, source, typed)) from None


def absolute(location: str) -> str:
    """Make a local path absolute; leave a URL (`s3://…`) as it is.

    Under a Ray job a relative path would vanish with the job's working directory: refused.
    """
    if "://" in location:
        return location
    path = Path(location).expanduser()
    if not path.is_absolute() and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise InputError(
            f"'{location}' is relative and would vanish with the Ray job's working directory; "
            "give an absolute path on shared storage or a URL"
        )
    return str(path.absolute())


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every leaf in which two plain config dumps differ."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def nearest(name: str, known: Sequence[str], count: int = 1) -> str:
    """A ` (nearest: …)` hint of at most so many names, or an empty string where nothing is close."""
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    return f" (nearest: {', '.join(close)})" if close else ""


def _read_yaml(location: str) -> dict[str, Any]:
    path = Path(location)
    if not path.is_file():
        raise InputError(f"{location}: no such recipe file; the recipes lie in */recipes/*.yaml")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{location}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{location}: expected key: value lines, found a {type(values).__name__}")
    return values


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error: the first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key '{key}' stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def _parse_value(text: str) -> Any:
    """Read a value as YAML would, except that an e-notation number without a dot is a number too."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    if isinstance(value, str):
        try:
            return float(value) if value[:1] in "+-.0123456789" else value
        except ValueError:
            return value
    return value


def _assign(kind: type[Config], values: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    node: Any = values
    for depth, part in enumerate(path):
        if isinstance(node, list):
            node = node[_list_position(node, part, dotted)]
        else:
            if part not in node:
                node[part] = _begun(kind, [*path, last], depth)
            node = node[part]
        if not isinstance(node, (dict, list)):
            raise InputError(f"{dotted}: '{'.'.join(path[: depth + 1])}' is a value, not a section")
    if isinstance(node, list):
        node[_list_position(node, last, dotted)] = value
    else:
        node[last] = value


def _begun(kind: type[Config], path: list[str], depth: int) -> dict[str, Any] | list[Any]:
    """What a key is set in where nobody has given that part of its path yet: a list's default, or an empty section."""
    name, place = ".".join(path[: depth + 1]), path[depth + 1]
    default = listed_default(kind, path[: depth + 1]) if place.isdigit() else None
    if default is not None and int(place) >= len(default):
        has = f"the default of '{name}' has {len(default)}" if default else f"'{name}' has none by default"
        raise InputError(f"{'.'.join(path)}: there is no place {place}, since {has}; give all of it as {name}=[…]")
    return {} if default is None else default


def _list_position(node: list[Any], part: str, dotted: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise InputError(f"{dotted}: '{part}' is not a place in a list of {len(node)} (0 to {len(node) - 1})")
    return int(part)


def _explain(
    kind: type[Config], values: dict[str, Any], error: ValidationError, source: str, typed: Collection[str]
) -> str:
    first = error.errors()[0]
    location = [part for part in first["loc"] if not _is_variant_tag(part, values, first["loc"])]
    key = ".".join(str(part) for part in location) or "config"
    if any(f"{key}.".startswith(f"{word}.") or word.startswith(f"{key}.") for word in typed):
        source = "the command line"
    if first["type"] == "extra_forbidden":
        known, last = known_keys(kind), str(location[-1])
        hint = " (a key of other sections, not of this one)" if last in known else nearest(last, sorted(known))
        return f"unknown key '{key}' in {source}{hint}"
    if first["type"] == "missing":
        told = meaning(kind, [str(part) for part in location])
        return f"'{key}' is missing in {source}; add {key}=…" + (f" ({key}: {told})" if told else "")
    if first["type"] == "union_tag_invalid":
        told = first.get("ctx", {})
        there = f"there is no {told['discriminator'].strip(chr(39))} '{told['tag']}'; there are {told['expected_tags']}"
        return f"'{key}' in {source}: {there}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first.get("input"), dict) else f" (got {short(first.get('input'))})"
    return f"'{key}' in {source}: {message}{got}"


def _is_variant_tag(part: Any, values: dict[str, Any], location: tuple[Any, ...]) -> bool:
    """Pydantic puts the tag of a chosen variant (`simclr`) into the path; a person never typed it."""
    node: Any = values
    for step in location:
        if step is part:
            return isinstance(node, dict) and part not in node and part in node.values()
        try:
            node = node[step]
        except (KeyError, IndexError, TypeError):
            if not (isinstance(node, dict) and step in node.values()):
                return False
    return False


def short(value: Any) -> str:
    """A value on one line of at most 60 characters."""
    if value is PydanticUndefined or value is None:
        return "none"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
