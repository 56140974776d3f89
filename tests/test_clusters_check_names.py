"""Names in recipes for clusters: whichever is misspelt is found in its line, and no name that is right is refused."""

from pathlib import Path

import pytest

from clusters.check import check

FOLDER = Path(__file__).parents[1] / "clusters"
CACHED, CLOUD, MACHINE = "  cache_stopped_nodes: false\n", "  type: gcp\n", "machineType: g2"
GOOGLE = (FOLDER / "gcp.yaml").read_text()
GPU_NODE = GOOGLE[GOOGLE.index(MACHINE) : GOOGLE.index("\n# The token goes by file")]
AMOUNTS = "{CPU: 8, GPU: 1}"

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
]

# Recipe, what stands there, what is written instead, words of what must be said, and words of the line it is said of.
WRONG = [
    ("aws.yaml", "region: eu", "regoin: eu", "no 'regoin' of a provider of type aws (nearest: region)", "regoin"),
    ("aws.yaml", "  region: eu-central-1\n", "", "needs a region of a provider of type aws", "provider:"),
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
]


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
