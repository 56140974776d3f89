import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusters.config import InputError, load_config
from data.cases import Case
from data.config import SplitFractions
from data.dataset import Dataset, open_dataset
from data.shards import write_dataset
from data.sources import read_raw, synthetic
from data.uncertain import Policy, labels_under_policy
from finetune.bootstrap import patient_strata
from finetune.cohort import choose_cohort, choose_patients, find_leaks
from finetune.config import FinetuneConfig
from finetune.efficiency import draw_cohorts
from finetune.efficiency_config import EfficiencyConfig
from finetune.regression import Regression, upper_half
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


@given(
    st.lists(st.tuples(st.integers(0, 25), st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=3, max_size=3))),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.integers(0, 3),
)
@settings(max_examples=300, deadline=None)
def test_every_share_shows_both_sides_of_each_label_and_lies_within_larger_ones(rows, one, other, seed):
    """Of labels that need not exclude each other; of the size that its strata make, and one for each side at most."""
    if not rows:
        return
    patients = np.array([f"p{patient:02d}" for patient, _ in rows])
    truth = np.array([labels for _, labels in rows])
    small, large = (choose_patients(patients, truth, f, seed) for f in sorted([one, other]))
    assert small <= large <= choose_patients(patients, truth, 1.0, seed) == set(patients)
    sizes = np.unique(patient_strata(truth, np.unique(patients, return_inverse=True)[1]), return_counts=True)[1]
    for share, chosen in zip(sorted([one, other]), (small, large)):
        ours = np.isin(patients, list(chosen))
        for side in (0, 1):
            assert ((truth[ours] == side).any(axis=0) == (truth == side).any(axis=0)).all()
        planned = sum(max(1, round(share * size)) for size in sizes)
        assert planned <= len(chosen) <= planned + 6


@given(
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 1), st.sampled_from([40.0, 55.0, 60.0, np.nan])), min_size=1),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_every_share_shows_two_values_of_each_number_that_varies(rows, one, other, seed):
    """Beside whoever it has without numbers, two patients at most; where nothing is known of a number, nobody."""
    patients = np.array([f"p{patient:02d}" for patient, *_ in rows])
    truth, numbers = (np.array([row[column] for row in rows], dtype=float)[:, None] for column in (1, 2))
    small, large = (choose_patients(patients, truth, f, seed, upper_half(numbers)) for f in sorted([one, other]))
    assert small <= large <= set(patients)
    values = set(numbers[np.isfinite(numbers)])
    for share, chosen in zip(sorted([one, other]), (small, large)):
        without = choose_patients(patients, truth, share, seed)
        assert without <= chosen and len(chosen - without) <= 2
        ours = numbers[np.isin(patients, list(chosen))]
        assert len(set(ours[np.isfinite(ours)])) >= min(2, len(values))
        assert values or chosen == without


def test_a_label_that_is_nobody_s_rarest_is_in_every_share():
    """Label A in 12 patients of 100, all of whom have the rarer B or C too."""
    patients = np.array([f"p{n:02d}" for n in range(100)])
    numbers = np.arange(100)
    sides = np.isin(numbers, [*range(6), *range(12, 17)]), np.isin(numbers, [*range(6, 12), *range(17, 22)])
    truth = np.stack([numbers < 12, *sides], axis=1).astype(float)
    assert truth.sum(axis=0).tolist() == [12, 11, 11]
    for seed in range(50):
        chosen = np.isin(patients, list(choose_patients(patients, truth, 0.1, seed)))
        assert truth[chosen].any(axis=0).all()
        assert 10 <= chosen.sum() <= 11


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
    trained, all_of_them = part.counts()["train"], whole.counts()["train"]
    assert trained["patients"] < trained["of_patients"] == all_of_them["patients"] == all_of_them["of_patients"]


def test_a_seed_of_labels_fixes_the_share_whatever_else_is_seeded(synthetic_dataset):
    first, same, other = (
        choose_cohort(synthetic_dataset, config(synthetic_dataset, label_fraction=0.3, seed=seed, **changed))
        for seed, changed in ((1, {}), (2, {"label_seed": 1}), (2, {}))
    )
    assert (first.train == same.train).all() and first.train.tolist() != other.train.tolist()


