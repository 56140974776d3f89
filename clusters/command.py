"""What every command line has: its exit codes, and a help that is made from the config's fields."""

import os
import sys
import typing
from collections.abc import Callable, Sequence

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from clusters import security
from clusters.config import Config, InputError, short
from clusters.config_fields import config_classes


def run_main(command: Callable[[Sequence[str]], None], argv: Sequence[str], help_text: Callable[[], str]) -> None:
    """Run a command line: help on request, one clear line and exit code 2 on bad input.

    As a job on a Ray that strangers can use nothing is run (`clusters.security`).
    """
    try:
        if not argv or argv[0] in ("--help", "-h", "help") or "--help" in argv:
            print(help_text(), flush=True)
            sys.exit(0 if argv else 2)
        security.guard_job()
        command(argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would complain once more at its end
        sys.exit(141)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"error: {where}{error.strerror or error}; check that the place exists and is yours to use", file=sys.stderr
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what is done", file=sys.stderr)
        sys.exit(130)


def describe(kind: type[Config], prefix: str = "") -> str:
    """Every field as `key  default  meaning`, nested sections included: the body of `--help`.

    What all kinds of a section have (the stages of all methods) stands once, before what each has of its own; a
    section that a whole run has too (views) is described there and only pointed to within.
    """
    return "\n".join(_described(kind, prefix, frozenset(), {}))


def _described(
    kind: type[BaseModel], prefix: str, left_out: frozenset[str], places: dict[type[BaseModel], str]
) -> list[str]:
    """`left_out`: fields told already. `places`: where each section of the top was described, by its class."""
    lines, sections = [], []
    for name, field in kind.model_fields.items():
        key = f"{prefix}{name}"
        variants = config_classes(field.annotation)
        if name in left_out:
            continue
        if not variants:
            default = "required" if field.is_required() else short(field.get_default(call_default_factory=True))
            lines.append(f"  {key:<34} {default:<16} {_meaning(field)}".rstrip())
        elif len(variants) == 1 and variants[0] in places:
            sections.append(f"\n  {key}: {field.description}; its keys are those of {places[variants[0]]}.")
        else:
            in_list = typing.get_origin(field.annotation) in (list, tuple)
            path = f"{key}.i" if in_list else key
            sections += _described_section(path, key + "[i]" * in_list, field, variants, places)
            if not prefix and not in_list:
                places[variants[0]] = key
    return lines + sections  # what stands under a section's title belongs to it


def _described_section(
    path: str, title: str, field: FieldInfo, variants: list[type[BaseModel]], places: dict[type[BaseModel], str]
) -> list[str]:
    shared = _shared_fields(variants)
    lines = []
    if shared:
        lines.append(f"\n  {title}: {field.description}")
        others = frozenset(variants[0].model_fields) - shared
        lines += _described(variants[0], f"{path}.", others, places)
    for variant in variants:
        lines.append(f"\n  {title}: {(variant.__doc__ or '').strip().splitlines()[0]}")
        lines += _described(variant, f"{path}.", shared, places)
    return lines


def _shared_fields(variants: list[type[BaseModel]]) -> frozenset[str]:
    """The fields that several classes have with the same type, default and meaning; none of one class alone."""
    first, *others = variants
    same = (
        name
        for name, field in first.model_fields.items()
        if others and all(repr(other.model_fields.get(name)) == repr(field) for other in others)
    )
    return frozenset(same)


def _meaning(field: FieldInfo) -> str:
    """A field's description, with the choices that it does not name itself."""
    text = field.description or ""
    choices = [str(choice) for choice in typing.get_args(field.annotation) if isinstance(choice, str)]
    default = field.get_default(call_default_factory=True)
    if any(choice not in text for choice in choices if choice != default):
        return f"{text} ({' | '.join(choices)})"
    return text
