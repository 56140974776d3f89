from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters.config import InputError
from data.dataset import Dataset
from finetune.cohort import choose_cohort, choose_patients, find_leaks
from finetune.config import FinetuneConfig
from tests.finetune_runs import write_encoder


def config(dataset: Dataset, **changed) -> FinetuneConfig:
    return FinetuneConfig.model_validate({"data": dataset.location, "encoder": "/none", "out": "/none", **changed})


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=60),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_a_smaller_share_of_patients_lies_within_a_larger_one(rows, one, other, seed):
    patients = np.array([f"p{patient}" for patient, _ in rows])
    truth = np.eye(4)[[label for _, label in rows]]
    small, large = (choose_patients(patients, truth, f, seed) for f in sorted([one, other]))
    assert small <= large
    assert choose_patients(patients, truth, 1.0, seed) == set(patients)
    assert small == choose_patients(patients[::-1], truth[::-1], min(one, other), seed)


def test_every_class_of_single_patients_keeps_its_share():
    labels = np.repeat([0, 1, 2], [100, 30, 2])
    patients = np.array([f"p{n}" for n in range(132)])
    chosen = choose_patients(patients, np.eye(3)[labels], 0.1, 0)
    counts = np.bincount(labels[np.isin(patients, list(chosen))])
    assert counts.tolist() == [10, 3, 1]
    assert chosen != choose_patients(patients, np.eye(3)[labels], 0.1, 1)


def test_splits_share_no_patient_and_a_case_weighs_one(synthetic_dataset):
    cohort = choose_cohort(synthetic_dataset, config(synthetic_dataset))
    patients = [set(synthetic_dataset.column("patient")[cohort.rows(s)]) for s in ("train", "val", "test")]
    assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]
    weights = cohort.training_weights("none")
    cases = synthetic_dataset.case_of[cohort.train]
    assert np.bincount(cases, weights=weights)[np.unique(cases)] == pytest.approx(1)
    balanced = cohort.training_weights("balanced")
    per_class = np.bincount(cohort.class_of(cohort.train), weights=balanced)
    assert per_class[per_class > 0] == pytest.approx(len(np.unique(cases)) / (per_class > 0).sum())


def test_a_share_of_the_labels_keeps_validation_and_test_whole(synthetic_dataset):
    whole = choose_cohort(synthetic_dataset, config(synthetic_dataset))
    part = choose_cohort(synthetic_dataset, config(synthetic_dataset, label_fraction=0.3))
    assert set(part.train) < set(whole.train)
    assert (part.val == whole.val).all() and (part.test == whole.test).all()
    assert set(part.class_of(part.train)) == set(whole.class_of(whole.train))


def test_an_encoder_that_saw_test_patients_is_refused(synthetic_dataset, tmp_path: Path):
    cohort = choose_cohort(synthetic_dataset, config(synthetic_dataset))
    clean = write_encoder(tmp_path / "clean", synthetic_dataset)
    assert find_leaks(cohort, clean, "refuse") == []
    leaky = write_encoder(tmp_path / "leaky", synthetic_dataset, ["train", "test"])
    num_patients = len(set(synthetic_dataset.column("patient")[cohort.test]))
    with pytest.raises(InputError, match=f"pretrained on {num_patients} test patients and {len(cohort.test)} test"):
        find_leaks(cohort, leaky, "refuse")
    (warning,) = find_leaks(cohort, leaky, "warn")
    assert warning.startswith("LEAKAGE")


def test_a_class_that_training_never_saw_is_named(synthetic_dataset):
    class WithoutMelanoma(Dataset):
        """The dataset with the training cases of one class unlabelled."""

        @property
        def labels(self):  # type: ignore[override]
            labels = synthetic_dataset.labels.copy()
            train = np.isin(np.arange(len(labels)), self.rows(["train"]))
            labels[train & (labels[:, self.label_names.index("melanoma")] == 1)] = np.nan
            return labels

    dataset = WithoutMelanoma(**synthetic_dataset.__getstate__())
    with pytest.raises(InputError, match="class 'melanoma' has no labelled patient in the training split"):
        choose_cohort(dataset, config(dataset))
