"""Pretraining on several datasets: resumed exactly, told in full, and nobody learned from who is evaluated on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from clusters.config import InputError, load_config
from data.cases import Case, RawDataset, SourceImage
from data.combined import CombinedDataset, shares
from data.config import ImportConfig
from data.dataset import Dataset, open_dataset
from data.manifest import MANIFEST, manifest_bytes, seal
from data.shards import write_dataset
from data.sources import read_raw, synthetic
from finetune.cohort import choose_cohort, find_leaks
from finetune.config import FinetuneConfig
from pretrain.batches import ViewBatches
from pretrain.config import PretrainConfig
from pretrain.encoder_folder import hash64, load_encoder, read_seen
from pretrain.leakage import find_overlap, if_namesakes, pretraining_rows
from pretrain.methods import METHODS, AnyStage
from pretrain.monitor import probe_dataset
from pretrain.run import pretrain
from pretrain.views import ViewConfig
from tests.drawn_cases import Drawn
from tests.finetune_runs import write_encoder
from tests.killed_runs import killed_after_saves

OPTIM = {"name": "sgd", "lr": 0.05, "lr_scaling": "none"}
ALL_TRAIN = {"train": 1.0, "val": 0.0, "test": 0.0}


def imported(folder: Path, **changed: Any) -> Dataset:
    values = {"source": "synthetic", "out": str(folder), "num_cases": 30, "size_px": 48, "num_processes": 1}
    config = synthetic.Options.model_validate(values | {"images_per_shard": 40} | changed)
    write_dataset(read_raw(config), config)
    return open_dataset(str(folder))


def relabelled(dataset: Dataset, folder: Path, **changed: Any) -> Dataset:
    """The same files under another manifest."""
    shutil.copytree(dataset.location, folder)
    manifest = seal(dataset.manifest.model_copy(update={"sha256": "", **changed}))
    (folder / MANIFEST).write_bytes(manifest_bytes(manifest))
    return Dataset(str(folder), manifest)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a keyring of fixed keys: the keys decide the splits."""
    folder = tmp_path_factory.mktemp("datasets")
    keyring = folder / "keyring.json"
    keyring.write_text(json.dumps({"version": 1, "id_key": "1f" * 32, "split_salt": "2e" * 32}))
    keyring.chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def other(folders: Path) -> Dataset:
    """Other cases, of a keyring of its own."""
    return imported(folders / "other", seed=1, ids="keyed", keyring=str(folders / "keyring.json"))


@pytest.fixture(scope="module")
def same_patients(folders: Path) -> Dataset:
    """The first cases of `synthetic_dataset`, all for training: its val and test patients are among them."""
    return imported(folders / "same", splits=ALL_TRAIN, name="same")


@pytest.fixture(scope="module")
def same_images(folders: Path) -> Dataset:
    """The same, under keyed ids: only the pixels tell."""
    return imported(folders / "images", splits=ALL_TRAIN, ids="keyed", keyring=str(folders / "keyring.json"))


def values(run: Path, *datasets: Dataset, **changed: Any) -> dict[str, Any]:
    stage = {"batch_size": 8, "projection_hidden": 16, "projection_dim": 8, "optim": OPTIM}
    return {
        "data": [dataset.location for dataset in datasets],
        "run": str(run),
        "precision": "fp32",
        "encoder": {"name": "test_resnet"},
        "views": {"size_px": 32},
        "stages": [{"method": "simclr", "steps": 4, **stage}, {"method": "micle", "steps": 3, **stage}],
        "tracking": {"wandb": "disabled", "every_steps": 1},
        "checkpoint": {"every_steps": 2},
        **changed,
    }


def config(run: Path, *datasets: Dataset, **changed: Any) -> PretrainConfig:
    return PretrainConfig.model_validate(values(run, *datasets, **changed))


