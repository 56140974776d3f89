from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clusters.config import InputError, load_config
from finetune.config import FinetuneConfig
from finetune.label_names import LABEL_SETS, mapped_truth, theirs

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
    assert "Write label_map={Effusion: Pleural Effusion}" in told
    # What it says to write is what is taken.
    (written,) = [word for word in ("label_map={Effusion: Pleural Effusion}",) if word in told]
    config = load_config(FinetuneConfig, ["data=/d", "encoder=/e", "out=/o", "labels=chexpert5", written])
    assert theirs(dataset(*NIH), LABEL_SETS["chexpert5"], config.label_map)["Pleural Effusion"] == ["Effusion"]


def test_a_label_without_a_counterpart_is_to_be_left_out():
    with pytest.raises(InputError, match=r"has no Edema, Rib fracture\..*Write label_map=\{edema: Edema\}.*leave Rib"):
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
