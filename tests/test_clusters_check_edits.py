"""Edits that people make to the recipes for their own clusters: right ones pass, of wrong ones a clear line is said."""

import copy
import random
import string
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from clusters.check import check
from clusters.checks.secrets import secrets_in
from clusters.checks.starts import wrong_starts
from clusters.checks.tokens import turns_tokens_off
from clusters.config import InputError

ROOT = Path(__file__).parents[1]
CLUSTER, JOB = "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"
SPOT, MACHINE, FROM = "InstanceMarketOptions", "machineType: g2", "FROM python:3.11.14-slim-bookworm"
NO_TOKEN, PINNED = "          automountServiceAccountToken: false\n", "python:3.11.14-slim@sha256:" + "0" * 64
IMAGE, DROP = "              image: YOUR-REGISTRY/manyview:0.1.0\n", "{drop: [ALL]}"
TOKEN_ON, STRICT = "export RAY_AUTH_MODE=token\n", "set -euo pipefail\n"
GPUS_ALIKE = "Kubernetes wants both alike"
SHARED, REQUEUE, WORKDIR = "mountPath: /shared", "#SBATCH --requeue\n", "WORKDIR /opt"
CLAIM = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: shared}\n---\n"
FROM_FOLDER, UNPINNED, UNSEEN = "takes whatever lies in the folder", "is not pinned", "what is downloaded is run unseen"
PIP = "RUN pip install --index-url https://x/simple --no-deps"

# Recipe, what stands there, and what a person writes instead.
RIGHT = [
    ("aws.yaml", SPOT, f"SubnetIds: [subnet-0123456789abcdef0]\n      {SPOT}"),
    ("aws.yaml", "    - --shm-size=16g", "    - --shm-size=16g\n    - --log-driver local\n    - --log-opt max-size=1m"),
    ("gcp.yaml", MACHINE, f"advancedMachineFeatures: {{threadsPerCore: 1}}\n      {MACHINE}"),
    ("gcp.yaml", "SPOT, inst", "SPOT, onInstanceStopAction: {discardLocalSsd: true}, inst"),
    (CLUSTER, "# A Ray cluster", f"{CLAIM}# A Ray cluster"),
    (CLUSTER, "      replicas: 2\n", ""),
    (CLUSTER, "      maxReplicas: 8\n", ""),
    (CLUSTER, "      replicas: 2\n      minReplicas: 2\n      maxReplicas: 8\n", "      minReplicas: 2\n"),
    *(
        (CLUSTER, NO_TOKEN, f"{NO_TOKEN}          {field}\n")
        for field in (
            *("dnsPolicy: ClusterFirst", "dnsConfig: {options: [{name: ndots, value: '1'}]}", "nodeName: a"),
            *("hostAliases: [{ip: 10.0.0.1, hostnames: [a]}]", "enableServiceLinks: false", "hostUsers: false"),
            *("resourceClaims: [{name: gpu, resourceClaimTemplateName: gpu}]", "shareProcessNamespace: true"),
        )
    ),
    *(
        (CLUSTER, IMAGE, f"{IMAGE}              {field}\n")
        for field in (
            *("terminationMessagePolicy: FallbackToLogsOnError", "terminationMessagePath: /x", "stdin: true"),
            *("tty: true", "resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}]"),
        )
    ),
    (CLUSTER, '32Gi, nvidia.com/gpu: "1"}', "32Gi, nvidia.com/gpu: 1000m}"),
    (CLUSTER, SHARED, f"{SHARED}, mountPropagation: HostToContainer"),
    (CLUSTER, SHARED, f"{SHARED}, subPathExpr: $(POD)"),
    *(
        ("slurm.sh", TOKEN_ON, written)
        for written in (
            *('export RAY_AUTH_MODE="token"\n', "export RAY_AUTH_MODE='token'\n", "export A=0 RAY_AUTH_MODE=token\n"),
            *('export A="b c" B RAY_AUTH_MODE=token C=1\n', "declare -x RAY_AUTH_MODE=token\n"),
            *("typeset -x RAY_AUTH_MODE=token\n", "RAY_AUTH_MODE=token; export RAY_AUTH_MODE\n"),
            *("RAY_AUTH_MODE=token\nA=1\nexport A RAY_AUTH_MODE\n", "export RAY_AUTH_MODE=token; A=1\n"),
            *("export RAY_AUTH_MODE\nRAY_AUTH_MODE=token\n", "export A=$(date) RAY_AUTH_MODE=token\n"),
        )
    ),
    ("slurm.sh", STRICT, "set -e -u -o pipefail\n"),
    ("slurm.sh", STRICT, "set -o errexit -o nounset -o pipefail\n"),
    ("slurm.sh", STRICT, "set -eu\nset -o pipefail\n"),
    ("slurm.sh", STRICT, "set -euo pipefail; shopt -s nullglob\n"),
    ("slurm.sh", STRICT, f"{STRICT}set +e\nfalse\nset -e\n"),
    ("slurm.sh", STRICT, f"{STRICT}set -- -a b\n"),
    ("slurm.sh", TOKEN_ON, f"if true; then\n    :\nfi\ncat <<EOF\nx\nEOF\n{TOKEN_ON}"),
    *(
        ("slurm.sh", REQUEUE, f"{REQUEUE}#SBATCH --{option}\n")
        for option in (
            *("gres-flags=enforce-binding", "ntasks-per-gpu=1", "threads-per-core=1", "clusters=a", "nice=10"),
            *("distribution=block", "propagate=NONE", "oversubscribe", "switches=1", "deadline=now+1", "mincpus=1"),
            *("container-image=a#b:1.0.0", "container-mounts=/a:/b", "no-container-entrypoint", "prefer=a"),
        )
    ),
    ("slurm.sh", "ray symmetric-run --address", "apptainer exec --nv x.sif ray symmetric-run --address"),
    ("Dockerfile", WORKDIR, f"RUN <<EOF\nset -e\napt-get update\nEOF\n{WORKDIR}"),
    ("Dockerfile", WORKDIR, f"COPY <<EOF /etc/x.conf\nFROM y\nEOF\nCOPY data/a* ./\n{WORKDIR}"),
    ("Dockerfile", FROM, f"ARG BASE={PINNED}\nFROM ${{BASE}}"),
    ("Dockerfile", FROM, "ARG TAG=3.11.14\nARG BASE=python:${TAG}-slim\nFROM $BASE"),
    ("Dockerfile", WORKDIR, f"ENV PIP_INDEX_URL=https://pypi.hospital.org/simple\n{WORKDIR}"),
    ("Dockerfile", WORKDIR, f"{PIP} --require-hashes -r /x.lock\n{WORKDIR}"),
]