@pytest.fixture(scope="module")
def finished(synthetic_dataset: Dataset, other: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run on two datasets; not to be altered."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    pretrain(config(folder, synthetic_dataset, other, weights=[1, 2]))
    return folder


def test_an_interrupted_run_ends_as_the_undisturbed_one(
    synthetic_dataset: Dataset, other: Dataset, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = config(tmp_path / "run", synthetic_dataset, other, weights=[1, 2])
    with killed_after_saves(monkeypatch, 1, 3):
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                pretrain(recipe)
    pretrain(recipe)
    for name in ("encoder/model.safetensors", "encoder/seen.parquet", "encoder/config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
    said = [json.loads(line) for line in (tmp_path / "run/1-simclr/metrics.jsonl").read_text().splitlines()]
    assert any("probe/knn_auroc" in line for line in said)


def test_lineage_card_and_seen_list_every_dataset(synthetic_dataset: Dataset, other: Dataset, finished: Path) -> None:
    _, card = load_encoder(str(finished))
    for entry in card.lineage:
        assert [origin["fingerprint"] for origin in entry["datasets"]] == [
            synthetic_dataset.fingerprint,
            other.fingerprint,
        ]
        assert [o["images"] for o in entry["datasets"]] == [len(d.rows(["train"])) for d in (synthetic_dataset, other)]
        assert entry["weights"] == [1, 2]
    text = (finished / "encoder/README.md").read_text()
    assert synthetic_dataset.fingerprint[:16] in text and other.fingerprint[:16] in text
    seen = read_seen(str(finished))
    scheme = f"keyed:{other.manifest.split['salt_id']}"
    assert seen.ids == {"source:synthetic", scheme}
    assert seen.patients[scheme] == {hash64(p) for p in other.column("patient")[other.rows(["train"])]}
    assert len(seen.images) == sum(len(d.rows(["train"])) for d in (synthetic_dataset, other))


def test_a_batch_holds_both_and_the_right_images(synthetic_dataset: Dataset, other: Dataset) -> None:
    both = CombinedDataset([synthetic_dataset, other], [1, 3])
    for method in ("simclr", "micle"):
        samples = METHODS[method].samples(both, both.rows(["train"]))
        pair = METHODS[method].pairing(
            TypeAdapter(AnyStage).validate_python({"method": method, "steps": 1}), both, samples
        )
        make = ViewBatches(both, samples, pair, ViewConfig(size_px=32), 0, 0, 32, 0, 1, augment=True)
        rows = np.concatenate([make(step).rows_VB.numpy() for step in range(2)], axis=1)
        assert set(both.column("split")[rows.ravel()]) == {"train"}
        assert (both.case_of[rows[0]] == both.case_of[rows[1]]).all()
        assert (rows[0] < synthetic_dataset.num_images).mean() == 0.25


def test_other_weights_are_another_run(synthetic_dataset: Dataset, other: Dataset, finished: Path) -> None:
    with pytest.raises(InputError, match=r"1-simclr: made with another config \(dataset.weights"):
        pretrain(config(finished, synthetic_dataset, other, weights=[1, 3]))
    with pytest.raises(InputError, match=r"1-simclr: made with another config \(dataset"):
        pretrain(config(finished, synthetic_dataset))


@pytest.mark.parametrize("kind", ["patients", "images"])
def test_who_is_held_out_is_not_learned_from(
    synthetic_dataset: Dataset,
    same_patients: Dataset,
    same_images: Dataset,
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Refused with the numbers, then left out and said so; by ids or, where nobody can compare them, by pixels."""
    leaky = same_patients if kind == "patients" else same_images
    held = synthetic_dataset.column("split") != "train"
    shared = np.isin(leaky.column("pixel_sha256"), synthetic_dataset.column("pixel_sha256")[held])
    patients = len(set(leaky.column("patient")[shared])) if kind == "patients" else 0
    told = f"{patients} patients and {shared.sum()} images of splits train"
    with pytest.raises(InputError, match=f"{told}.*on_leak=exclude") as refusal:
        pretrain(config(tmp_path / "run", synthetic_dataset, leaky))
    assert "\n" not in str(refusal.value)
    said = capsys.readouterr().out
    assert ("share patients is unknown" in said) == (kind == "images")

    stages = values(tmp_path)["stages"][:1]
    recipe = config(tmp_path / "run", synthetic_dataset, leaky, on_leak="exclude", stages=stages)
    pretrain(recipe)
    assert f"{told}" in capsys.readouterr().out
    seen = read_seen(str(tmp_path / "run"))
    assert not seen.images & {hash64(h) for h in synthetic_dataset.column("pixel_sha256")[held]}
    both = CombinedDataset([synthetic_dataset, leaky])
    assert len(pretraining_rows(both, recipe)) == len(both.rows(["train"])) - shared.sum()


def test_a_dataset_to_be_evaluated_on_is_kept_out_without_being_learned_from(
    synthetic_dataset: Dataset, same_patients: Dataset, tmp_path: Path
) -> None:
    """Whole: where a dataset is evaluated on alone, its patients of all splits are."""
    more = imported(tmp_path / "more", splits=ALL_TRAIN, name="more", num_cases=90)
    held_out = {"held_out": [synthetic_dataset.location]}
    with pytest.raises(InputError, match="on_leak=exclude"):
        pretrain(config(tmp_path / "run", more, **held_out))
    stages = values(tmp_path)["stages"][:1]
    pretrain(config(tmp_path / "run", more, **held_out, on_leak="exclude", stages=stages))
    seen = read_seen(str(tmp_path / "run")).patients["source:synthetic"]
    assert seen
    assert not seen & {hash64(patient) for patient in synthetic_dataset.column("patient")}
    study = FinetuneConfig(data=synthetic_dataset.location, encoder="/none", out="/none")
    assert find_leaks(choose_cohort(synthetic_dataset, study), str(tmp_path / "run"), "refuse") == []
    with pytest.raises(InputError, match="made with another config"):
        pretrain(config(tmp_path / "run", relabelled(same_patients, tmp_path / "copy"), stages=stages))


def test_fine_tuning_is_refused_where_a_later_dataset_held_test_patients(
    synthetic_dataset: Dataset, other: Dataset, same_patients: Dataset, tmp_path: Path
) -> None:
    """In dataset b only; the refusal has the numbers and the mend, and validation is warned of."""
    both = CombinedDataset([other, same_patients])
    encoder = write_encoder(tmp_path / "leaky", both)
    study = FinetuneConfig(data=synthetic_dataset.location, encoder="/none", out="/none")
    cohort = choose_cohort(synthetic_dataset, study)
    counts = {}
    for split in ("val", "test"):
        rows = np.flatnonzero(
            np.isin(synthetic_dataset.column("pixel_sha256"), same_patients.column("pixel_sha256"))
            & (synthetic_dataset.column("split") == split)
        )
        counts[split] = len(set(synthetic_dataset.column("patient")[rows])), len(rows)
    with pytest.raises(InputError) as refusal:
        find_leaks(cohort, encoder, "refuse")
    patients, images = counts["test"]
    assert f"pretrained on {patients} test patients and {images} test images" in str(refusal.value)
    assert f"held_out=[{synthetic_dataset.location}] on_leak=exclude" in str(refusal.value)
    unknown, leakage, validation = find_leaks(cohort, encoder, "warn")
    assert f"unknown for ids of scheme keyed:{other.manifest.split['salt_id']}" in unknown
    assert leakage.startswith("LEAKAGE")
    patients, images = counts["val"]
    assert f"{patients} validation patients and {images} validation images" in validation


def test_equal_names_under_other_schemes_are_other_people(
    synthetic_dataset: Dataset, other: Dataset, tmp_path: Path
) -> None:
    """`patient-000001` of another source is somebody else, although an encoder saw ids of both schemes."""
    namesakes = relabelled(
        imported(tmp_path / "raw", seed=2, splits=ALL_TRAIN), tmp_path / "namesakes", source="elsewhere"
    )
    assert set(namesakes.column("patient")) & set(synthetic_dataset.column("patient"))
    assert len(find_overlap(CombinedDataset([synthetic_dataset, namesakes]), ["train"], []).rows) == 0
    encoder = write_encoder(tmp_path / "encoder", CombinedDataset([synthetic_dataset, namesakes]))
    study = FinetuneConfig(data=synthetic_dataset.location, encoder="/none", out="/none")
    (warning,) = find_leaks(choose_cohort(synthetic_dataset, study), encoder, "refuse")
    assert "unknown for ids of scheme source:elsewhere" in warning


NAMESAKES = (
    r"; if these are different people with equal numbers \(two hospitals\), import each with a keyring= of its own$"
)


def test_equal_numbers_under_one_keyring_are_told_to_be_perhaps_two_people(
    synthetic_dataset: Dataset, same_patients: Dataset, folders: Path, tmp_path: Path
) -> None:
    """Another hospital's patients, of whom no image is known: wherever they are refused, and not of public ids."""
    one_keyring = {"ids": "keyed", "keyring": str(folders / "keyring.json")}
    splits = {"train": 0.4, "val": 0.3, "test": 0.3}
    ward = imported(tmp_path / "ward", seed=3, num_cases=100, splits=splits, **one_keyring)
    namesakes = imported(tmp_path / "namesakes", seed=2, splits=ALL_TRAIN, **one_keyring)
    for learned, held_out in (([ward, namesakes], []), ([namesakes], [ward.location])):
        with pytest.raises(InputError, match=rf"patients and 0 images of splits train .* images out{NAMESAKES}"):
            pretrain(config(tmp_path / "run", *learned, held_out=held_out))
    encoder = write_encoder(tmp_path / "encoder", namesakes)
    begun = config(tmp_path / "run", ward, encoder={"name": "test_resnet", "weights": encoder})
    with pytest.raises(InputError, match=rf"and 0 images that .* holds out .* on_leak=exclude{NAMESAKES}"):
        pretrain(begun)
    study = FinetuneConfig(data=ward.location, encoder="/none", out="/none")
    with pytest.raises(InputError, match=rf"patients and 0 test images of .* says so\){NAMESAKES}"):
        find_leaks(choose_cohort(ward, study), encoder, "refuse")

    apart = imported(tmp_path / "apart", seed=2, splits=ALL_TRAIN, ids="keyed", keyring=str(tmp_path / "k.json"))
    assert len(find_overlap(CombinedDataset([ward, apart]), ["train"], []).rows) == 0
    with pytest.raises(InputError, match=r"images out$"):
        pretrain(config(tmp_path / "run", synthetic_dataset, same_patients))


@pytest.mark.parametrize(
    ("schemes", "patients", "images", "told"),
    [
        (["keyed:a"], 3, 2, True),
        (["source:table:x", "keyed:a"], 1, 0, True),
        (["keyed:a"], 3, 3, False),
        (["keyed:a"], 0, 0, False),
        (["source:folder:keyed:"], 3, 0, False),
        ([], 3, 0, False),
    ],
)
def test_only_keyed_patients_whose_images_are_others_may_be_two_people(
    schemes: list[str], patients: int, images: int, told: bool
) -> None:
    assert bool(if_namesakes(schemes, patients, images)) == told


def test_the_probe_looks_at_all_whose_labels_agree(synthetic_dataset: Dataset, other: Dataset, tmp_path: Path) -> None:
    names = other.label_names
    probed = probe_dataset(CombinedDataset([synthetic_dataset, other]), None)
    assert isinstance(probed, CombinedDataset) and probed.label_names == synthetic_dataset.label_names
    fewer = relabelled(other, tmp_path / "fewer", labels=names[:3])
    both = CombinedDataset([fewer, synthetic_dataset])
    assert probe_dataset(both, None) is fewer
    assert probe_dataset(both, 1) is synthetic_dataset
    unlabelled = relabelled(other, tmp_path / "unlabelled", labels=[], task="unlabelled")
    assert probe_dataset(CombinedDataset([unlabelled, synthetic_dataset]), None) is synthetic_dataset
    collides = relabelled(other, tmp_path / "collides", labels=names[:1], task="binary")
    with pytest.raises(InputError) as refusal:
        pretrain(config(tmp_path / "run", synthetic_dataset, collides))
    assert f"label '{names[0]}' is multiclass in" in str(refusal.value)
    assert "probe.dataset=0" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data=[/a,/b]", "weights=[1]"], "weights: 1 for 2 datasets"),
        (["data=[/a,/b]", "weights=[1,0]"], "greater than 0"),
        (["data=[]"], "give at least one dataset"),
        (["data=[/a]", "probe.dataset=1"], "probe.dataset: 1 is not a place in data"),
    ],
)
def test_bad_lists_are_one_line(words: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        load_config(PretrainConfig, [*words, "run=/r"])


def test_a_list_may_be_typed_and_a_path_is_taken_as_typed() -> None:
    assert load_config(PretrainConfig, ["data=[/a, s3://b/c]", "run=/r"]).locations == ["/a", "s3://b/c"]
    assert load_config(PretrainConfig, ["data=/a #1", "run=/r"]).locations == ["/a #1"]


def test_a_small_dataset_with_a_large_weight_is_refused(
    synthetic_dataset: Dataset, other: Dataset, tmp_path: Path
) -> None:
    stages = values(tmp_path)["stages"][:1]
    stages[0]["batch_size"] = len(other.rows(["train"])) + 20
    with pytest.raises(InputError, match="would stand several times in one batch"):
        pretrain(config(tmp_path / "run", synthetic_dataset, other, weights=[1, 99], stages=stages))


def test_a_shared_image_leads_to_all_images_of_its_patient_in_every_dataset(folders: Path, tmp_path: Path) -> None:
    """C holds out a picture of patient P of A under another name; so P's other pictures, in B, are not learned from."""

    def written(name: str, pictures: dict[str, list[int]], **changed: Any) -> Dataset:
        found = [
            Case(f"{patient}-{n}", patient, (SourceImage("image", Drawn(n)),))
            for patient, numbers in pictures.items()
            for n in numbers
        ]
        settings = {"ids": "keyed", "keyring": str(folders / "keyring.json"), "name": name} | changed
        chosen = ImportConfig.model_validate({"source": "drawn", "raw": "/raw", "out": str(tmp_path / name)} | settings)
        write_dataset(RawDataset("", "", "unlabelled", (), found, "a picture"), chosen)
        return open_dataset(chosen.out)

    a = written("a", {"p": [1], "q": [2]}, splits=ALL_TRAIN)
    b = written("b", {"p": [3, 4], "r": [5]}, splits=ALL_TRAIN)
    c = written("c", {"x": [1]}, splits={"train": 0.0, "val": 0.0, "test": 1.0}, ids="source")
    both = CombinedDataset([a, b])
    overlap = find_overlap(both, ["train"], [c])
    patient = both.column("patient")
    assert len(overlap.rows) == 3
    assert len(set(patient[overlap.rows])) == 1
    assert (overlap.patients, overlap.images, overlap.shared) == (0, 1, 0)


def test_pictures_that_two_datasets_teach_are_counted(synthetic_dataset: Dataset, same_images: Dataset) -> None:
    both = CombinedDataset([synthetic_dataset, same_images])
    learned = set(synthetic_dataset.column("pixel_sha256")[synthetic_dataset.rows(["train"])])
    shared = len(learned & set(same_images.column("pixel_sha256")))
    assert shared > 0
    assert find_overlap(both, ["train"], []).shared == shared


@pytest.mark.parametrize("weights", [[1e308, 1e308], [1.0, 1e-18]])
def test_extreme_weights_are_shares_or_refused(
    synthetic_dataset: Dataset, other: Dataset, tmp_path: Path, weights: list[float]
) -> None:
    recipe = config(tmp_path / "run", synthetic_dataset, other, weights=weights, on_leak="exclude")
    if weights[0] == weights[1]:
        assert shares(CombinedDataset([synthetic_dataset, other], weights), [1, 1]).tolist() == [0.5, 0.5]
    else:
        with pytest.raises(InputError, match=r"weights: .* none of the samples"):
            pretrain(recipe)
