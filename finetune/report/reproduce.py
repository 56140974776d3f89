"""The command that gives these results again, without telling where anything lay."""

import shlex
from typing import Any

import yaml

from clusters.versions import MANYVIEW
from data.page import Html, join, pairs, paragraph, tag
from finetune.made_with import changed
from finetune.report.words import Results

NUM_FIRST = 6
"""Words of the command that stand on its first line; each of the others has its own."""


def reproduce(results: Results, config: dict[str, Any] | None) -> Html:
    """The command, what its capital words stand for, and the versions. `config` is that of `config.json`."""
    words, places = command(results, config)
    shown = " \\\n    ".join([shlex.join(words[:NUM_FIRST]), *(shlex.quote(word) for word in words[NUM_FIRST:])])
    parts = [
        tag("pre", shown, {"class": "command", "tabindex": 0}),
        pairs({word: tag("code", what) for word, what in places.items()}),
        *map(paragraph, _promised(results)),
    ]
    return join(parts)


def _promised(results: Results) -> list[str]:
    """With what the command gives the same figures, and whether this page was made with something else."""
    noted: dict[str, str] = results["versions"]
    named = {MANYVIEW: "Manyview's sources (a hash of them)"}
    told = [f"{named.get(name, name)} {version}" for name, version in noted.items() if version != "missing"]
    sources = "" if MANYVIEW in noted else " and the same sources of Manyview, which were not noted then"
    texts = [
        "On a processor of the same kind, with as many threads, the same command on the same data and encoder gives "
        f"the same figures with these versions{sources}: {', '.join(told)}. Elsewhere the last bits of sums may "
        "differ, and what is trained on a GPU may differ by more."
    ]
    if others := changed(noted):
        texts.append(f"This page was made from those figures with other code: {'; '.join(others)}.")
    return texts


def command(results: Results, config: dict[str, Any] | None) -> tuple[list[str], dict[str, str]]:
    """The words of the command, and what each of its capital words stands for."""
    identity, dataset = results["identity"], results["dataset"]
    told = {"DATA": f"{dataset['name']}, dataset fingerprint {dataset['fingerprint']}"}
    if results.get("kind") == "external":
        settings = {**(identity.get("settings") or {}), **identity}
        given = {name: settings[name] for name in ("label_map", "splits", "seed", "bootstrap") if settings.get(name)}
        given |= {"foreign": False} if settings.get("foreign") is False else {}
        given |= {"on_leak": "warn"} if (config or {}).get("on_leak") == "warn" else {}
        model = identity.get("model")
        found = model.get("fingerprint", "") if isinstance(model, dict) else model
        told["RESULTS"] = f"the results folder of the model, fingerprint {found}" if found else "the model's results"
        words = ["python", "-m", "finetune", "evaluate", "RESULTS", "data=[DATA]", "out=OUT"]
        return words + _overrides(given, {}), told
    models = list(results["models"].values())
    told["ENCODER"] = f"{models[0]['title']}, encoder fingerprint {models[0]['fingerprint']}"
    words = ["python", "-m", "finetune", "data=DATA", "encoder=ENCODER", "out=OUT"]
    if config is not None:
        named, places = _baselines(config.get("baselines", []), models[1:])
        told.update(places)
        words.append(f"baselines=[{','.join(named)}]")
        words += ["on_leak=warn"] if config.get("on_leak") == "warn" else []
    return words + _overrides(identity["recipe"], _defaults()), told


def _defaults() -> dict[str, Any]:
    from finetune.config import FinetuneConfig

    return FinetuneConfig(data="DATA", encoder="ENCODER", out="OUT").model_dump(mode="json")


def _overrides(values: dict[str, Any], defaults: dict[str, Any], prefix: str = "") -> list[str]:
    """`key=value` of all that differs from the defaults, nested keys with dots."""
    words = []
    for key, value in values.items():
        usual = defaults.get(key)
        if isinstance(value, dict) and isinstance(usual, dict) and usual:
            words += _overrides(value, usual, f"{prefix}{key}.")
        elif key not in defaults or value != usual:
            shown = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
            words.append(f"{prefix}{key}={shown.removesuffix('...' + chr(10)).strip()}")
    return words


def _baselines(given: list[Any], models: list[dict[str, Any]]) -> tuple[list[str], dict[str, str]]:
    """Baselines by name, locations (`FOLDER`, `imagenet:FILE`) told by what lay there."""
    from finetune.contenders import names_published

    named, places = [], {}
    for number, baseline in enumerate(map(str, given)):
        word = f"BASELINE_{number + 1}"
        if "/" in baseline:
            named.append(f"{baseline.partition(':')[0]}:{word}" if names_published(baseline) else word)
            if number < len(models):
                model = models[number]
                places[word] = f"{model['title']}, fingerprint {model['fingerprint']}"
        else:
            named.append(baseline)
    return named, places
