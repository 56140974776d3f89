"""Labels of a dataset in those of a study or a model: by name, by map, and refused with the map to write."""

import re
import shlex
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clusters.config import Config, InputError, load_config
from data.dataset import Dataset
from finetune.config import FinetuneConfig
from finetune.label_map import LABEL_SETS, LabelMap, mapped_truth, match_labels, theirs

NIH = LABEL_SETS["nih14"]
NAN = float("nan")


def dataset(*names: str) -> Any:
    """What is asked of a dataset here: its place and its labels."""
    return SimpleNamespace(location="/data/nih", label_names=list(names))


def test_names_that_do_not_match_are_told_with_both_lists_and_the_map_to_write():
    with pytest.raises(InputError) as caught:
        theirs(dataset(*NIH), LABEL_SETS["chexpert5"], {})
    told = str(caught.value)
    assert "\n" not in told
    assert "/data/nih has no Pleural Effusion." in told
    assert f"Wanted: {', '.join(LABEL_SETS['chexpert5'])}. The dataset has: {', '.join(NIH)}." in told
    assert "Write 'label_map={Effusion: Pleural Effusion}'" in told
    # What it says to write in a shell is what is taken.
    (written,) = [word for word in shlex.split(told) if word.startswith("label_map=")]
    config = load_config(FinetuneConfig, ["data=/d", "encoder=/e", "out=/o", "labels=chexpert5", written])
    assert theirs(dataset(*NIH), LABEL_SETS["chexpert5"], config.label_map)["Pleural Effusion"] == ["Effusion"]


@pytest.mark.parametrize("label", ["Barrett's esophagus", "a: b", 'the "big" one', "no", "Ödem", "$HOME `ls`"])
def test_the_map_to_write_can_be_pasted_into_a_shell(label: str):
    """Whatever a label holds: a shell and YAML after it give back what was meant."""
    with pytest.raises(InputError) as caught:
        theirs(dataset(f"{label} x", "Mass"), [label], {})
    told = str(caught.value).split("Write ", 1)[1]
    written = shlex.split(told.removesuffix(" {theirs: ours}, if they mean the same"))
    config = load_config(FinetuneConfig, ["data=/d", "encoder=/e", "out=/o", *written])
    assert config.label_map == {f"{label} x": label}


class Mapped(Config):
    label_map: LabelMap


def test_a_colon_without_a_blank_is_no_map():
    with pytest.raises(InputError, match=r"write a blank after the colon: \{Melanom: BCC\}, not \{Melanom:BCC\}$"):
        load_config(Mapped, ["label_map={Melanom:BCC}"])
    assert load_config(Mapped, ["label_map={Melanom: BCC}"]).label_map == {"Melanom": "BCC"}


def test_a_label_without_a_counterpart_is_to_be_left_out():
    with pytest.raises(
        InputError, match=r"has no Edema, Rib fracture\..*Write 'label_map=\{edema: Edema\}'.*leave Rib"
    ):
        theirs(dataset("edema", "Mass"), ["Edema", "Rib fracture"], {})


@pytest.mark.parametrize(
    ("label_map", "told"),
    [
        ({"Efusion": "Edema"}, r"label_map: 'Efusion' \(nearest: Effusion\) is not known"),
        ({"Effusion": "Pleural effusion"}, r"label_map: 'Pleural effusion' is not known; it says \{theirs: ours\}"),
    ],
)
def test_a_map_of_unknown_names_is_refused(label_map: dict[str, str], told: str):
    with pytest.raises(InputError, match=told):
        theirs(dataset("Effusion", "Edema"), ["Edema"], label_map)


@pytest.mark.parametrize("word", ["labels=chexpert", "labels=[]", "labels=[Edema,Edema]"])
def test_labels_are_a_known_set_or_names(word: str):
    with pytest.raises(InputError, match="'labels'"):
        load_config(FinetuneConfig, ["data=/d", "encoder=/e", "out=/o", word])


def test_several_findings_of_theirs_may_be_one_of_ours():
    truth = np.array([[1, 0, 0], [0, 0, 1], [NAN, 1, 0], [NAN, 0, 0], [NAN, NAN, NAN]])
    found = mapped_truth(
        dataset("Nodule", "Mass", "Edema"), truth, ["Lesion", "Edema"], {"Nodule": "Lesion", "Mass": "Lesion"}, False
    )
    expected = [[1, 0], [0, 1], [1, 0], [NAN, 0], [NAN, NAN]]
    assert np.array_equal(found, np.array(expected), equal_nan=True)


