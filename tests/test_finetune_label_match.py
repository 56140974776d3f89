"""Labels of another dataset in those of a model: by name, by map, and refused with the map to write."""

import re
from typing import Any, cast

import numpy as np
import pytest

from clusters.config import InputError
from data.dataset import Dataset
from finetune.label_match import match_labels


class Told:
    """What matching asks of a dataset, without the images."""

    location = "/data/theirs"

    def __init__(self, task: str, label_names: list[str], labels: Any) -> None:
        self.task, self.label_names, self.labels = task, label_names, np.array(labels, dtype=np.float32)


def match(dataset: Told, ours: list[str], exclusive: bool, **label_map: str):
    return match_labels(cast(Dataset, dataset), ours, exclusive, label_map)


CLASSES = Told(
    "multiclass", ["mel", "nevus", "psoriasis"], [[1, 0, 0], [0, 1, 0], [0, 0, 1], [np.nan] * 3, [0.3, 0.6, 0.1]]
)


def test_classes_are_matched_by_name_and_by_map_and_unseen_ones_are_set_apart():
    found = match(CLASSES, ["bcc", "mel", "nv"], True, nevus="nv", psoriasis="unseen")
    expected = [[0, 1, 0], [0, 0, 1], [np.nan] * 3, [np.nan] * 3, [0, 0, 1]]
    assert np.array_equal(found.truth_IK, expected, equal_nan=True)
    assert found.unseen_I.tolist() == [False, False, True, False, False]
    assert found.absent == ("bcc",)
    assert found.label_map == {"mel": "mel", "nevus": "nv", "psoriasis": "unseen"}
    ignored = match(CLASSES, ["mel", "nv"], True, nevus="nv", psoriasis="ignore")
    assert np.isnan(ignored.truth_IK[2]).all()
    assert not ignored.unseen_I.any()


def test_a_mismatch_shows_both_lists_and_the_map_to_write():
    with pytest.raises(InputError) as caught:
        match(CLASSES, ["mel", "nv"], True)
    message = str(caught.value)
    assert "/data/theirs has mel, nevus, psoriasis; the model has mel, nv" in message
    assert "label_map='{nevus: OURS, psoriasis: OURS}'" in message
    assert "unseen" in message
    assert "\n" not in message
    with pytest.raises(InputError, match=re.escape("'nv' is no label of theirs; /data/theirs has mel")):
        match(CLASSES, ["mel", "nv"], True, nv="nevus")
    with pytest.raises(InputError, match="'naevus' is no label of ours"):
        match(CLASSES, ["mel", "nv"], True, nevus="naevus")


def test_one_label_against_the_rest_of_their_classes():
    found = match(CLASSES, ["mel"], False)
    assert np.array_equal(found.truth_IK[:, 0], [1, 0, 0, np.nan, 0], equal_nan=True)
    found = match(CLASSES, ["mel"], False, psoriasis="unseen")
    assert np.array_equal(found.truth_IK[:, 0], [1, 0, np.nan, np.nan, 0], equal_nan=True)


def test_yes_or_no_labels_of_theirs_join_into_one_of_ours():
    nan = np.nan
    told = Told(
        "multilabel", ["Mass", "Nodule", "Hernia"], [[0, 0, 1], [0, 1, 0], [nan, 1, 0], [nan, 0, nan], [0, 0, 0]]
    )
    found = match(told, ["Lesion", "Edema"], False, Mass="Lesion", Nodule="Lesion", Hernia="unseen")
    assert np.array_equal(found.truth_IK[:, 0], [0, 1, 1, nan, 0], equal_nan=True)
    assert np.isnan(found.truth_IK[:, 1]).all()
    assert found.absent == ("Edema",)
    assert found.unseen_I.tolist() == [True, False, False, False, False]


def test_a_label_that_may_be_theirs_by_another_name_is_asked_for():
    told = Told("multilabel", ["Effusion", "Edema"], [[0, 1]])
    with pytest.raises(InputError, match=re.escape("the model has Pleural Effusion, Edema")):
        match(told, ["Pleural Effusion", "Edema"], False)
    found = match(told, ["Pleural Effusion", "Edema"], False, Effusion="Pleural Effusion")
    assert found.truth_IK.tolist() == [[0, 1]]
    extra = Told("multilabel", ["Hernia", "Edema"], [[0, 1]])
    assert match(extra, ["Edema"], False).truth_IK.tolist() == [[1]]


def test_yes_or_no_labels_cannot_stand_for_classes():
    told = Told("multilabel", ["mel", "nv"], [[0, 1]])
    with pytest.raises(InputError, match="label=NAME"):
        match(told, ["mel", "nv"], True)
    with pytest.raises(InputError, match="do not match"):
        match(Told("unlabelled", [], np.zeros((2, 0))), ["mel"], False)