# Recipe, what stands there, what is written instead, words of what must be said, and words of the line it is said of.
WRONG = [
    ("aws.yaml", SPOT, f"SubnetIds: subnet-1\n      {SPOT}", "no list of names", "SubnetIds"),
    ("aws.yaml", SPOT, f"SubnetId: subnet-1\n      {SPOT}", "write `SubnetIds: [subnet-…]`", "SubnetId"),
    ("aws.yaml", SPOT, f"7: x\n      {SPOT}", "the key 7 is no text", "7: x"),
    ("aws.yaml", "{CPU: 8, GPU: 1}", "{CPU: 8, gpu: 1}", "Ray knows no GPUs by 'gpu'; write GPU", "gpu: 1"),
    (CLUSTER, '                limits: {cpu: "8", memory: 32Gi, nvidia.com/gpu: "1"}\n', "", GPUS_ALIKE, "resources"),
    (CLUSTER, '32Gi, nvidia.com/gpu: "1"}', '32Gi, nvidia.com/gpu: "2"}', GPUS_ALIKE, "resources"),
    ("aws.yaml", "{CPU: 8,", "{8: 8,", "the key 8 is no text", "8: 8"),
    ("gcp.yaml", "# Manyview on", "a: b\n---\n# Manyview on", "reads one document a file", "cluster_name"),
    (CLUSTER, "name: manyview\n", "name: {{ .Values.name }}\n", "stands where a key should", ".Values"),
    (CLUSTER, "name: manyview\n", "name: &a [*a]\n", "holds that alias itself", "*a"),
    (CLUSTER, "name: manyview\n", "name: 2026-13-45\n", "month must be in", "2026-13"),
    (CLUSTER, "name: manyview\n", "name: \x07\n", r"a character '\x07'", "name: "),
    (
        CLUSTER,
        "# A Ray cluster",
        f"{CLAIM.replace('Persistent', 'Persistant')}# A Ray",
        "there is no check for",
        "kind",
    ),
    (CLUSTER, "# A Ray cluster", "a: b\n---\n# A Ray cluster", "nothing of Kubernetes'", "a: b"),
    (CLUSTER, "  rayVersion:", "  rayVersoin:", "knows no 'rayVersoin'", "rayVersoin"),
    (CLUSTER, DROP, "{drop: ALL}", "valid list (got 'ALL')", "drop: ALL"),
    (CLUSTER, NO_TOKEN, f"{NO_TOKEN}          hostPID: true\n", "every process of its node", "hostPID"),
    (CLUSTER, NO_TOKEN, f"{NO_TOKEN}          hostIPC: true\n", "shares memory", "hostIPC"),
    (CLUSTER, SHARED, f"{SHARED}, mountPropagation: Bidirectional", "got 'Bidirectional'", "Bidirectional"),
    (CLUSTER, f"capabilities: {DROP}", "appArmorProfile: {type: Unconfined}", "AppArmor keeps", "Unconfined"),
    (CLUSTER, "emptyDir: {medium: Memory, sizeLimit: 8Gi}", "image: {reference: 'a:latest'}", UNPINNED, "a:latest"),
    (
        CLUSTER,
        "      maxReplicas: 8\n",
        "      maxReplicas: 1\n",
        "between minReplicas 2 and maxReplicas 1",
        "replicas",
    ),
    *(
        ("Dockerfile", WORKDIR, f"COPY {source} /x\n{WORKDIR}", FROM_FOLDER, "COPY")
        for source in ("./", "*", "./*", "--chown=1:1 ./.", "data/..", "data .", ".*", "/")
    ),
    ("Dockerfile", WORKDIR, f"RUN <<EOF\ncurl x | sh\nEOF\n{WORKDIR}", UNSEEN, "RUN <<EOF"),
    ("Dockerfile", WORKDIR, f"RUN <<-'E'\n\tpip install a\n\tE\n{WORKDIR}", "a is installed beside", "RUN <<-'E'"),
    ("Dockerfile", WORKDIR, f"COPY <<EOF /x.sh\ncurl x | sh\nEOF\n{WORKDIR}", UNSEEN, "COPY <<EOF"),
    ("Dockerfile", WORKDIR, f"RUN echo 'a <<EOF b'\nWORKDRI\n{WORKDIR}", "knows no WORKDRI", "WORKDRI"),
    ("Dockerfile", FROM, "ARG BASE=python:latest\nFROM ${BASE}", f"python:latest {UNPINNED}", "FROM"),
    ("Dockerfile", FROM, "ARG BASE\nFROM ${BASE}", UNPINNED, "FROM"),
    ("Dockerfile", WORKDIR, f"{PIP} -r /x.lock\n{WORKDIR}", "without --require-hashes", "RUN pip"),
    ("slurm.sh", STRICT, "set -eo pipefail\n", "a name that is not set would stand for nothing", "#!"),
    ("slurm.sh", STRICT, "set -eu\n", "a failing command would be passed over", "#!"),
    ("slurm.sh", TOKEN_ON, "RAY_AUTH_MODE=token\n", "token authentication is not on", "#!"),
    ("slurm.sh", TOKEN_ON, "export RAY_AUTH_MODE=tokens\n", "token authentication is not on", "#!"),
    ("slurm.sh", TOKEN_ON, "export RAY_AUTH_MODE=token-\n", "token authentication is not on", "#!"),
    *(
        ("slurm.sh", TOKEN_ON, written, "token authentication is not on", "#!")
        for written in (
            *("false && export RAY_AUTH_MODE=token\n", "RAY_AUTH_MODE=token\nfalse && export RAY_AUTH_MODE\n"),
            *("export RAY_AUTH_MODE=token &\n", "export RAY_AUTH_MODE=token A=1 | cat\n"),
            *("A=$(:; export RAY_AUTH_MODE=token; :)\n", "RAY_AUTH_MODE=token\necho '; export RAY_AUTH_MODE'\n"),
            "RAY_AUTH_MODE=token\nif false; then\n    :; export RAY_AUTH_MODE\nfi\n",
            *(f"if false; then\n{TOKEN_ON}fi\n", f"never() {{\n{TOKEN_ON}}}\n", f"(\n{TOKEN_ON})\n"),
            *(f"cat <<EOF\n{TOKEN_ON}EOF\n", f"false &&\n{TOKEN_ON}", f"echo '\n{TOKEN_ON}'\n"),
        )
    ),
    ("slurm.sh", STRICT, f"{STRICT}set +e\n", "a failing command would be passed over", "#!"),
    ("slurm.sh", STRICT, f"{STRICT}set +o pipefail\n", "a failing command would be passed over", "#!"),
    ("slurm.sh", STRICT, "set -eo pipefail\nset -- -u\n", "a name that is not set would stand for nothing", "#!"),
    ("slurm.sh", TOKEN_ON, f"{TOKEN_ON}unset RAY_AUTH_MODE\n", "turned off", "unset"),
    ("slurm.sh", TOKEN_ON, "export RAY_AUTH_MODE=token A=1\nexport RAY_AUTH_MODE=\n", "turned off", "MODE="),
    ("slurm.sh", "umask 077\n", "umask 077\nexport APPTAINER_CLEANENV=1\n", "gets no RAY_AUTH_MODE", "CLEANENV"),
]