def test_a_seed_of_labels_stands_in_a_recipe_only_where_it_decides_something(synthetic_dataset):
    """So that results of before it was there are found again."""

    def told(**changed):
        return config(synthetic_dataset, seed=2, **changed).recipe().get("label_seed", "not told")

    assert told(label_fraction=0.3) == told(label_seed=1) == told(label_seed=1, uncertain="ones") == "not told"
    assert told(label_seed=2, label_fraction=0.3) == told(label_seed=2, uncertain="smooth") == "not told"
    assert told(label_seed=1, label_fraction=0.3) == told(label_seed=1, uncertain="smooth") == 1
    assert told(label_seed=1, uncertain={"Edema": "ones", "Fracture": "smooth_zeros"}) == 1


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

    dataset = WithoutMelanoma(synthetic_dataset.location, synthetic_dataset.manifest)
    with pytest.raises(InputError, match="class 'melanoma' has no labelled patient in the training split"):
        choose_cohort(dataset, config(dataset))


FINDINGS = ("Edema", "Consolidation", "Fracture")


def imported(
    folder: Path,
    task: str,
    names: tuple[str, ...],
    relabel: Callable[[int, Case], Case],
    numbers: tuple[str, ...] = (),
) -> Dataset:
    """Synthetic cases with other labels."""
    splits = SplitFractions(train=0.5, val=0.25, test=0.25)
    options = synthetic.Options(
        source="synthetic", raw="", out=str(folder), num_cases=60, size_px=32, num_processes=1, splits=splits
    )
    raw = read_raw(options)
    cases = [relabel(number, case) for number, case in enumerate(raw.cases)]
    write_dataset(dataclasses.replace(raw, task=task, label_names=names, cases=cases, number_names=numbers), options)
    return open_dataset(str(folder))


