"""What a config's classes say of a dotted key: its field, its meaning, its default, the keys beside it."""

import copy
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def config_classes(annotation: Any) -> list[type[BaseModel]]:
    """The config classes named in a field's type, through lists, unions and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (list, tuple, typing.Union, types.UnionType, typing.Annotated):
        return [found for part in typing.get_args(annotation) for found in config_classes(part)]
    return []


def known_keys(kind: type[BaseModel]) -> set[str]:
    """The names of all fields, of sections within too."""
    keys: set[str] = set()
    for name, field in kind.model_fields.items():
        keys.add(name)
        for variant in config_classes(field.annotation):
            keys |= known_keys(variant)
    return keys


def alternatives(kind: type[BaseModel], path: list[str]) -> list[str]:
    """The dotted keys that a key on the command line stands in for (`Config.alternatives`)."""
    sections = _sections_at(kind, path[:-1])
    groups = {section.alternatives for section in sections if path[-1] in section.alternatives}  # type: ignore[attr-defined]
    return [".".join([*path[:-1], other]) for group in groups for other in group if other != path[-1]]


def takes_text(kind: type[BaseModel], path: list[str], listed: bool) -> bool:
    """Whether a field is text, so that what was typed (a path with a #, a name like 2024) is taken as it is.

    `listed`: what was typed opens as a list does, which a field of one text or several takes as one.
    """
    field = kind.model_fields.get(path[0])
    if field is None or (len(path) > 1 and path[1].isdigit()):
        return False
    if len(path) > 1:
        return any(takes_text(section, path[1:], listed) for section in config_classes(field.annotation))
    return field.annotation is str or (field.annotation == str | list[str] and not listed)


def meaning(kind: type[BaseModel], path: Sequence[str]) -> str:
    """The description of the field that a dotted key names, on one line; empty where there is none."""
    found = [field.description for field in _fields_at(kind, path) if field.is_required() and field.description]
    return " ".join(found[0].split()) if found else ""


def listed_default(kind: type[BaseModel], path: Sequence[str]) -> list[Any] | None:
    """The default of a list, as a recipe would give it; empty where it has none; none where the field is no list."""
    fields = [field for field in _fields_at(kind, path) if _is_list(field.annotation)]
    if not fields:
        return None
    defaults = [_as_given(field.get_default(call_default_factory=True)) for field in fields]  # type: ignore[call-arg]
    same = all(default == defaults[0] for default in defaults)  # of several kinds of section each may have its own
    return defaults[0] if same and isinstance(defaults[0], list) else []


def _as_given(value: Any) -> Any:
    """What was given to make a default, and of which kind it is: of another kind the rest would not be its own."""
    if isinstance(value, BaseModel):
        tags = {name for name, field in type(value).model_fields.items() if _is_tag(field.annotation)}
        return {name: _as_given(part) for name, part in value if name in value.model_fields_set | tags}
    return [_as_given(part) for part in value] if isinstance(value, (list, tuple)) else copy.deepcopy(value)


def _is_tag(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal and len(typing.get_args(annotation)) == 1


def _is_list(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return any(_is_list(part) for part in typing.get_args(annotation))
    return origin in (list, tuple)


def _fields_at(kind: type[BaseModel], path: Sequence[str]) -> list[FieldInfo]:
    """The fields that a dotted key may mean: several where a section is of one of several kinds, as stages are."""
    sections = _sections_at(kind, path[:-1])
    return [section.model_fields[path[-1]] for section in sections if path[-1] in section.model_fields]


def _sections_at(kind: type[BaseModel], path: Sequence[str]) -> list[type[BaseModel]]:
    sections = [kind]
    for name in path:
        if not name.isdigit():
            fields = [section.model_fields[name] for section in sections if name in section.model_fields]
            sections = [found for field in fields for found in config_classes(field.annotation)]
    return sections