@pytest.mark.parametrize(("recipe", "there", "written"), RIGHT)
def test_a_right_edit_is_no_mistake(recipe: str, there: str, written: str) -> None:
    text = (ROOT / "clusters" / recipe).read_text()
    assert there in text
    assert check(recipe, text.replace(there, written, 1))[1] == []


@pytest.mark.parametrize(("recipe", "there", "written", "said", "line"), WRONG)
def test_a_wrong_edit_is_found_in_its_line(recipe: str, there: str, written: str, said: str, line: str) -> None:
    text = (ROOT / "clusters" / recipe).read_text()
    assert there in text
    edited = text.replace(there, written, 1)
    found = [mistake for mistake in check(recipe, edited)[1] if said in str(mistake)]
    assert found, check(recipe, edited)[1]
    assert any(line in edited.split("\n")[mistake.line - 1] for mistake in found), found


def test_each_document_of_a_file_has_its_own_lines() -> None:
    text = "---\n".join((ROOT / "clusters" / recipe).read_text() for recipe in (CLUSTER, JOB))
    assert check("x.yaml", text) == ("a RayCluster and a RayJob of KubeRay", [])
    edited = text.replace("backoffLimit: 4", "backoffLimit: four")
    assert [mistake.line for mistake in check("x.yaml", edited)[1]] == [
        edited.splitlines().index("  backoffLimit: four") + 1
    ]