def test_classes_are_joined_by_adding_and_a_row_of_another_class_is_unknown():
    shares = np.array([[0.5, 0.2, 0.3], [0.1, 0.2, 0.7], [0.2, 0.4, 0.4], [NAN] * 3])
    label_map = {"nevus": "benign", "melanoma": "malignant"}
    found = mapped_truth(dataset("nevus", "melanoma", "wart"), shares, ["benign", "malignant"], label_map, True)
    assert found[0] == pytest.approx([5 / 7, 2 / 7])
    assert np.isnan(found[1]).all() and np.isnan(found[3]).all()
    assert found[2] == pytest.approx([1 / 3, 2 / 3])  # as likely as the other class: it is ours


@given(arrays.arrays(np.float32, (6, 4), elements=st.sampled_from([0.0, 1.0, 0.25, NAN])), st.permutations("abcd"))
@settings(max_examples=50, deadline=None)
def test_without_a_map_labels_are_chosen_by_name(truth: np.ndarray, names: list[str]):
    found = mapped_truth(dataset(*"abcd"), truth, names[:3], {}, False)
    assert np.array_equal(found, truth[:, ["abcd".index(name) for name in names[:3]]], equal_nan=True)


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
    # The last row's shares are those of its known classes: 0.3 and 0.6 of 0.9.
    expected = [[0, 1, 0], [0, 0, 1], [np.nan] * 3, [np.nan] * 3, [0, 1 / 3, 2 / 3]]
    np.testing.assert_allclose(found.truth, expected, rtol=1e-6)
    assert found.unseen.tolist() == [False, False, True, False, False]
    assert found.absent == ("bcc",)
    assert found.label_map == {"mel": "mel", "nevus": "nv", "psoriasis": "unseen"}
    ignored = match(CLASSES, ["mel", "nv"], True, nevus="nv", psoriasis="ignore")
    assert np.isnan(ignored.truth[2]).all()
    assert not ignored.unseen.any()


def test_a_mismatch_shows_both_lists_and_the_map_to_write():
    with pytest.raises(InputError) as caught:
        match(CLASSES, ["melanoma", "nv"], True)
    message = str(caught.value)
    assert "labels of /data/theirs do not match the model's." in message
    assert "Wanted: melanoma, nv. The dataset has: mel, nevus, psoriasis." in message
    assert "Write 'label_map={mel: …}': each of theirs is a label of the model, 'unseen' (a condition" in message
    assert "one at least a label of the model" in message, "a map of none would be refused"
    assert "'ignore'" in message
    assert "\n" not in message
    with pytest.raises(InputError, match="Map one of its labels to one of the model's"):
        match(CLASSES, ["melanoma", "nv"], True, mel="unseen", nevus="unseen", psoriasis="unseen")
    with pytest.raises(InputError, match=re.escape("Write 'label_map={nevus: unseen, psoriasis: Psoriasis}'")):
        match(CLASSES, ["mel", "Psoriasis"], True)
    with pytest.raises(InputError, match=re.escape("'nv' (nearest: nevus) is not known; it says {theirs: ours}.")):
        match(CLASSES, ["mel", "nv"], True, nv="nevus")
    with pytest.raises(InputError, match=r"'unsen' \(nearest: unseen\) is not known"):
        match(CLASSES, ["mel", "nv"], True, nevus="unsen")


def test_one_map_serves_datasets_of_other_labels():
    """A name that only another dataset has means nothing here; one that none has is refused."""
    other = Told("multiclass", ["mel", "mole"], [[1, 0], [0, 1]])
    label_map = {"nevus": "nv", "psoriasis": "unseen", "mole": "nv"}
    for dataset in (CLASSES, other):
        own = {label: meant for label, meant in label_map.items() if label in dataset.label_names}
        found = match_labels(cast(Dataset, dataset), ["mel", "nv"], True, label_map, ["nevus", "psoriasis", "mole"])
        alone = match(dataset, ["mel", "nv"], True, **own)
        assert np.array_equal(found.truth, alone.truth, equal_nan=True)
        assert (found.label_map, found.absent) == (alone.label_map, alone.absent)
        with pytest.raises(InputError, match="'lupus' is not known"):
            match_labels(cast(Dataset, dataset), ["mel", "nv"], True, {"lupus": "unseen"}, ["nevus", "mole"])
    # A map of another dataset's labels alone says nothing of what is missing here.
    told = Told("multilabel", ["Effusion", "Edema"], [[0, 1]])
    with pytest.raises(InputError, match=re.escape("Write 'label_map={mole: Edema, Effusion: Pleural Effusion}', if")):
        match_labels(cast(Dataset, told), ["Pleural Effusion", "Edema"], False, {"mole": "Edema"}, ["mole"])


