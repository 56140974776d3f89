"""MICLe's pairs and the patient mask: which images stand together, and which are no negatives."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters.config import InputError, load_config
from data.cases import Case, RawDataset, SourceImage
from data.combined import CombinedDataset
from data.dataset import Dataset, open_dataset
from data.order import keyed_uniforms
from data.shards import write_dataset
from pretrain import patient_mask as patient_mask_module
from pretrain import stage as stage_module
from pretrain.batches import ViewBatches
from pretrain.config import PretrainConfig
from pretrain.losses import nt_xent
from pretrain.methods import micle as micle_module
from pretrain.methods.method import one_image
from pretrain.methods.micle import MICLe, MICLeConfig
from pretrain.methods.simclr import SimCLR, SimCLRConfig
from pretrain.pairs import PairsWithin, two_images
from pretrain.patient_mask import check_patient_mask, patient_mask
from pretrain.run import pretrain
from pretrain.stage import Rows
from pretrain.views import ViewConfig
from tests.drawn_cases import Drawn, config

VIEWS = ViewConfig(size_px=16)


def uniforms(count: int, *key: int | str) -> Any:
    return keyed_uniforms(count, "pair", 0, 0, *key)


def written(folder: Path, cases: list[Case], **changed: Any) -> Dataset:
    splits = {"train": 1.0, "val": 0.0, "test": 0.0}
    settings = config(folder, splits=splits, duplicates="keep", **changed)
    write_dataset(RawDataset("CC0", "nobody", "unlabelled", (), cases, "a study"), settings)
    return open_dataset(str(folder))


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """24 studies of 1 to 4 radiographs, two studies a patient; the view of some is not known."""
    views, cases, seed = ("pa", "lateral", "pa", ""), [], 0
    for number in range(24):
        images = []
        for place in range(1 + number % 4):
            side = "left" if place % 2 else "right"
            images.append(SourceImage(f"{seed}", Drawn(seed), {"view": views[place], "laterality": side}))
            seed += 1
        cases.append(Case(f"study-{number}", f"p{number // 2}", tuple(images)))
    cases.append(Case("copy", "p99", (SourceImage("again", Drawn(0), {"view": "pa"}),)))
    return written(tmp_path_factory.mktemp("studies") / "dataset", cases)


def micle(**changed: Any) -> MICLeConfig:
    return MICLeConfig(epochs=1, **changed)


def batches(dataset: Dataset, batch_size: int = 8, **changed: Any) -> ViewBatches:
    stage = micle(**changed)
    samples = MICLe.samples(dataset, dataset.rows(["train"]))
    pair, mask = MICLe.pairing(stage, dataset, samples), patient_mask(dataset, stage)
    return ViewBatches(dataset, samples, pair, VIEWS, 0, 0, batch_size, 0, 1, augment=True, mask=mask)


def test_a_case_of_one_image_gives_two_views_of_it() -> None:
    for turn in range(3):
        assert two_images(5, np.array([7]), turn, uniforms) == (7, 7)
        assert one_image(5, np.array([7]), turn, uniforms) == (7, 7)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10**6), st.integers(0, 50))
def test_two_distinct_images_and_every_image_in_half_as_many_turns(count: int, sample: int, cycle: int) -> None:
    """In each ⌈K/2⌉ turns from the start, whatever K; in K turns each image stands exactly twice."""
    rows = np.arange(100, 100 + count)
    pairs = [two_images(sample, rows, turn, uniforms) for turn in range(cycle * count, (cycle + 1) * count)]
    assert all(first != second for first, second in pairs)
    half = -(-count // 2)
    for stretch in (pairs[:half], pairs[-half:]):
        assert {row for pair in stretch for row in pair} == set(rows.tolist())
    assert Counter(row for pair in pairs for row in pair) == dict.fromkeys(rows.tolist(), 2)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_ordered_pair_is_equally_likely_in_every_turn(count: int) -> None:
    """Algorithm 1 of the paper: two images of the bag, drawn at random. Over 6,000 cases."""
    for turn in range(count):
        pairs = Counter(two_images(sample, np.arange(count), turn, uniforms) for sample in range(6_000))
        assert set(pairs) == {(a, b) for a in range(count) for b in range(count) if a != b}
        expected = 6_000 / len(pairs)
        # Four standard deviations and a half.
        assert max(abs(n - expected) for n in pairs.values()) < 4.5 * np.sqrt(expected)


def test_pairs_depend_on_seed_stage_case_and_turn_alone(studies: Dataset) -> None:
    """Asked for in any order, by a process that begins anywhere."""
    whole = [batches(studies)(step).rows_VB for step in range(12)]
    again = batches(studies)
    for step in (11, 2, 7):
        assert torch.equal(again(step).rows_VB, whole[step])
    travelled = pickle.loads(pickle.dumps(batches(studies, pair_within={"view": "same"}, patient_mask="even_slides")))
    here = batches(studies, pair_within={"view": "same"}, patient_mask="even_slides")
    assert torch.equal(travelled(9).rows_VB, here(9).rows_VB)
    assert torch.equal(travelled(9).groups_VBG, here(9).groups_VBG)


def test_pairs_are_the_same_for_ever() -> None:
    """Golden values; if they change, raise STREAM_VERSION: a resumed run must find the pairs it was started with."""
    rows, view = np.arange(5), np.array([[0], [0], [1], [0], [-1]], dtype=np.int32)
    within = PairsWithin(("view",), (True,), view)
    assert [two_images(3, rows, turn, uniforms) for turn in range(4, 9)] == [(0, 1), (2, 1), (0, 3), (4, 1), (4, 0)]
    assert [within(3, rows, turn, uniforms) for turn in range(5)] == [(3, 1), (4, 4), (0, 3), (2, 2), (1, 3)]


def test_over_epochs_every_image_of_every_case_is_used(studies: Dataset) -> None:
    """25 cases of at most four images: two epochs, by the stream itself."""
    make = batches(studies, batch_size=25)
    first = {int(row) for step in range(2) for row in make(step).rows_VB.ravel()}
    assert first == set(range(studies.num_images))


def test_no_two_views_of_a_case_are_negatives_and_no_case_stands_twice_in_a_batch_of_an_epoch(
    studies: Dataset,
) -> None:
    """Batches of 8 of 25 cases run across the edges of epochs, where a case may stand twice."""
    make, twice = batches(studies), 0
    for step in range(12):
        batch = make(step)
        rows = batch.rows_VB.flatten().numpy()
        groups = batch.groups_VBG.flatten(0, 1).numpy()
        same_case = studies.case_of[rows][:, None] == studies.case_of[rows]
        left_out = (groups[:, None] == groups[None]).any(axis=2)
        assert np.array_equal(same_case, left_out)
        repeated = len(set(studies.case_of[batch.rows_VB[0].numpy()].tolist())) < 8
        twice += repeated
        assert not repeated or 8 * step // 25 != (8 * step + 7) // 25
    assert twice > 0


def test_masked_are_all_images_of_the_patient_and_copies_and_nothing_else(studies: Dataset) -> None:
    """As the loss gets it from the batch."""
    make = batches(studies, batch_size=25, patient_mask="even_slides")
    batch = make(0)
    rows = batch.rows_VB.flatten().numpy()
    patients, pixels = studies.column("patient")[rows], studies.column("pixel_sha256")[rows]
    expected = (patients[:, None] == patients) | (pixels[:, None] == pixels)
    groups = batch.groups_VBG.flatten(0, 1)
    assert np.array_equal((groups[:, None] == groups[None]).any(dim=2).numpy(), expected)
    assert (pixels[:, None] == pixels).sum() > (rows[:, None] == rows).sum()

    views = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert nt_xent(views[:25], views[25:], 0.5, groups) < nt_xent(views[:25], views[25:], 0.5)
    # One rank with the mask on passes all of it on to the loss.
    module = SimCLR(SimCLRConfig(epochs=1), torch.nn.Flatten(), 3 * 16 * 16)
    pixels_VBCHW = batch.crops_VBCHW.float() / 255
    projected = module.projection(pixels_VBCHW.flatten(0, 1).flatten(1)).detach()
    alone = nt_xent(projected[:25], projected[25:], 0.1, groups)
    assert float(module(pixels_VBCHW, batch.groups_VBG).loss.detach()) == pytest.approx(float(alone), rel=1e-5)


def test_patients_are_numbered_alike_where_their_ids_are_comparable(studies: Dataset, tmp_path: Path) -> None:
    """The same source: patient p1 of both is one; another source: somebody else. Copies are known by their pixels."""
    more = [Case("a", "p1", (SourceImage("x", Drawn(0)),)), Case("b", "q", (SourceImage("y", Drawn(900)),))]
    for source, same in (("drawn", True), ("elsewhere", False)):
        other = written(tmp_path / source, more, source=source)
        both = CombinedDataset([studies, other])
        mask = patient_mask(both, SimCLRConfig(epochs=1, patient_mask=True))
        assert mask is not None
        numbers = mask(np.arange(both.num_images))
        names = both.column("patient")
        mine, theirs = np.flatnonzero(names == "p1")[0], np.flatnonzero(names == "p1")[-1]
        assert mine < studies.num_images <= theirs
        assert (numbers[mine, 0] == numbers[theirs, 0]) == same
        pixels = both.column("pixel_sha256")
        alike = pixels[:, None] == pixels
        assert np.array_equal(numbers[:, None, 1] == numbers[:, 1], alike)
        within = np.arange(both.num_images) < studies.num_images
        expected = (names[:, None] == names) & (same | (within[:, None] == within))
        assert np.array_equal(numbers[:, None, 0] == numbers[:, 0], expected)


def test_numbers_of_many_images_travel_as_the_name_of_a_file(studies: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "INLINE_BYTES", 10)
    mask = patient_mask(studies, micle(patient_mask=True))
    pairs = PairsWithin.of(studies, {"view": "same", "laterality": "different"})
    assert mask is not None
    again, pairs_again = pickle.loads(pickle.dumps(mask)), pickle.loads(pickle.dumps(pairs))
    assert not pairs_again.codes_NA.flags.writeable  # mapped from the file
    assert len(pickle.dumps(mask)) < 1000
    assert np.array_equal(again(np.arange(20)), mask(np.arange(20)))
    assert str(pairs_again) == str(pairs) == "the same view and another laterality"
    assert np.array_equal(pairs_again.codes_NA, pairs.codes_NA)


CODES = st.lists(st.tuples(st.integers(0, 3), *[st.integers(-1, 2)] * 3), min_size=1, max_size=14)


@settings(max_examples=150, deadline=None)
@given(CODES, st.tuples(*[st.booleans()] * 3), st.integers(1, 3), st.integers(0, 99))
def test_pairs_fit_and_those_that_cannot_are_counted(codes: Any, same: Any, number: int, sample: int) -> None:
    """Against plain loops: who fits with whom, how many have no partner, and that each image is the first once."""
    codes = sorted(codes)
    case_R = np.array([row[0] for row in codes], dtype=np.int64)
    values = np.array([row[1 : 1 + number] for row in codes], dtype=np.int32)
    pairs = PairsWithin(("a", "b", "c")[:number], same[:number], values)

    def fits(i: int, j: int) -> bool:
        known = (values[i] >= 0).all() and (values[j] >= 0).all()
        return i != j and bool(known) and all((values[i, k] == values[j, k]) == same[k] for k in range(number))

    counted = pairs.num_partners(np.arange(len(codes)), case_R)
    for case in set(case_R.tolist()):
        rows: Rows = np.flatnonzero(case_R == case)
        taken = [pairs(sample, rows, turn, uniforms) for turn in range(len(rows))]
        assert sorted(first for first, _ in taken) == rows.tolist()
        for first, second in taken:
            assert counted[first] == sum(fits(first, other) for other in rows.tolist())
            assert fits(first, second) if counted[first] else first == second


def test_every_partner_that_fits_is_equally_likely() -> None:
    pairs = PairsWithin(("view",), (False,), np.array([[0], [1], [1], [2], [0]], dtype=np.int32))
    found = Counter(pairs(sample, np.arange(5), turn, uniforms) for sample in range(3000) for turn in (0, 1))
    partners = [found[0, other] for other in (1, 2, 3)]
    assert sum(partners) == pytest.approx(1200, abs=140)
    assert max(partners) - min(partners) < 4.5 * 20 * 2**0.5


def test_unknown_values_and_attributes_of_another_dataset_fit_with_nothing(studies: Dataset, tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", [Case("a", "z", tuple(SourceImage(str(n), Drawn(990 + n)) for n in range(2)))])
    both = CombinedDataset([studies, plain])
    samples = MICLe.samples(both, both.rows(["train"]))
    pair = PairsWithin.of(both, {"view": "same"})
    alone = pair.num_partners(samples.rows, both.case_of[samples.rows].astype(np.int64)) == 0
    assert alone[-2:].all()
    assert alone[: studies.num_images][studies.column("attr.view") == ""].all()
    assert not alone.all()


def test_what_the_constraint_leaves_alone_is_measured(studies: Dataset) -> None:
    """Of six studies each of 2, 3 and 4 images: pa and lateral; pa, lateral, pa; and one more of no known view."""
    samples = MICLe.samples(studies, studies.rows(["train"]))
    (line,) = MICLe.remarks(micle(pair_within={"view": "same"}), studies, samples)
    assert line == (
        "pair_within: 6 of 18 cases with two images or more have no pair with the same view, and 30 of their 54 images "
        "no partner; these give two views of themselves"
    )
    assert MICLe.remarks(micle(), studies, samples) == []
    pairs = PairsWithin(("sex",), (False,), np.zeros((studies.num_images, 1), np.int32))
    with pytest.raises(InputError, match="none of 18 cases with two images or more has a pair with another sex"):
        micle_module._fallback(pairs, samples)


def test_micle_is_refused_where_no_case_has_two_images_and_warned_of_where_few_have(studies: Dataset) -> None:
    rows = studies.rows(["train"])
    one_each = rows[np.unique(studies.case_of[rows], return_index=True)[1]]
    with pytest.raises(InputError, match="none of its 25 cases has two images or more"):
        MICLe.samples(studies, one_each)
    multiple = rows[np.bincount(studies.case_of)[studies.case_of[rows]] > 1][1]
    few = MICLe.samples(studies, np.union1d(one_each, multiple))
    (line,) = MICLe.remarks(micle(), studies, few)
    assert line == ("only 4 % of cases have two images or more (1 of 25): on all others MICLe does what SimCLR does")


def recipe(dataset: Dataset, run: Path, *words: str) -> PretrainConfig:
    stage = "stages=[{method: micle, steps: 1, batch_size: 8}]"
    return load_config(PretrainConfig, [f"data={dataset.location}", f"run={run}", stage, *words])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("stages.0.pair_within.veiw=same", r"no attribute 'veiw' \(nearest: view\); there are laterality, view"),
        (
            "stages.0.method=simclr stages.0.patient_mask=true",
            r"stages\.0\.patient_mask: 7\.\d+ % of a sample's negatives .*even_slides",
        ),
    ],
)
def test_bad_settings_are_one_line_before_anything_starts(
    studies: Dataset, tmp_path: Path, words: str, told: str
) -> None:
    with pytest.raises(InputError, match=told) as refusal:
        pretrain(recipe(studies, tmp_path / "run", *words.split()))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("word", ["{view: alike}", "{view: 1}"])
def test_a_word_that_is_no_constraint_is_refused(studies: Dataset, tmp_path: Path, word: str) -> None:
    with pytest.raises(InputError, match="'same' or 'different'"):
        recipe(studies, tmp_path / "run", f"stages.0.pair_within={word}")


def test_the_fallback_is_said_at_the_start(
    studies: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="more than the 25 samples"):
        pretrain(recipe(studies, tmp_path / "run", "stages.0.pair_within.view=same", "stages.0.batch_size=99"))
    assert "1-micle: pair_within: 6 of 18 cases" in capsys.readouterr().out


def test_the_mask_is_refused_for_slides_unless_said_twice(
    studies: Dataset, synthetic_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where half of the images are of patients with many, or much of a batch would be left out."""
    stage, where = SimCLRConfig(epochs=1, patient_mask=True), "stages.0.patient_mask"
    samples = SimCLR.samples(studies, studies.rows(["train"]))
    with pytest.raises(InputError, match=r"7\.\d+ % of a sample's negatives .* left out \(13 patients, 61 samples\)"):
        check_patient_mask(studies, samples, stage, where)
    few = SimCLR.samples(synthetic_dataset, synthetic_dataset.rows(["train"]))
    check_patient_mask(synthetic_dataset, few, stage, where)
    monkeypatch.setattr(patient_mask_module, "MAX_IMAGES", 2)
    with pytest.raises(InputError, match="half of the 61 images are of patients with 7 images or more"):
        check_patient_mask(studies, samples, stage, where)
    for allowed in ("even_slides", False):
        check_patient_mask(studies, samples, stage.model_copy(update={"patient_mask": allowed}), where)


def test_the_share_that_is_masked_is_that_of_pairs_of_one_patient(studies: Dataset, tmp_path: Path) -> None:
    """Counted in loops, with the datasets' weights."""
    other = written(
        tmp_path / "other", [Case(str(n), f"p{n % 2}", (SourceImage(str(n), Drawn(800 + n)),)) for n in range(9)]
    )
    both = CombinedDataset([studies, other], [1, 3])
    samples = SimCLR.samples(both, both.rows(["train"]))
    names = both.column("patient")[samples.rows]
    weight = np.where(samples.rows < studies.num_images, 0.25 / studies.num_images, 0.75 / 9)
    expected = sum(
        weight[i] * weight[j] for i in range(len(names)) for j in range(len(names)) if i != j and names[i] == names[j]
    )
    patients = patient_mask_module._patients([studies, other])
    assert patient_mask_module._masked_share(both, samples, patients) == pytest.approx(expected)