@pytest.mark.parametrize("recipe", ["aws.yaml", "gcp.yaml", JOB])
def test_whatever_stands_in_a_place_nothing_but_mistakes_is_said(recipe: str) -> None:
    right = yaml.safe_load((ROOT / "clusters" / recipe).read_text())
    others = ["text", 7, [1, ["x"]], {"a": {"b": 1}}, None]
    for number, place in enumerate(_places(right)):
        for change in (others[number % len(others)], ...):  # `...`: taken out
            text = yaml.safe_dump(_changed(right, place, change))
            assert all(mistake.mend and "\n" not in str(mistake) for mistake in check(recipe, text)[1]), place
    with pytest.raises(InputError, match="not a cluster's file"):
        check(recipe, "text")


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _changed(value: Any, path: tuple[Any, ...], change: Any) -> Any:
    changed = copy.deepcopy(value)
    node = changed
    for key in path[:-1]:
        node = node[key]
    if change is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = change
    return changed


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        *(("apptainer exec --nv x.sif ray start", True), ("singularity exec -B /a:/b $IMAGE ray start", True)),
        *(("apptainer exec x.sif bash -ec 'ray start'", True), ("srun -n1 apptainer run x.sif ray start", True)),
        *(("apptainer exec --cleanenv --env RAY_AUTH_MODE=token x.sif ray start", True),),
        *((f"apptainer exec {option} x.sif ray start", False) for option in ("--cleanenv", "-e", "-C", "--nv -eC")),
        *((f"apptainer exec {option} x.sif ray start", False) for option in ("--containall", "--env-file y")),
        *((f"{client} x ray start", False) for client in ("docker exec", "podman run", "kubectl exec", "enroot start")),
        *(
            (f"{before}docker exec x ray start", False)
            for before in ("RAY_AUTH_MODE=token ", "A=1 RAY_AUTH_MODE=token ")
        ),
        ("docker run x apptainer exec y.sif ray start", False),
    ],
)
def test_apptainer_alone_hands_on_what_is_exported(command: str, kept: bool) -> None:
    assert (list(wrong_starts(command, on=True)) == []) is kept
    assert turns_tokens_off("export APPTAINERENV_RAY_AUTH_MODE=no")