@pytest.mark.parametrize(
    ("source", "empty", "mend"),
    [
        ("folder", "test", "where raw= has train/ and val/ alone, rename val/ to test/ and import into a new out="),
        ("folder", "val", "import into a new out= with patients in each"),
        ("table", "test", "import into a new out= with patients in each"),
    ],
)
def test_a_split_without_anybody_is_refused_with_its_mend(synthetic_dataset, source, empty, mend):
    manifest = synthetic_dataset.manifest
    nobody = dict.fromkeys(("cases", "images", "patients"), 0)
    splits = {**manifest.splits, empty: manifest.splits[empty].model_copy(update=nobody)}
    there = ", ".join(split for split in ("train", "val", "test") if split != empty)
    changed = manifest.model_copy(update={"source": source, "splits": splits})
    dataset = Dataset(synthetic_dataset.location, changed)
    with pytest.raises(InputError, match=f"no split '{empty}' in .*; there are {there}, and .* all three: {mend}"):
        choose_cohort(dataset, config(dataset))


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Findings of radiographs: a third of Edema and a sixth of Consolidation in doubt, Fracture never."""

    def relabel(number: int, case: Case) -> Case:
        doubt = {name for name, every in (("Edema", 3), ("Consolidation", 6)) if number % every == 0}
        values = {"Edema": number % 2, "Consolidation": number % 5 == 1, "Fracture": number % 4 == 0}
        labels = {name: float("nan") if name in doubt else float(value) for name, value in values.items()}
        return dataclasses.replace(case, labels=labels, uncertain=frozenset(doubt))

    return imported(tmp_path_factory.mktemp("chest") / "dataset", "multilabel", FINDINGS, relabel)


def test_a_doubtful_label_counts_as_the_policy_says(chest: Dataset):
    case_number = np.array([int(key.rsplit("-", 1)[1]) for key in chest.column("key")])
    edema, consolidation = case_number % 3 == 0, case_number % 6 == 0
    policies: dict[Policy, int] = {"zeros": 0, "ones": 1}
    for policy, expected in policies.items():
        labels = labels_under_policy(chest, policy)
        assert (labels[edema, 0] == expected).all() and (labels[consolidation, 1] == expected).all()
        assert labels[~edema, 0].tolist() == (case_number[~edema] % 2).tolist()
    assert np.array_equal(labels_under_policy(chest, "ignore"), chest.labels, equal_nan=True)
    mixed = labels_under_policy(chest, {"Edema": "ones", "Fracture": "zeros"})
    assert (mixed[edema, 0] == 1).all()
    assert np.isnan(mixed[consolidation, 1]).all()
    assert mixed[:, 2].tolist() == (case_number % 4 == 0).tolist()
    assert np.isnan(chest.labels[edema, 0]).all()


SMOOTHED: dict[Policy, tuple[float, float]] = {"smooth": (0.55, 0.85), "smooth_zeros": (0.0, 0.3)}


@pytest.mark.parametrize("policy", SMOOTHED)
def test_a_smoothed_doubt_is_drawn_once_for_a_case_whatever_else_is_asked(chest: Dataset, policy: Policy):
    low, high = SMOOTHED[policy]
    labels = labels_under_policy(chest, policy, seed=3)
    doubtful = np.isnan(chest.labels)
    assert np.array_equal(labels[~doubtful], chest.labels[~doubtful])
    drawn = labels[doubtful]
    assert low <= drawn.min() and drawn.max() <= high and drawn.max() - drawn.min() > 0.6 * (high - low)
    edema = dict(zip(chest.column("key"), labels[:, 0]))
    assert all(edema[key] == value for key, value in zip(chest.column("key"), labels[:, 0]))  # all images of a case
    alone = labels_under_policy(chest, {"Edema": policy}, seed=3)
    assert np.array_equal(alone[:, 0], labels[:, 0]) and np.isnan(alone[doubtful[:, 1], 1]).all()
    assert np.array_equal(labels, labels_under_policy(chest, policy, seed=3))
    assert not np.isin(labels_under_policy(chest, policy, seed=4)[doubtful], drawn).any()
    assert len(set(drawn)) == len(
        {(key, k) for key, row in zip(chest.column("key"), doubtful) for k in np.flatnonzero(row)}
    )


@given(
    st.dictionaries(st.sampled_from(["Edema", "Consolidation", "Fracture"]), st.sampled_from(get_args(Policy))),
    st.integers(0, 5),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_study_masks_each_label_and_policies_reach_training_only(chest: Dataset, policies, seed: int):
    cohort = choose_cohort(chest, config(chest, uncertain=policies, seed=seed))
    assert cohort.task.kind == "multilabel" and cohort.task.label_names == FINDINGS
    for split in ("val", "test"):
        assert np.array_equal(cohort.truth[chest.rows([split])], chest.labels[chest.rows([split])], equal_nan=True)
    train = chest.rows(["train"])
    for k, name in enumerate(FINDINGS):
        doubtful = np.isnan(chest.labels[train, k])
        found = cohort.truth[train, k]
        assert np.array_equal(found[~doubtful], chest.labels[train, k][~doubtful])
        assert np.isnan(found[doubtful]).all() == (policies.get(name, "ignore") == "ignore" or not doubtful.any())
    assert set(train) >= set(cohort.train) >= set(train[np.isfinite(chest.labels[train]).any(axis=1)])
    counts = cohort.counts()["train"]["cases_per_class"]
    assert list(counts) == list(FINDINGS)
    _, first = np.unique(chest.case_of[cohort.train], return_index=True)
    assert list(counts.values()) == (cohort.truth[cohort.train[first]] >= 0.5).sum(axis=0).tolist()


@pytest.mark.parametrize(("policy", "num_whole"), [("smooth", 3), ("ones", 1)])
def test_a_sweep_has_several_draws_of_all_labels_where_doubtful_ones_are_drawn(chest: Dataset, policy, num_whole):
    told = {"data": chest.location, "encoders": ["/none"], "out": "/none", "fractions": [0.5], "draws": 3}
    cohorts = draw_cohorts(chest, EfficiencyConfig.model_validate({**told, "uncertain": {"Edema": policy}}))
    assert list(cohorts) == [(0.5, 0), (0.5, 1), (0.5, 2), *((1.0, draw) for draw in range(num_whole))]
    whole = [cohort for (share, _), cohort in cohorts.items() if share == 1]
    assert all(cohort.train.tolist() == whole[0].train.tolist() for cohort in whole)
    assert len({cohort.truth[cohort.train].tobytes() for cohort in whole}) == num_whole


def test_a_seed_of_labels_fixes_what_doubtful_ones_are_smoothed_to(chest: Dataset):
    first, same, other = (
        choose_cohort(chest, config(chest, uncertain="smooth", seed=seed, **changed)).truth
        for seed, changed in ((1, {}), (2, {"label_seed": 1}), (2, {}))
    )
    assert np.array_equal(first, same, equal_nan=True) and not np.array_equal(first, other, equal_nan=True)


def test_one_label_of_several_is_a_study_and_doubt_is_decided_in_training_only(chest: Dataset):
    ignoring = choose_cohort(chest, config(chest, label="Edema"))
    ones = choose_cohort(chest, config(chest, label="Edema", uncertain={"Edema": "ones"}))
    zeros = choose_cohort(chest, config(chest, label="Edema", uncertain="zeros"))
    assert ignoring.task.kind == "binary" and ignoring.task.class_names == ("not Edema", "Edema")
    assert set(ignoring.train) < set(ones.train) == set(chest.rows(["train"]))
    added = np.setdiff1d(ones.train, ignoring.train)
    assert set(ones.class_of(added)) == {1} and set(zeros.class_of(added)) == {0}
    for split in ("val", "test"):
        assert np.isfinite(chest.labels[ones.rows(split), 0]).all()
        assert (ones.rows(split) == ignoring.rows(split)).all() and (zeros.rows(split) == ignoring.rows(split)).all()


def test_a_class_against_the_rest(synthetic_dataset: Dataset):
    cohort = choose_cohort(synthetic_dataset, config(synthetic_dataset, label="melanoma"))
    place = synthetic_dataset.label_names.index("melanoma")
    assert (cohort.class_of(cohort.train) == (synthetic_dataset.labels[cohort.train, place] == 1)).all()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"labels": ["Edema", "Rib fracture"]},
            r"labels: .* has no Rib fracture\. Wanted: Edema, Rib fracture\. The dataset has: Edema, Consolidation, "
            r"Fracture\. Write 'label_map=\{Fracture: Rib fracture\}'",
        ),
        ({"label": "Edema", "labels": ["Edema"]}, "label= picks one label and labels= several; give one"),
        ({"class_weighting": "balanced"}, "class_weighting: balanced weighs .* give class_weighting=none"),
        ({"numbers": ["EF"]}, "numbers: .* has no number 'EF'; it has none, and source=table imports some"),
        ({"label": "Oedema"}, "label: .* has no label 'Oedema' \\(nearest: Edema\\)"),
        ({"label": "Edema", "uncertain": {"edema": "ones"}}, "uncertain: .* has no label 'edema' \\(nearest: Edema\\)"),
    ],
)
def test_labels_that_make_no_study_are_told_with_the_mend(chest: Dataset, changed, told: str):
    with pytest.raises(InputError, match=told):
        choose_cohort(chest, config(chest, **changed))


def test_a_policy_may_be_typed():
    words = ["data=/d", "encoder=/e", "out=/o"]
    typed = load_config(FinetuneConfig, [*words, "uncertain={Edema: ones, Pleural Effusion: zeros}"])
    assert typed.uncertain == {"Edema": "ones", "Pleural Effusion": "zeros"}
    assert load_config(FinetuneConfig, [*words, "uncertain.Edema=ones"]).uncertain == {"Edema": "ones"}
    for wrong in ("uncertain=maybe", "uncertain={Edema: maybe}"):
        with pytest.raises(InputError, match=r"'uncertain.*ignore.*zeros.*ones"):
            load_config(FinetuneConfig, [*words, wrong])


def test_a_soft_label_counts_as_its_likeliest_class(tmp_path: Path):
    """Experts that disagree (SCIN): shares that sum to 1; the first class of equal ones."""
    names = ("eczema", "psoriasis", "tinea")
    soft = [(0.5, 0.3, 0.2), (0.2, 0.6, 0.2), (0.0, 0.3, 0.7), (0.4, 0.4, 0.2), (1.0, 0.0, 0.0), (float("nan"),) * 3]

    def relabel(number: int, case: Case) -> Case:
        return dataclasses.replace(case, labels=dict(zip(names, soft[number % 6])))

    dataset = imported(tmp_path / "dataset", "multiclass", names, relabel)
    cohort = choose_cohort(dataset, config(dataset))
    case_number = np.array([int(key.rsplit("-", 1)[1]) for key in dataset.column("key")])
    for split in ("train", "val", "test"):
        rows = cohort.rows(split)
        assert cohort.class_of(rows).tolist() == [[0, 1, 2, 0, 0][n % 6] for n in case_number[rows]]
        expected = np.array([soft[n % 6] for n in case_number[rows]])
        assert cohort.truth[rows] == pytest.approx(expected)
    assert not (case_number[cohort.train] % 6 == 5).any()
    assert sum(cohort.counts()["test"]["cases_per_class"].values()) == cohort.counts()["test"]["cases"]


def with_labels(dataset: Dataset, change: Callable[[Dataset, np.ndarray], None]) -> Dataset:
    """The dataset with other labels."""

    class Changed(Dataset):
        @property
        def labels(self):  # type: ignore[override]
            labels = dataset.labels.copy()
            change(dataset, labels)
            return labels

    return Changed(dataset.location, dataset.manifest)


def without(label: str, split: str, value: float) -> Callable[[Dataset, np.ndarray], None]:
    """Nobody of a split has this value of a label: the others are left."""

    def change(dataset: Dataset, labels: np.ndarray) -> None:
        rows, k = dataset.rows([split]), dataset.label_names.index(label)
        labels[rows[labels[rows, k] == value], k] = np.nan

    return change


def test_a_label_that_training_never_saw_is_refused_and_may_be_left_out(chest: Dataset):
    for value, name in ((1, "Edema"), (0, "not Edema")):
        changed = with_labels(chest, without("Edema", "train", value))
        with pytest.raises(
            InputError, match=f"the training split has no case of '{name}'.* or leave 'Edema' out of lab"
        ):
            choose_cohort(changed, config(chest))
        left = choose_cohort(changed, config(chest, labels=["Consolidation", "Fracture"]))
        assert left.task.label_names == ("Consolidation", "Fracture") and left.truth.shape[1] == 2


def test_a_validation_split_without_positives_is_told_and_refused_where_nothing_is_left(chest: Dataset):
    changed = with_labels(chest, without("Edema", "val", 1))
    cohort = choose_cohort(changed, config(chest))
    assert any(note == "the val split has no case of 'Edema': nothing is chosen by it" for note in cohort.notes)
    with pytest.raises(InputError, match="the validation split has one class only, so nothing can be chosen on it"):
        choose_cohort(changed, config(chest, label="Edema"))

    def none(dataset: Dataset, labels: np.ndarray) -> None:
        for name in FINDINGS:
            without(name, "val", 1)(dataset, labels)

    with pytest.raises(InputError, match="the validation split has no label with both positives and negatives"):
        choose_cohort(with_labels(chest, none), config(chest))


def test_cases_of_classes_that_are_left_out_are_told(synthetic_dataset: Dataset):
    """Who is not studied: a reader could not know of them otherwise."""
    val = synthetic_dataset.labels[synthetic_dataset.rows(["val"])]
    common = np.argsort(-np.nansum(val, axis=0))  # nothing can be chosen where validation lacks one
    names = [synthetic_dataset.label_names[k] for k in common[:2]]
    cohort = choose_cohort(synthetic_dataset, config(synthetic_dataset, labels=names))
    assert not [note for note in choose_cohort(synthetic_dataset, config(synthetic_dataset)).notes if "labels=" in note]
    for split in ("train", "val", "test"):
        rows = synthetic_dataset.rows([split])
        gone = rows[(synthetic_dataset.labels[rows][:, common[2:]] == 1).any(axis=1)]
        left, whole = (len(np.unique(synthetic_dataset.case_of[some])) for some in (gone, rows))
        assert left < whole and (left or split == "val")
        told = (
            f"{left} of {whole} labelled cases of the {split} split are left out by labels=: of other classes, or with"
        )
        assert any(note.startswith(told) for note in cohort.notes) == bool(left), split


def test_a_test_split_without_a_class_is_told(chest: Dataset, synthetic_dataset: Dataset):
    meaning = "figures that need one are undefined, and means leave them out"
    for value, name in ((1, "Edema"), (0, "not Edema")):
        cohort = choose_cohort(with_labels(chest, without("Edema", "test", value)), config(chest))
        assert f"the test split has no case of '{name}': {meaning}" in cohort.notes
    changed = with_labels(synthetic_dataset, without("melanoma", "test", 1))
    cohort = choose_cohort(changed, config(synthetic_dataset))
    assert f"the test split has no case of 'melanoma': {meaning}" in cohort.notes
    assert not [note for note in choose_cohort(chest, config(chest)).notes if "has no case of" in note]


def test_a_small_share_of_the_labels_leaves_no_label_without_a_case(chest: Dataset):
    """Consolidation only beside Edema or Fracture, which are rarer: no stratum is its own."""
    rows = chest.rows(["train"])
    place = np.unique(chest.column("patient")[rows].astype(str), return_inverse=True)[1] % 8

    def change(dataset: Dataset, labels: np.ndarray) -> None:
        columns = [place < 3, np.isin(place, [0, 1, 3, 4]), np.isin(place, [3, 4, 5])]
        labels[rows] = np.stack(columns, axis=1)

    changed = with_labels(chest, change)
    for seed in range(20):
        cohort = choose_cohort(changed, config(chest, label_fraction=0.01, seed=seed))
        assert (cohort.truth[cohort.train] == 1).any(axis=0).all()


def test_a_class_of_one_patient_is_told(synthetic_dataset: Dataset):
    place = synthetic_dataset.label_names.index("melanoma")
    patients = synthetic_dataset.column("patient")

    def one_patient(dataset: Dataset, labels: np.ndarray) -> None:
        for split in ("train", "test"):
            rows = dataset.rows([split])
            ours = rows[labels[rows, place] == 1]
            labels[ours[patients[ours] != patients[ours[0]]]] = np.nan

    cohort = choose_cohort(with_labels(synthetic_dataset, one_patient), config(synthetic_dataset, label_fraction=0.3))
    assert len(set(patients[cohort.train[cohort.class_of(cohort.train) == place]])) == 1
    told = {note.split(" has one patient of ")[0]: note for note in cohort.notes if "'melanoma'" in note}
    assert "what is learned of it rests on that patient" in told["the train split"]
    assert "its figures say nothing of other patients and have no interval" in told["the test split"]


def test_ties_of_soft_labels_are_told(synthetic_dataset: Dataset):
    tied = []

    def two_experts(dataset: Dataset, labels: np.ndarray) -> None:
        rows = dataset.rows(["test"])
        tied.extend(dataset.case_of[rows[:5]])
        labels[np.isin(dataset.case_of, tied), :] = [0.5, 0.5, 0, 0, 0]

    cohort = choose_cohort(with_labels(synthetic_dataset, two_experts), config(synthetic_dataset))
    (told,) = [note for note in cohort.notes if "as likely of one class as of another" in note]
    assert told.startswith(f"{len(set(tied))} of {len(set(cohort.dataset.case_of[cohort.test]))} cases of the test ")
    first = ", ".join(f"'{name}'" for name in cohort.task.class_names)
    assert told.endswith(f"counts as the first of these columns, of {first}")
    assert not any("as likely" in note for note in choose_cohort(synthetic_dataset, config(synthetic_dataset)).notes)


def test_a_dataset_without_labels_is_no_study(tmp_path: Path):
    dataset = imported(tmp_path / "dataset", "unlabelled", (), lambda _, case: dataclasses.replace(case, labels={}))
    with pytest.raises(
        InputError, match="its task is 'unlabelled', and fine-tuning takes multiclass, binary, multilabel"
    ):
        choose_cohort(dataset, config(dataset))


def measured(number: int, case: Case) -> Case:
    """A label and two numbers, the first of which every fifth case lacks."""
    fraction = float("nan") if number % 5 == 4 else 30.0 + number
    numbers = {"EF": fraction, "EDV": 100.0 + number % 7}
    return dataclasses.replace(case, labels={"reduced": float(number % 2)}, numbers=numbers)


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return imported(tmp_path_factory.mktemp("heart") / "dataset", "binary", ("reduced",), measured, ("EF", "EDV"))


def test_numbers_stand_beside_the_labels_and_are_scaled_by_training(heart: Dataset):
    cohort = choose_cohort(heart, config(heart, numbers=["EF"]))
    assert cohort.task.label_names == ("reduced", "EF") and cohort.task.kind == "two_heads"
    assert heart.number_names == ["EF", "EDV"]
    case_number = np.array([int(key.rsplit("-", 1)[1]) for key in heart.column("key")])
    missing = case_number % 5 == 4
    assert np.array_equal(np.isnan(cohort.truth[:, 1]), missing)
    assert cohort.truth[~missing, 1].tolist() == (30 + case_number[~missing]).tolist()
    assert missing[cohort.train].any()  # their label teaches
    assert not missing[cohort.val].any() and not missing[cohort.test].any()
    cases = {name: heart.case_of[heart.rows([name])] for name in ("val", "test")}
    lacking = {name: len(np.unique(some[missing[heart.rows([name])]])) for name, some in cases.items()}
    assert min(lacking.values()) > 0
    told = [note for note in cohort.notes if "left out" in note]
    assert told == [
        f"{lacking[name]} of {len(np.unique(cases[name]))} cases of the {name} split are left out, for not all of it "
        "is known of them: 'EF'"
        for name in ("val", "test")
    ]
    assert not [note for note in choose_cohort(heart, config(heart)).notes if "left out" in note]
    numbers = cohort.task.parts[1]
    assert isinstance(numbers, Regression)
    assert numbers.mean_K[0] == pytest.approx(np.nanmean(cohort.truth[cohort.train, 1]), rel=1e-6)
    weights = cohort.training_weights("balanced")
    per_class = np.bincount(cohort.class_of(cohort.train), weights=weights)
    assert per_class[0] == pytest.approx(per_class[1])


def test_numbers_that_cannot_be_learned_are_refused(tmp_path: Path):
    def constant(number: int, case: Case) -> Case:
        return dataclasses.replace(measured(number, case), numbers={"EF": 55.0})

    dataset = imported(tmp_path / "dataset", "binary", ("reduced",), constant, ("EF",))
    with pytest.raises(InputError, match="number 'EF' has fewer than two different values in split 'train'"):
        choose_cohort(dataset, config(dataset, numbers=["EF"]))


def test_a_small_share_of_the_labels_leaves_no_number_without_two_values(heart: Dataset):
    """EF is known of a quarter of the patients, none of whom a small share need have."""
    patients = np.unique(heart.column("patient").astype(str), return_inverse=True)[1]

    class SeldomMeasured(Dataset):
        """The dataset with a number of few patients."""

        def column(self, name):
            values = heart.column(name)
            return np.where(patients % 4 == 0, values, np.nan) if name == "number.EF" else values

    dataset = SeldomMeasured(heart.location, heart.manifest)
    for seed in range(20):
        small, larger, without = (
            choose_cohort(dataset, config(heart, label_fraction=share, seed=seed, numbers=numbers))
            for share, numbers in ((0.03, ["EF"]), (0.3, ["EF"]), (0.03, []))
        )
        known = small.truth[small.train, 1]
        assert len(set(known[np.isfinite(known)])) >= 2
        regression = small.task.parts[1]
        assert isinstance(regression, Regression) and np.isfinite(regression.mean_K).all()
        assert set(without.train) <= set(small.train) <= set(larger.train)


def test_a_number_with_the_name_of_a_label_is_refused(heart: Dataset, tmp_path: Path):
    """Figures go by names: one of the two would be taken for the other."""

    def twice(number: int, case: Case) -> Case:
        return dataclasses.replace(measured(number, case), numbers={"reduced": 30.0 + number})

    dataset = imported(tmp_path / "dataset", "binary", ("reduced",), twice, ("reduced",))
    for changed in ({}, {"label": "reduced"}):
        with pytest.raises(InputError, match="numbers: 'reduced' is a label of the study too") as error:
            choose_cohort(dataset, config(dataset, numbers=["reduced"], **changed))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="numbers: 'EF' stands there twice"):
        choose_cohort(heart, config(heart, numbers=["EF", "EDV", "EF"]))


def test_copies_that_an_import_kept_across_splits_are_told_with_their_numbers(synthetic_dataset):
    """duplicates=keep keeps them, under other patients, so that no comparison of ids finds them."""
    rows = {split: synthetic_dataset.rows([split]) for split in ("train", "val", "test")}
    pixels = synthetic_dataset.column("pixel_sha256").copy()
    pixels[rows["test"][:3]] = pixels[rows["train"][0]]
    pixels[rows["test"][3]] = pixels[rows["val"][0]]
    pixels[rows["val"][1]] = pixels[rows["train"][1]]

    class WithCopies(Dataset):
        """The dataset with images that stand in two splits."""

        def column(self, name):
            return pixels if name == "pixel_sha256" else super().column(name)

    sizes = {split: len(some) for split, some in rows.items()}
    copied = WithCopies(synthetic_dataset.location, synthetic_dataset.manifest)
    notes = choose_cohort(copied, config(synthetic_dataset)).notes
    (note,) = set(notes) - set(choose_cohort(synthetic_dataset, config(synthetic_dataset)).notes)
    assert note.startswith("LEAKAGE between splits: there stand, pixel for pixel the same, ")
    assert (
        f"3 of {sizes['test']} test images in training, and 1 of {sizes['test']} test images in validation, and "
        f"1 of {sizes['val']} validation images in training; the figures of such images are not" in note
    )
