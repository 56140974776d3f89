"""What a submitted job may not take along: keys in its words or environment, patients' data and keys in its folders."""

import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from clusters import upload
from clusters.config import InputError
from clusters.upload import check_job

COMMAND = ["--", "python", "-m", "pretrain", "recipe.yaml"]
KEY40 = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--runtime-env-json", '{"env_vars": {"WANDB_API_KEY": "0123456789abcdef"}}', *COMMAND],
            "a value for WANDB_API_KEY",
        ),
        (["--", "env", "AWS_SECRET_ACCESS_KEY=abcdefghij", "python", "-m", "pretrain"], "a value for AWS_SECRET"),
        (["--runtime-env", "{folder}/env.yaml", *COMMAND], r"env.yaml:2: a value for HF_TOKEN stands here \(hf_m…\)"),
        (["--runtime-env={folder}/pip.yaml", *COMMAND], r"needs.txt:2: a password in a URL"),
        (["--metadata-json", '{"password": "abcdefghij"}', *COMMAND], "a value for password"),
        (["--", "python", "x.py", "--password", "abcdefghij"], "a value for password"),
        (["--", "bash", "-c", "python x.py --password abcdefghij && echo 'x"], "a value for password"),
        (["--working-dir", "https://me:abcdefghij@host/sources.zip", *COMMAND], "a password in a URL"),
        (["--submission-id", "token=abcdefghij", *COMMAND], "a value for token"),
        (["--", "bash", "-c", f"wandb login {KEY40} && python -m pretrain"], "a W&B key"),
        (["--", "wandb", "login", "--relogin", KEY40], "a W&B key"),
        (["--headers", f'{{"Authorization": "Bearer {KEY40}"}}', *COMMAND], "give it as RAY_JOB_HEADERS"),
    ],
)
def test_a_secret_in_words_or_environment_stays_here(tmp_path: Path, words: list[str], told: str) -> None:
    (tmp_path / "env.yaml").write_text("env_vars:\n  HF_TOKEN: hf_mine\n")
    (tmp_path / "needs.txt").write_text("torch\n--index-url https://me:abcdefgh@packages.example/simple\n")
    (tmp_path / "pip.yaml").write_text(f"pip: {tmp_path}/needs.txt\n")
    with pytest.raises(InputError, match=told) as refused:
        check_job([word.replace("{folder}", str(tmp_path)) for word in words])
    assert "456789abcdef" not in str(refused.value) and "efghij" not in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--submission-id", "ham-3f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c", *COMMAND],
        ["--metadata-json", f'{{"git": "{KEY40}"}}', *COMMAND],
        [*COMMAND, "run=/shared/runs/3f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c", "tracking.name=q8Zk3Lx0Vb7Nn2Wm5Tj1Rc"],
        [*COMMAND, "tracking.wandb_key_file=/shared/key", "--password-file", "/shared/password"],
        ["--", "podman", "run", "--secret", "wandb-key,type=env", "IMAGE", "python", "-m", "pretrain"],
        ["--", "hf", "auth", "login", "--add-to-git-credential", "--token", "$HF_TOKEN"],
        ["--runtime-env-json", f'{{"env_vars": {{"NO_IMPLICIT_TOKEN": "1", "RUN_ID": "{KEY40[:32]}"}}}}', *COMMAND],
        ["--working-dir", "s3://bucket/sources.zip", *COMMAND],
        [
            "--no-wait",
            "--runtime-env-json",
            '{"env_vars": {"OMP_NUM_THREADS": "4"}, "py_modules": ["s3://b/m.zip"]}',
            *COMMAND,
        ],
    ],
)
def test_names_commits_and_paths_are_no_secrets(words: list[str]) -> None:
    check_job(words)


@pytest.mark.parametrize(
    "words",
    [
        ["--no-such-option", *COMMAND],
        ["--runtime-env", "/nothing.yaml", *COMMAND],
        ["--runtime-env-json", "[1", *COMMAND],
        ["--runtime-env-json", "[1]", *COMMAND],
        ["--runtime-env-json", '{"excludes": 3, "py_modules": "x", "working_dir": 4, "pip": 5}', *COMMAND],
    ],
)
def test_what_ray_itself_refuses_is_left_to_it(words: list[str]) -> None:
    check_job(words)


FORBIDDEN = [
    ("DATA/shard-000000.tar", "a dataset"),
    ("scans/a/1.DCM", "a DICOM image"),
    ("scans/DICOMDIR", "a DICOM image"),
    ("keyring.json", "a keyring"),
    ("keyring-whois/1.parquet", "the source ids"),
    ("runs/x/predictions.parquet", "what was predicted"),
    ("out/parts/part-000000.parquet", "what was predicted"),
    (".env", "a file of secrets"),
    (".env.local", "a file of secrets"),
    ("secrets/auth_token", "a token"),
    ("ssh/id_ed25519", "a private key"),
    ("tls/head.pem", "a private key"),
    ("tls/head", "a private key"),
    ("scans.zip", "a DICOM image"),
]