@pytest.mark.parametrize(
    ("name", "text", "missing"),
    [
        ("x.lock", "", ["any package"]),
        ("requirements.lock", "# made by make lock\n", ["any package"]),
        ("requirements.lock", "torch==2.7.0 \\\n    --hash=sha256:ab\n", ["ray"]),
        ("x.lock", "numpy==2.0.0 \\\n    --hash=sha256:ab\n", []),
    ],
)
def test_a_lock_that_was_cut_off_is_refused(name: str, text: str, missing: list[str]) -> None:
    assert [mistake.what for mistake in check(name, text)[1]] == [f"the lock is without {one}" for one in missing]


def _hexadecimal(draw: random.Random, length: int) -> str:
    return "".join(draw.choice("0123456789abcdef") for _ in range(length))


def _number(draw: random.Random, length: int) -> str:
    return "".join(draw.choice(string.digits) for _ in range(length))


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("ImageId: ami-0{}", lambda draw: _hexadecimal(draw, 16)),
        ("SubnetIds: [subnet-0{}]", lambda draw: _hexadecimal(draw, 16)),
        ("GroupId: sg-0{}", lambda draw: _hexadecimal(draw, 16)),
        ("# fsap-{}", lambda draw: _hexadecimal(draw, 17)),
        ("project_id: hospital-research-{}", lambda draw: _number(draw, 6)),
        ("{{claimName: pvc-{}}}", lambda draw: str(uuid.UUID(int=draw.getrandbits(128)))),
        ("claimName: shared-{}-gpu-a100x8", lambda draw: _hexadecimal(draw, 10)),
        ("#SBATCH --reservation=radiology_{}_gpu", lambda draw: f"{_number(draw, 4)}_11_{_number(draw, 2)}"),
        ("name: manyview-ham10000-{}", lambda draw: f"{_number(draw, 8)}-{_number(draw, 4)}"),
        ("LABEL org.opencontainers.image.revision={}", lambda draw: _hexadecimal(draw, 40)),
        ("# built from commit {}", lambda draw: _hexadecimal(draw, 40)),
    ],
)
def test_a_name_is_not_taken_for_a_key(line: str, value: Callable[[random.Random], str]) -> None:
    draw = random.Random(0)
    lines = [line.format(value(draw)) for _ in range(500)]
    assert [line for line in lines if list(secrets_in(line))] == []


@pytest.mark.parametrize(
    ("letters", "length", "mark"),
    [
        (string.ascii_uppercase + string.digits, 16, "AK" + "IA"),
        (string.ascii_letters + string.digits + "+/", 40, ""),
        *(("0123456789abcdef", length, "") for length in (32, 40, 64)),
        ("0123456789ABCDEF", 40, ""),
    ],
)
@pytest.mark.parametrize(
    "line", ["ImageId: {}", "project_id: {}", "{{claimName: {}}}", "#SBATCH --reservation={}", "name: {}", "LABEL a={}"]
)
def test_a_key_is_found_where_names_stand(letters: str, length: int, mark: str, line: str) -> None:
    draw = random.Random(0)
    lines = [line.format(mark + "".join(draw.choice(letters) for _ in range(length))) for _ in range(500)]
    assert [line for line in lines if not list(secrets_in(line))] == []