def test_theirs_that_mean_one_of_ours_are_added_before_the_likeliest_is_taken():
    """As in a study: nevus and psoriasis together are likelier than mel, which is the likeliest by itself."""
    told = Told("multiclass", ["mel", "nevus", "psoriasis"], [[0.4, 0.3, 0.3], [0.5, 0.25, 0.25]])
    found = match(told, ["mel", "benign"], True, nevus="benign", psoriasis="benign")
    assert found.truth.tolist() == pytest.approx(np.array([[0.4, 0.6], [0.5, 0.5]]))


def test_one_label_against_the_rest_takes_the_likeliest_of_what_theirs_mean():
    """As one class of several does, so that both have the same truth but for ties, where the first of each is taken."""
    told = Told("multiclass", ["mel", "nevus", "psoriasis"], [[0.4, 0.3, 0.3], [0.6, 0.2, 0.2], [0.5, 0.25, 0.25]])
    found = match(told, ["benign"], False, nevus="benign", psoriasis="benign")
    assert found.truth[:, 0].tolist() == [1, 0, 0]
    found = match(told, ["mel"], False, nevus="unseen", psoriasis="unseen")
    assert found.unseen.tolist() == [True, False, False]
    assert np.array_equal(found.truth[:, 0], [np.nan, 1, 1], equal_nan=True)
    study = mapped_truth(cast(Dataset, told), told.labels, ["benign"], {"nevus": "benign", "psoriasis": "benign"}, True)
    assert np.array_equal(study[:, 0], [1, np.nan, 1], equal_nan=True), "what they mean together, against mel alone"


def test_one_label_against_the_rest_of_their_classes():
    found = match(CLASSES, ["mel"], False)
    assert np.array_equal(found.truth[:, 0], [1, 0, 0, np.nan, 0], equal_nan=True)
    found = match(CLASSES, ["mel"], False, psoriasis="unseen")
    assert np.array_equal(found.truth[:, 0], [1, 0, np.nan, np.nan, 0], equal_nan=True)


def test_yes_or_no_labels_of_theirs_join_into_one_of_ours():
    nan = np.nan
    told = Told(
        "multilabel", ["Mass", "Nodule", "Hernia"], [[0, 0, 1], [0, 1, 0], [nan, 1, 0], [nan, 0, nan], [0, 0, 0]]
    )
    found = match(told, ["Lesion", "Edema"], False, Mass="Lesion", Nodule="Lesion", Hernia="unseen")
    assert np.array_equal(found.truth[:, 0], [0, 1, 1, nan, 0], equal_nan=True)
    assert np.isnan(found.truth[:, 1]).all()
    assert found.absent == ("Edema",)
    assert found.unseen.tolist() == [True, False, False, False, False]


def test_a_label_that_may_be_theirs_by_another_name_is_asked_for():
    told = Told("multilabel", ["Effusion", "Edema"], [[0, 1]])
    with pytest.raises(InputError, match=re.escape("Write 'label_map={Effusion: Pleural Effusion}', if")):
        match(told, ["Pleural Effusion", "Edema"], False)
    found = match(told, ["Pleural Effusion", "Edema"], False, Effusion="Pleural Effusion")
    assert found.truth.tolist() == [[0, 1]]
    extra = Told("multilabel", ["Hernia", "Edema"], [[0, 1]])
    assert match(extra, ["Edema"], False).truth.tolist() == [[1]]


def test_yes_or_no_labels_cannot_stand_for_classes():
    told = Told("multilabel", ["mel", "nv"], [[0, 1]])
    with pytest.raises(InputError, match="label=NAME"):
        match(told, ["mel", "nv"], True)
    with pytest.raises(InputError, match="do not match"):
        match(Told("unlabelled", [], np.zeros((2, 0))), ["mel"], False)
