"""`python -m pretrain doctor RUN [RECIPE.yaml key=value …]`: what of a run can be resumed, and why. Reads only."""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from clusters.checkpoint_files import CHECKPOINTS, gone, names, without_commit
from clusters.checkpoint_listing import Listed, list_checkpoints
from clusters.checkpoint_policy import CheckpointConfig
from clusters.config import InputError, differences, load_config
from clusters.lease import LEASE, STALE_S
from clusters.runs import holder_of
from clusters.storage import Folder
from clusters.versions import versions_here
from pretrain.config import PretrainConfig
from pretrain.encoder_harm import foreign_encoder, harm_at_the_top, harm_of
from pretrain.run import weights_that_are_gone, where_views_are_finished, with_absolute_locations
from pretrain.stage_folder import finished, harm_of_heads, other_code, stages_on_disk, stored_config

FREE = "cluster, tracking, loader, checkpoint and probe may change"


def doctor(argv: Sequence[str]) -> Iterator[str]:
    """Say of each stage what is there and what the next start would do; then what a recipe would change, if given.

    Raises InputError where nothing can be resumed, where the recipe would be refused, and where another run is at work.
    """
    if not argv or argv[0].startswith("-") or not _is_place(argv[0]):
        raise InputError("doctor: name the run folder first, such as python -m pretrain doctor /runs/ham")
    run = Folder(argv[0])
    at_work = yield from _who_is_at_work(run)
    stages = _stages(run)
    if not stages:
        raise InputError(at_work or f"{run}: no stage that Manyview wrote; name the folder that was given as run=")
    broken, begun = [], True
    for place, (name, config) in enumerate(stages):
        lines, problem, begun = _judge(run / name, name, config, begun)
        yield from lines
        broken += [problem] if problem else []
        broken += [harm] if begun and (harm := _harm_for_the_next(run, [*stages[place:], None])) else []
        if not begun and place + 1 < len(stages):
            yield f"{stages[place + 1][0]}: would be done after {name}"
    foreign = foreign_encoder(run)
    yield from _what_follows(run, stages, begun and foreign is None)
    broken += [foreign] if foreign else []
    if broken:
        raise InputError(f"{run}: {'; '.join(broken)}")
    if len(argv) > 1:
        yield from _compare(run, stages, argv[1:])
    if at_work:
        raise InputError(at_work)


def _is_place(word: str) -> bool:
    """Whether a word is a folder or URL rather than key=value; a path may hold a = too (`/runs/lr=0.1`)."""
    before, equals, _ = word.partition("=")
    return not equals or "/" in before or Path(word).is_dir()


def _who_is_at_work(run: Folder) -> Generator[str, None, str | None]:
    """Say who holds the run folder, or may; returns why a start would be refused, where it is known that it would."""
    if run.exists(LEASE):
        yield f"{run}: a run left a lease there; looking for {STALE_S:g} s at most whether it lives"
    holder = holder_of(run, STALE_S)
    if holder is None:
        return None
    if not holder.is_certain:
        yield (
            f"{run}: another run may be at work in this folder ({holder.name}), which cannot be told from here; a "
            "start would be refused while it is"
        )
        return None
    yield f"{run}: another run is at work in this folder ({holder.name}); what follows is for a start after its end"
    return (
        f"{run}: a start would be refused, for another run is at work in this folder ({holder.name}); wait for its "
        "end, or stop it first"
    )


def _stages(run: Folder) -> list[tuple[str, dict[str, Any]]]:
    """Name and config.json of the stages on disk, in their order."""
    found = [(name, stored_config(run / name)) for _, name in sorted(stages_on_disk(run).items())]
    for name, stored in found:
        if stored is None:
            raise InputError(
                f"{run / name}: config.json is gone or damaged; restore it from a backup, or remove the stage's folder "
                "and those after it to do them again"
            )
    return [(name, stored) for name, stored in found if stored is not None]


def _judge(folder: Folder, name: str, config: dict[str, Any], reached: bool) -> tuple[list[str], str | None, bool]:
    """Lines about a stage, what hinders it if anything does, and whether the stages after it can begin."""
    try:
        ended = finished(folder)
    except InputError as error:
        return [str(error)], str(error), False
    if ended is not None:
        harm = harm_of(folder / "encoder", ended.encoder)
        if harm:
            problem = f"{name} is marked finished and {harm}; remove {folder} to do it again"
            return [f"{name}: {problem}"], problem, False
        return [f"{name}: finished at step {ended.steps}; would be reused as it is"], None, True
    checkpoints = list_checkpoints(folder, _policy(config))
    lines = [f"{name}: not finished, {len(checkpoints)} checkpoint{'s' * (len(checkpoints) != 1)}"]
    lines += [f"  {one.name}  {one.size_bytes} bytes  {_state_of(one)}" for one in checkpoints]
    whole = next((one for one in checkpoints if one.problem is None), None)
    if whole is not None:
        lines.append(f"{name}: would go on from {whole.name}{_passed_over(checkpoints, whole)}")
        lines += [f"{name}: {said}"] if (said := other_code(folder, versions_here())) else []
        return lines, None, False
    if any(one.committed for one in checkpoints):
        problem = f"none of the checkpoints of {name} is intact; restore one from a backup, or remove {folder}"
        return [*lines, f"{name}: {problem}"], problem, False
    if problem := without_commit(folder / CHECKPOINTS) or gone(folder):
        return [*lines, f"{name}: {problem}"], problem, False
    lines.append(f"{name}: would start from step 0, since nothing was saved yet")
    return lines, None, False


