"""From the labels of a dataset to the task of a study and its truth.

Shapes: N images, L labels of the dataset, K columns of the task.
"""

from typing import Any

import numpy as np

from clusters.config import InputError, nearest
from data.dataset import Dataset
from data.uncertain import Policy, labels_under_policy, no_such_label
from finetune.bootstrap import Floats
from finetune.config import FinetuneConfig
from finetune.label_map import label_names, likeliest, mapped_truth, theirs
from finetune.regression import Regression
from finetune.tasks import TASKS, Binary, Task
from finetune.two_heads import TwoHeads


def study_of(dataset: Dataset, config: FinetuneConfig) -> tuple[Task, Floats]:
    """The task and its truth, float (N, K) for all images of the dataset, NaN where unknown.

    The policy for doubtful labels holds in the training split; elsewhere they are unknown, since a figure must
    not rest on a guess. `label` picks one label, or sets one class against the rest; `numbers` adds a head for
    measurements. Raises InputError for labels or numbers that are not there.
    """
    if config.label is not None and config.labels is not None:
        raise InputError("label= picks one label and labels= several; give one of the two")
    task, truth = _one_label(dataset, config) if config.label is not None else _labels(dataset, config)
    if not config.numbers:
        return task, truth
    _check_names(task, config.numbers)
    for name in config.numbers:
        if name not in dataset.number_names:
            raise InputError(
                f"numbers: {dataset.location} has no number '{name}'{nearest(name, dataset.number_names)}; it has "
                f"{', '.join(dataset.number_names) or 'none'}, and source=table imports some with numbers=COLUMN"
            )
    numbers = np.stack([dataset.column(f"number.{name}") for name in config.numbers], axis=1)
    return TwoHeads(task, Regression(config.numbers)), np.concatenate([truth, numbers], axis=1)


def task_from(description: dict[str, Any]) -> Task:
    """The task that `Task.describe` told."""
    if description["kind"] == TwoHeads.kind:
        labels, numbers = (task_from(part) for part in description["parts"])
        assert isinstance(numbers, Regression)
        return TwoHeads(labels, numbers)
    if description["kind"] == Regression.kind:
        return Regression(description["labels"], description["mean"], description["scale"])
    return TASKS[description["kind"]](description["labels"])


def _check_names(task: Task, numbers: list[str]) -> None:
    """Figures and columns go by names. Raises InputError where two of the study would have one."""
    for place, name in enumerate(numbers):
        if name in task.label_names:
            raise InputError(
                f"numbers: '{name}' is a label of the study too, and figures go by names; leave it out of numbers=, "
                "choose other labels, or import one of the two columns under another name"
            )
        if name in numbers[:place]:
            raise InputError(f"numbers: '{name}' stands there twice; give each name once")


def _labels(dataset: Dataset, config: FinetuneConfig) -> tuple[Task, Floats]:
    """All labels, or those that `labels` chooses."""
    if dataset.task not in TASKS or not dataset.label_names:
        raise InputError(
            f"{dataset.location}: its task is '{dataset.task}', and fine-tuning takes {', '.join(TASKS)} labels; "
            "import it again with a label column"
        )
    names = label_names(dataset, config.labels)
    exclusive = dataset.task == "multiclass"
    if exclusive and len(names) == 1:
        raise InputError(f"labels: one class leaves nothing to decide; label={names[0]} sets it against the rest")
    kind = "multiclass" if exclusive else "multilabel" if len(names) > 1 else "binary"
    truth = mapped_truth(dataset, _decided(dataset, config, names), names, config.label_map, exclusive)
    return TASKS[kind](list(names)), truth


def _one_label(dataset: Dataset, config: FinetuneConfig) -> tuple[Task, Floats]:
    """One label, yes or no; of classes, one against the rest."""
    name = str(config.label)
    if name not in dataset.label_names and name not in config.label_map.values():
        raise InputError(f"label: {no_such_label(dataset, name)}")
    truth = _decided(dataset, config, [name])
    if dataset.task == "multiclass":  # a soft label is one class
        truth = likeliest(truth, dataset.label_names, config.label_map)
    return Binary([name]), mapped_truth(dataset, truth, [name], config.label_map, exclusive=False)


def _decided(dataset: Dataset, config: FinetuneConfig, names: tuple[str, ...] | list[str]) -> Floats:
    """The dataset's labels (N, L), the doubtful ones decided in the training split alone."""
    policy = config.uncertain
    if isinstance(policy, dict):  # written for our names
        found = theirs(dataset, names, config.label_map)
        translated: dict[str, Policy] = {}
        for name, chosen in policy.items():
            translated |= dict.fromkeys(found.get(name, [name]), chosen)
        policy = translated
    truth = labels_under_policy(dataset, policy, config.seed_of_labels)
    elsewhere = dataset.column("split") != "train"
    truth[elsewhere] = dataset.labels[elsewhere]
    return truth