def folder_with(name: str, folder: Path) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    first = (
        "" if name.endswith("/head") else "Certificate:\n-----BEGIN CERTIFICATE-----\nxyz\n-----END CERTIFICATE-----\n"
    )
    (folder / name).write_text(f"{first}-----BEGIN PRIVATE KEY-----\nabc\n" if name.startswith("tls/") else "x")
    if name == "scans.zip":
        with zipfile.ZipFile(folder / name, "w") as zipped:
            zipped.writestr("a/1.dcm", "x")
    (folder / "train.py").write_text("")
    (folder / ".env.example").write_text("WANDB_API_KEY=")
    (folder / "token.py").write_text("")
    return folder


@pytest.mark.parametrize(("name", "what"), FORBIDDEN)
def test_data_of_patients_and_secrets_are_not_sent_along(tmp_path: Path, name: str, what: str) -> None:
    folder = folder_with(name, tmp_path / "mine")
    words = [f"--working-dir={folder}", *COMMAND]
    with pytest.raises(InputError, match=f"{name}.* is {what}.* would be sent along; .* .rayignore"):
        check_job(words)
    check_job(["--runtime-env-json", json.dumps({"excludes": [name]}), *words])
    (folder / ".rayignore").write_text(f"{name}\n")
    check_job(words)


@pytest.mark.parametrize("key", ["working_dir", "py_modules"])
def test_the_folders_of_a_runtime_environment_are_looked_at_too(tmp_path: Path, key: str) -> None:
    folder = folder_with("a/1.dcm", tmp_path / "mine")
    value: object = str(folder) if key == "working_dir" else ["s3://bucket/m.zip", str(folder)]
    (tmp_path / "env.yaml").write_text(json.dumps({key: value}))
    for words in (["--runtime-env", f"{tmp_path}/env.yaml"], ["--runtime-env-json", json.dumps({key: value})]):
        with pytest.raises(InputError, match=r"a/1.dcm is a DICOM image and would be sent along"):
            check_job([*words, *COMMAND])
    (tmp_path / "empty").mkdir()
    words = ["--runtime-env", f"{tmp_path}/env.yaml", "--working-dir", f"{tmp_path}/empty", *COMMAND]
    if key == "working_dir":  # which the option replaces
        check_job(words)


@pytest.mark.parametrize("name", ["mine.zip", "mine.tar.gz", "mine.whl"])
def test_archives_are_looked_into_by_name(tmp_path: Path, name: str) -> None:
    folder, archive = folder_with("a/1.dcm", tmp_path / "mine"), tmp_path / name
    if name.endswith(".gz"):
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(folder, ".")
    else:
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.write(folder / "a/1.dcm", "a/1.dcm")
    environment = {"py_modules": [str(archive)]} if name.endswith(".whl") else {"working_dir": str(archive)}
    with pytest.raises(InputError, match=rf"{name}/a/1.dcm is a DICOM image .*; take it out"):
        check_job(["--runtime-env-json", json.dumps(environment), *COMMAND])


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.tar.gz", tmp_path / "cut.tar.gz"
    with tarfile.open(whole, "w:gz") as packed:
        packed.add(folder_with("a.bin", tmp_path / "mine"), ".")
    cut.write_bytes(whole.read_bytes()[:-30])
    check_job(["--working-dir", str(whole), *COMMAND])
    with pytest.raises(InputError, match=r"cut.tar.gz cannot be read"):
        check_job(["--working-dir", str(cut), *COMMAND])
    (tmp_path / "mine/.gitignore").write_bytes("gerät".encode("latin-1"))
    with pytest.raises(InputError, match=r"mine cannot be read"):
        check_job(["--working-dir", str(tmp_path / "mine"), *COMMAND])


def test_the_address_is_said_once() -> None:
    with pytest.raises(InputError, match="--address stands once"):
        check_job(["--address", "http://10.0.0.9:8265", *COMMAND])


def test_a_folder_that_is_too_large_names_what_is_large(tmp_path: Path) -> None:
    for number, size in enumerate((1_000, 15_000_000, 9_000_000, 10)):
        (tmp_path / f"{number}.bin").write_bytes(bytes(size))
    with pytest.raises(InputError, match=r"24 MB .*1.bin \(15 MB\), 2.bin \(9 MB\)"):
        check_job(["--working-dir", str(tmp_path), *COMMAND])


@pytest.mark.parametrize("heeded", [True, False])
def test_what_is_looked_at_is_what_ray_packs(tmp_path: Path, heeded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0" if heeded else "1")
    folder = tmp_path / "mine"
    for name in ("a.py", "b/c.py", "b/big.bin", "runs/x", ".git/y", "kept.bin", "__pycache__/z.pyc", "d/e"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"12345")
    (folder / ".gitignore").write_text("/runs/\n")
    (folder / "b" / ".rayignore").write_text("*.bin\n")
    excludes = [*get_runtime_env_default_excludes(), "/d"]
    create_package(str(folder), tmp_path / "package.zip", include_gitignore=heeded, excludes=excludes)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        sent = {entry.filename: entry.file_size for entry in package.infolist() if not entry.is_dir()}
    assert upload.packed(folder, excludes) == sent
    assert set(sent) >= {"a.py", "b/c.py", "kept.bin"} and ("runs/x" in sent) is not heeded and "d/e" not in sent


def test_this_checkout_can_be_sent(tmp_path: Path) -> None:
    from tests.test_clusters_upload import copy_of_the_checkout

    check_job(["--working-dir", str(copy_of_the_checkout(tmp_path / "checkout")), *COMMAND])