def _harm_for_the_next(run: Folder, stages: list[Any]) -> str | None:
    """What is wrong with the heads of a finished stage, if the next one has still to start from them."""
    (name, config), following = stages[0], stages[1]
    planned = len((config.get("config") or {}).get("stages", []))
    if following is None and int(name.partition("-")[0]) >= planned:
        return None
    if following is not None and (finished(run / following[0]) or names(run / following[0] / CHECKPOINTS)):
        return None
    harm = harm_of_heads(run / name)
    return harm and f"{name} is marked finished and {harm}; restore it, or remove {run / name} to do it again"


def _policy(config: dict[str, Any]) -> CheckpointConfig:
    """What the stage was last told to keep; settings that this Manyview does not know are left out."""
    told = (config.get("config") or {}).get("checkpoint") or {}
    return CheckpointConfig(**{name: told[name] for name in CheckpointConfig.model_fields if name in told})


def _state_of(one: Listed) -> str:
    """Whether a checkpoint is whole, and what it is kept for."""
    if one.problem is not None:
        return one.problem
    return f"intact: every hash holds; {'kept as ' + ' and '.join(one.kept) if one.kept else 'goes with the next save'}"


def _passed_over(checkpoints: list[Listed], whole: Listed) -> str:
    place = checkpoints.index(whole)  # the newest come first, but for those that were set aside
    newer = [one.name for at, one in enumerate(checkpoints) if at < place or one.step > whole.step]
    return f", passing over {', '.join(newer)}" if newer else ""


def _what_follows(run: Folder, stages: list[tuple[str, dict[str, Any]]], ended: bool) -> Iterator[str]:
    config, identity = stages[-1][1].get("config", {}), stages[0][1]["identity"]
    planned = [f"{n + 1}-{stage['method']}" for n, stage in enumerate(config.get("stages", []))]
    for name in planned[len(stages) :]:
        yield f"{name}: not begun"
    if ended and not planned[len(stages) :]:
        last, identified = stages[-1][0], finished(run / stages[-1][0])
        harm = harm_at_the_top(run, last, identified.encoder) if identified is not None else None
        would = f"{harm}: it would be copied from {last}" if harm else "nothing is left to do"
        yield f"all stages are finished; {would}"
    yield f"refused with another: {', '.join(sorted(key for key in identity if key != 'previous_encoder'))}; {FREE}"


def _compare(run: Folder, stages: list[tuple[str, dict[str, Any]]], argv: Sequence[str]) -> Iterator[str]:
    """Whether the run would go on with this recipe; the dataset is compared where it can be opened."""
    recorded = stages[0][1].get("config", {})
    given = {word.partition("=")[0] for word in argv}
    data = recorded.get("data", "")
    words = [] if "data" in given else [f"data={data if isinstance(data, str) else '[' + ','.join(data) + ']'}"]
    config = with_absolute_locations(load_config(PretrainConfig, [*argv, *words, f"run={run.location}"]))
    began_from = weights_that_are_gone(config, run)
    previous: str | None = None
    for number, (name, stored) in enumerate(stages):
        before = stored["identity"]
        if number >= len(config.stages) or config.stage_name(number) != name:
            asked = config.stage_name(number) if number < len(config.stages) else "none"
            raise InputError(
                f"{run}: refused: stage {number + 1}: {name} -> {asked}; set on_change=redo, or another run="
            )
        now = config.stage_identity(number, _dataset(config, before), previous, began_from)
        changed = differences(before, now)
        if changed:
            raise InputError(f"{run / name}: refused: {'; '.join(changed)}; set on_change=redo, or give another run=")
        folder = run / name
        ended = finished(folder)
        if ended is None:
            where_views_are_finished(config, folder)  # refused where they were finished elsewhere before
        yield f"{name}: this recipe changes nothing that decides the result"
        if ended is None:
            return
        previous = ended.encoder


def _dataset(config: PretrainConfig, before: dict[str, Any]) -> Any:
    """The dataset's identity today."""
    from data.combined import open_datasets
    from pretrain.leakage import pretraining_rows
    from pretrain.run import dataset_identity

    dataset = open_datasets(config.locations, config.weights, config.loader.place)
    return dataset_identity(dataset, pretraining_rows(dataset, config), config)
