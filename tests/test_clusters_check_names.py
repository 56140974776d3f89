"""Names in recipes for clusters: whichever is misspelt is found in its line, and no name that is right is refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from clusters.check import check
from clusters.checks.python_commands import wrong_python

FOLDER = Path(__file__).parents[1] / "clusters"
CACHED, CLOUD, MACHINE = "  cache_stopped_nodes: false\n", "  type: gcp\n", "machineType: g2"
GOOGLE = (FOLDER / "gcp.yaml").read_text()
GPU_NODE = GOOGLE[GOOGLE.index(MACHINE) : GOOGLE.index("\n# The token goes by file")]
CLUSTER, JOB, NO_OPTIONS = "kuberay/raycluster.yaml", "kuberay/rayjob.yaml", "rayStartParams: {}"
AMOUNTS = "{CPU: 8, GPU: 1}"
PODS = (FOLDER / CLUSTER).read_text()
AMOUNTS_OF_PODS = PODS[PODS.rindex("                requests:") : PODS.rindex("              volumeMounts:")]

# Keys that are names of a person's own, by recipe: as good with two letters swapped.
OWN = {"aws.yaml": {"gpu_worker"}, "gcp.yaml": {"gpu_worker"}, JOB: set[str](), CLUSTER: set[str]()}
# Own names too, but asked for in another line, of which it is said that they are not there.
ELSEWHERE = {"head", "~/.ray/auth_token"}

# Recipe, what stands there, and what a person writes instead.
RIGHT = [
    *(
        ("aws.yaml", CACHED, f"{CACHED}  {field}\n")
        for field in (
            *("key_pair: {key_name: a}", "use_internal_ips: true", "worker_liveness_check: false"),
            *("aws_credentials: {}", "cloudwatch: {agent: {config: a.json}}", "use_external_head_ip: true"),
        )
    ),
    *(
        ("aws.yaml", AMOUNTS, f"{{CPU: 8, GPU: 1, {name}: 1}}")
        for name in ("TPU", "NPU", "memory", "object_store_memory", "gpu_memory", "memory2", "a100", "CU")
    ),
    *(
        ("gcp.yaml", MACHINE, f"{field}\n      {MACHINE}")
        for field in (
            "networkInterfaces: [{kind: compute#networkInterface, subnetwork: a, aliasIpRanges: []}]",
            *("guestAccelerators: [{acceleratorType: a, acceleratorCount: 1}]", "labels: {boot: a}"),
            *("shieldedInstanceConfig: {enableSecureBoot: true}", "metadata: {items: [{key: a, value: b}]}"),
        )
    ),
    ("gcp.yaml", "{diskSizeGb", "{diskType: zones/z/diskTypes/pd-ssd, provisionedThroughput: 200, diskSizeGb"),
    ("gcp.yaml", CLOUD, f"{CLOUD}  gcp_credentials: {{type: service_account}}\n  cache_stopped_nodes: true\n"),
    ("gcp.yaml", GPU_NODE, "acceleratorConfig: {type: V4, topology: 2x2x1}\n      runtimeVersion: tpu-vm-v4-base\n"),
    *(
        (CLUSTER, NO_OPTIONS, f"rayStartParams: {{{option}}}")
        for option in (
            *("block: 'true'", "dashboard-host: 0.0.0.0", "object-store-memory: '1000000000'", "labels: a=b"),
            *("metrics-export-port: '8080'", "resources: '{\"a\": 1}'", "node-ip-address: 10.0.0.1", "num-gpus: '1'"),
        )
    ),
    (CLUSTER, NO_OPTIONS, f"{NO_OPTIONS}\n      resources: {{CPU: '8', GPU: '1', memory: 32Gi, TPU: '0', a100: '1'}}"),
    *(
        (CLUSTER, '{cpu: "4", memory: 8Gi}', f"{{cpu: '4', memory: 8Gi, {amount}}}")
        for amount in ("ephemeral-storage: 1Gi", "hugepages-2Mi: 2Mi", "hugepages-64Ki: 1Mi")
    ),
    *(
        (CLUSTER, AMOUNTS_OF_PODS, AMOUNTS_OF_PODS.replace("nvidia.com/gpu", device))
        for device in (
            "nvidia.com/mig-1g.10gb",
            "nvidia.com/pgpu",
            "nvidia.com/gpu.shared",
            "gpu.intel.com/i915",
            "amd.com/gpu",
        )
    ),
]

# Recipe, what stands there, what is written instead, words of what must be said, and words of the line it is said of.
WRONG = [
    ("aws.yaml", "region: eu", "regoin: eu", "no 'regoin' of a provider of type aws (nearest: region)", "regoin"),
    ("aws.yaml", "  region: eu-central-1\n", "", "needs a region of a provider of type aws", "provider:"),
    ("aws.yaml", "  type: aws", "  tpye: aws", "provider takes no 'tpye' (nearest: type)", "tpye"),
    (JOB, "kind: RayJob", "knid: RayJob", "reads no 'knid' (nearest: kind)", "knid"),
    (CLUSTER, "kind: RayCluster\n", "", "kind is missing", "apiVersion"),
    ("aws.yaml", "security_group:", "security_gruop:", "(nearest: security_group)", "security_gruop"),
    ("gcp.yaml", "project_id: YOUR", "projet_id: YOUR", "(nearest: project_id)", "projet_id"),
    ("gcp.yaml", "project_id: YOUR-PROJECT", "project_id: null", "needs a project_id of a provider", "provider:"),
    ("gcp.yaml", "autoDelete", "autoDelte", "no 'autoDelte' in disks (nearest: autoDelete)", "autoDelte"),
    ("gcp.yaml", "{diskSizeGb", "{diskSizeGB", "in disks.initializeParams (nearest: diskSizeGb)", "diskSizeGB"),
    ("gcp.yaml", "scopes:", "scope:", "no 'scope' in serviceAccounts (nearest: scopes)", "scope:"),
    ("gcp.yaml", GPU_NODE, "acceleratorType: v4-8\n      runtimeVersoin: a\n", "Cloud TPU knows no", "Versoin"),
    *(
        ("aws.yaml", AMOUNTS, f"{{CPU: 8, {written}: 1}}", f"by '{written}'; write {meant}", written)
        for written, meant in (("GUP", "GPU"), ("GPUs", "GPU"), ("memroy", "memory"), ("Memory", "memory"))
    ),
    *(
        (recipe, "num-cpus:", f"{written}:", f"ray start has no --{written} (nearest: num-cpus)", f"{written}:")
        for recipe in (CLUSTER, JOB)
        for written in ("num-cpsu", "num_cpus", "num-cpu")
    ),
    (CLUSTER, '{cpu: "2"', '{cpus: "2"', "knows no resource 'cpus' (nearest: cpu); mend the name", "cpus:"),
    (JOB, 'cpu: "4", memory', 'cpu: "4", memori', "knows no resource 'memori' (nearest: memory)", "memori:"),
    (CLUSTER, AMOUNTS_OF_PODS, AMOUNTS_OF_PODS.replace("a.com/gpu", "a.com/gpus"), "(nearest: nvidia.com/gpu)", "requ"),
    (JOB, "-m pretrain", "-m pretrian", "no module 'pretrian' (nearest: pretrain)", "entrypoint"),
    (JOB, "recipes/ham10000", "recipes/ham1000", "(nearest: pretrain/recipes/ham10000.yaml)", "entrypoint"),
    (JOB, "cluster.num_workers", "cluster.num_worker", "unknown key 'num_worker'", "entrypoint"),
    ("slurm.sh", '-u -m "$@"', '-u -m pretrian "$@"', "no module 'pretrian'", "srun --kill"),
    ("demo.sh", "-m data", "-m dtaa", "no module 'dtaa'", "-m dtaa"),
    ("demo.sh", "pretrain/recipes/synthetic", "pretrain/recipes/syntetic", "no recipe", "submit"),
    ("aws.yaml", "\nsetup_commands: []", "\nsetup_commands: [python -m dtaa import]", "no module 'dtaa'", "dtaa"),
    ("Dockerfile", '"-m", "pretrain"', '"-m", "pretrian"', "no module 'pretrian'", "CMD"),
    (CLUSTER, NO_OPTIONS, f"{NO_OPTIONS}\n      resources: {{gpu: '1'}}", "GPUs by 'gpu' (nearest: GPU)", "gpu: '1'"),
]


@pytest.mark.parametrize(
    "command",
    [
        *(
            "python -m pip list",
            "python -m torch.distributed.run x.py",
            "python x.py -m pretrian",
            "python -c pretrian",
        ),
        *(
            "python -m pretrain /mine/recipes/a.yaml data=/a",
            "python -m pretrain /opt/manyview/a.yaml",
            "python3 -um data import",
        ),
        *("python -m pretrain $RECIPE cluster.num_workers=$N", 'python -m pretrain "$@"', "python -m pretrain --help"),
        *("python -m pretrain ./pretrain/recipes/pcam.yaml", "python -m pretrain plan pretrain/recipes/pcam.yaml"),
        *("python -m finetune table finetune/out", "python -m finetune search x.yaml tracking.x=1 cluster.address=a:1"),
        "python -m pretrain x.yaml compute.a=1 cluster.num_workers=[2,8] cluster.use_gpu=true tracking.every_s=2",
        "python -m pretrain x.yaml checkpoint.keep_every_h=2 'cluster.num_workers=[1,2]' encoder=finetune/x.yaml",
    ],
)
def test_a_right_command_is_no_mistake(command: str) -> None:
    assert list(wrong_python(command)) == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        *((f"{start} pretrian x.yaml", "(nearest: pretrain)") for start in ("python -m", "/a/python3.11 -u -X dev -m")),
        (
            "srun bash -c 'A=1 exec python -um finetun \"$@\"'",
            "no module 'finetun' (nearest: finetune); write python -m",
        ),
        ("A=$(python -m dtaa import)", "(nearest: data)"),
        ("python -m pretrain pretrain/recipes/ham1000.yaml", "(nearest: pretrain/recipes/ham10000.yaml)"),
        ("python -m pretrain /opt/manyview/pretrain/recipe/pcam.yaml", "(nearest: pretrain/recipes/pcam.yaml)"),
        ("python -m finetune fintune/recipes/pcam.yaml", "(nearest: finetune/recipes/pcam.yaml)"),
        ("python -m pretrain x.yaml clutser.num_workers=2", "no section 'clutser' (nearest: cluster)"),
        ("python -m pretrain x.yaml cluster.num_wokers=2", "unknown key 'num_wokers'"),
        ("python -m pretrain $A cluster.num_workers=two", "give a whole number"),
        ("python -m finetune x.yaml checkpoint.keep=1", "checkpoint: 'keep'"),
    ],
)
def test_a_wrong_command_is_told(command: str, said: str) -> None:
    assert [f"{what}; {mend}" for what, mend in wrong_python(command) if said in f"{what}; {mend}"]


@pytest.mark.parametrize(("recipe", "there", "written"), RIGHT)
def test_a_right_name_is_no_mistake(recipe: str, there: str, written: str) -> None:
    text = (FOLDER / recipe).read_text()
    assert there in text
    assert check(recipe, text.replace(there, written, 1))[1] == []


@pytest.mark.parametrize(("recipe", "there", "written", "said", "line"), WRONG)
def test_a_wrong_name_is_found_in_its_line(recipe: str, there: str, written: str, said: str, line: str) -> None:
    text = (FOLDER / recipe).read_text()
    assert there in text
    edited = text.replace(there, written, 1)
    found = [mistake for mistake in check(recipe, edited)[1] if said in str(mistake)]
    assert found, check(recipe, edited)[1]
    assert any(line in edited.split("\n")[mistake.line - 1] for mistake in found), found


@pytest.mark.parametrize("recipe", OWN)
def test_each_key_with_two_letters_swapped_is_found_in_its_line(recipe: str) -> None:
    text = (FOLDER / recipe).read_text()
    keys = [key for root in yaml.compose_all(text) for key in _keys(root)]
    assert len(keys) > 50
    for key in keys:
        at, written = key.start_mark.index, _swapped(key.value)
        found = check(recipe, text[:at] + written + text[at + len(key.value) :])[1]
        assert bool(found) is (key.value not in OWN[recipe]), (written, found)
        lines = {mistake.line for mistake in found}
        assert key.start_mark.line + 1 in lines or key.value in OWN[recipe] | ELSEWHERE, (written, found)


def _keys(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Every key as it is written; what an alias stands for was written elsewhere."""
    seen: set[int] = set()
    nodes = [node]
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield from (key for key, _ in node.value)
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value


def _swapped(key: str) -> str:
    """A key with two neighbours swapped, those nearest to its middle that are different letters."""
    places = [n for n in range(len(key) - 1) if key[n] != key[n + 1] and key[n : n + 2].isalpha()]
    place = min(places, key=lambda n: abs(n + 1 - len(key) / 2))
    return key[:place] + key[place + 1] + key[place] + key[place + 2 :]
