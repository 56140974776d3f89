"""What would open the dashboard, a pod, a port or the way that packages come by is found in every recipe."""

import re
from pathlib import Path

import pytest

from clusters.check import check
from clusters.checks.docker_options import wrong_docker_runs
from clusters.checks.firewall import too_wide
from clusters.checks.images import wrong_installs
from clusters.checks.ray_options import wrong_options
from clusters.checks.tokens import tokens_off, turns_tokens_off

ROOT = Path(__file__).parents[1]
CLUSTER, JOB = "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"
PORTS = "            ports:\n"
RULES = "    IpPermissions: [{FromPort: 8265, ToPort: 8265, IpRanges: [%s]}]"
PREFIXES = "    IpPermissions: [{FromPort: 8265, ToPort: 8265, PrefixListIds: [{PrefixListId: pl-1}]}]"
SHM, SSH = "    - --shm-size=16g", "    GroupName: manyview"
LOCK = "numpy==2.0.0 \\\n    --hash=sha256:ab \\\n    --hash=sha256:cd\n"

# Recipe, what stands there, what is planted instead, words of what must be said, and words of the line it is said of.
PLANTED = [
    (CLUSTER, "ClusterIP\n", "ClusterIP\n    headService: {spec: {type: LoadBalancer}}\n", "open to others", "Load"),
    (CLUSTER, "ClusterIP\n", "ClusterIP\n    headService: {spec: {type: NodePort}}\n", "open to others", "NodePort"),
    (CLUSTER, "ClusterIP\n", "ClusterIP\n    headService: {spec: {externalIPs: [9.9.9.9]}}\n", "open to others", "9.9"),
    (CLUSTER, "        automount", "        hostNetwork: true\n        automount", "its node's own", "hostNetwork"),
    (CLUSTER, "8265, name", "8265, hostPort: 8265, name", "port 8265 of the node is open", "hostPort"),
    (CLUSTER, "{allowPriv", "{privileged: true, allowPriv", "owns its node", "privileged: true"),
    (CLUSTER, "{drop: [ALL]}", "{add: [SYS_ADMIN]}", "rights over its node", "add: [SYS"),
    (CLUSTER, "{allowPrivilegeEscalation: false", "{allowPrivilegeEscalation: true", "may become root", "lation: true"),
    (CLUSTER, "{allowPriv", "{runAsNonRoot: false, allowPriv", "container may run as root", "runAsNonRoot: false"),
    (CLUSTER, "v2, idle", "v2, securityContext: {privileged: true}, idle", "owns its node", "privileged: true"),
    (CLUSTER, "v2, idle", "v2, image: 'ray:latest', idle", "ray:latest is not pinned", "ray:latest"),
    (CLUSTER, "v2, idle", "v2, envFrom: [{secretRef: {name: x}}], idle", "no check sees", "envFrom"),
    (CLUSTER, PORTS, f"            envFrom: [{{configMapRef: {{name: x}}}}]\n{PORTS}", "no check sees", "envFrom"),
    (CLUSTER, PORTS, f"            command: [env, -u, RAY_AUTH_MODE, ray]\n{PORTS}", "is turned off", "[env, -u"),
    (CLUSTER, PORTS, f"            command: [env]\n            args: ['-i', ray]\n{PORTS}", "is turned off", "[env]"),
    (JOB, "persistentVolumeClaim: {claimName: YOUR-CLAIM}", "hostPath: {path: /}", "node's own files", "hostPath"),
    (JOB, "    python -m pretrain /opt", "    env -i python -m pretrain /opt", "is turned off", "entrypoint"),
    ("aws.yaml", SHM, f"{SHM}\n    - -p 0.0.0.0:8265:8265", "-p opens a port", "0.0.0.0"),
    ("aws.yaml", SHM, f"{SHM}\n    - -p\n    - 8265:8265", "-p opens a port", "- -p"),
    ("aws.yaml", SHM, f"{SHM}\n    - --publish=8265:8265", "--publish opens a port", "--publish"),
    ("aws.yaml", SHM, f"{SHM}\n    - -P", "-P opens a port", "- -P"),
    ("aws.yaml", SHM, f"{SHM}\n    - --privileged", "owns its machine", "- --privileged"),
    ("aws.yaml", SHM, f"{SHM}\n    - --cap-add=SYS_ADMIN", "rights over its machine", "- --cap-add"),
    ("aws.yaml", SHM, f"{SHM}\n    - --security-opt\n    - seccomp=unconfined", "rights over its", "- --security"),
    ("aws.yaml", SHM, f"{SHM}\n    - -v /:/host", "its machine's own /", "- -v /"),
    ("aws.yaml", SHM, f"{SHM}\n    - -v\n    - /var/run/docker.sock:/s", "own /var/run/docker.sock", "- -v"),
    ("aws.yaml", SHM, f"{SHM}\n    - --env RAY_AUTH_MODE", "no check sees it", "- --env RAY_AUTH_MODE"),
    ("gcp.yaml", "  run_options:", "  head_run_options: [-dp 1:1]\n  run_options:", "-dp opens a port", "head_run"),
    ("gcp.yaml", "    min_w", "    docker: {worker_run_options: [--privileged]}\n    min_w", "owns its", "worker_run"),
    ("gcp.yaml", "head_setup_commands: []", "head_setup_commands: [docker run -p 1:1 x]", "opens a port", "docker run"),
    ("local.sh", "umask 077\n", "umask 077\ndocker run -d -p 8265:8265 x\n", "-p opens a port", "docker run"),
    ("local.sh", "umask 077\n", "umask 077\numask 022\n", "opened to others again", "umask 022"),
    ("local.sh", "umask 077\n", "umask 077\nenv -i ray list\n", "authentication is turned off", "env -i"),
    ("local.sh", "host=127.0.0.1 ", "host=127.0.0.1 --dashboard-host 0.0.0.0 ", "opens the dashboard", "start head"),
    ("aws.yaml", "host=127.0.0.1", "host=127.0.0.1 --dashboard-host=0.0.0.0", "opens the dashboard", "- >-"),
    ("aws.yaml", "    RAY_AUTH_MODE=token ray start --h", "    env -i ray start --h", "is turned off", "- >-"),
    ("aws.yaml", SSH, RULES % "{CidrIp: 0.0.0.0/1}, {CidrIp: 128.0.0.0/1}", "the whole internet", "IpPermissions"),
    ("aws.yaml", SSH, PREFIXES, "a prefix list", "IpPermissions"),
    ("aws.yaml", SSH, RULES % "{CidrIp: 32.0.0.0/6}", "open to all of 32.0.0.0/6", "IpPermissions"),
    (
        "Dockerfile",
        "--no-deps --require-hashes --requirement /opt",
        "gcsfs==1.0 -r /opt",
        "without --require-hashes",
        "RUN if",
    ),
    (
        "Dockerfile",
        "--no-deps --require-hashes --requirement /opt",
        "gcsfs==1.0 -r /opt",
        "gcsfs==1.0 is installed b",
        "RUN if",
    ),
    (
        "Dockerfile",
        "--no-deps --require-hashes --requirement /opt",
        "--require-hashes -r /opt",
        "-deps an inst",
        "RUN if",
    ),
    ("Dockerfile", "WORKDIR /opt", 'RUN ["pip3", "install", "a"]\nWORKDIR /opt', "a is installed beside", "pip3"),
    ("Dockerfile", "WORKDIR /opt", "ENV UV_EXTRA_INDEX_URL=http://x\nWORKDIR /opt", "from elsewhere", "UV_EXTRA"),
    ("Dockerfile", "WORKDIR /opt", "RUN uv tool install a\nWORKDIR /opt", "requirements.lock does not hold", "uv tool"),
    ("Dockerfile", "CMD [", 'ENTRYPOINT ["env", "-u", "RAY_AUTH_MODE"]\nCMD [', "turned off", "ENTRYPOINT"),
]


@pytest.mark.parametrize(("recipe", "right", "wrong", "said", "line"), PLANTED)
def test_what_is_opened_is_found_in_its_line(recipe: str, right: str, wrong: str, said: str, line: str) -> None:
    text = (ROOT / "clusters" / recipe).read_text()
    assert right in text
    planted = text.replace(right, wrong, 1)
    found = [mistake for mistake in check(recipe, planted)[1] if said in str(mistake)]
    assert len(found) == 1, check(recipe, planted)[1]
    assert line in planted.splitlines()[found[0].line - 1], found


@pytest.mark.parametrize(
    ("rights", "said"),
    [
        ("image: 'busybox:latest'", "busybox:latest is not pinned"),
        ("image: 'busybox:1.36.1', securityContext: {privileged: true}", "owns its node"),
        ("image: 'busybox:1.36.1', ports: [{containerPort: 1, hostPort: 1}]", "port 1 of the node"),
        ("image: 'busybox:1.36.1', volumeMounts: [{name: none, mountPath: /x}]", "no volume is named none"),
    ],
)
@pytest.mark.parametrize("kind", ["initContainers", "sidecar"])
def test_every_container_of_a_pod_is_looked_at(rights: str, said: str, kind: str) -> None:
    text = (ROOT / "clusters" / JOB).read_text()
    rights = rights.replace("{privileged", "{capabilities: {drop: [ALL]}, privileged")
    if "securityContext" not in rights:
        rights += ", securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}"
    other = f"{{name: x, {rights}}}"
    if kind == "initContainers":
        planted = text.replace(
            "          containers:\n", f"          initContainers: [{other}]\n          containers:\n", 1
        )
    else:
        behind = "          volumes: &volumes\n"  # the first container is Ray's
        assert behind in text
        planted = text.replace(behind, f"            - {other}\n{behind}", 1)
    (mistake,) = check(JOB, planted)[1]
    assert said in str(mistake)
    assert other in planted.splitlines()[mistake.line - 1]


def test_a_submitter_s_pod_is_looked_at_too() -> None:
    text = (ROOT / "clusters" / JOB).read_text()
    pod = "{spec: {hostNetwork: true, restartPolicy: Never, containers: [{name: x, image: 'x:latest'}]}}"
    said = [str(m) for m in check(JOB, text.replace("  backoff", f"  submitterPodTemplate: {pod}\n  backoff"))[1]]
    assert [any(word in line for line in said) for word in ("as root", "not pinned", "node's own")] == [True] * 3


@pytest.mark.parametrize("network", ["0.0.0.0/0", "10.0.0.1/0", "0.0.0.0/1", "::/0", "2000::/3", "64.0.0.0/7"])
def test_a_range_that_is_nobody_s_own_is_too_wide(network: str) -> None:
    assert [place for place, _ in too_wide([{"IpProtocol": "tcp", "IpRanges": [{"CidrIp": network}]}])] == [0]


def test_the_rules_of_ssh_and_of_private_networks_are_right() -> None:
    ssh = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    private = {
        "FromPort": 1,
        "ToPort": 9,
        "IpRanges": [{"CidrIp": n} for n in ("10.0.0.0/8", "192.168.0.0/16", "fd00::/8")],
    }
    assert list(too_wide([ssh, private])) == []
    all_ports = {**ssh, "IpProtocol": "-1"}  # whatever it says of ports
    assert [place for place, _ in too_wide([private, all_ports])] == [1]
    halves = [{**private, "IpRanges": [{"CidrIp": half}]} for half in ("0.0.0.0/1", "128.0.0.0/1")]
    assert [(place, str(network)) for place, network in too_wide(halves)] == [(0, "0.0.0.0/0"), (1, "0.0.0.0/0")]


@pytest.mark.parametrize(
    ("command", "open_to"),
    [
        ("ray start --dashboard-host=127.0.0.1 --dashboard-host=0.0.0.0", "0.0.0.0"),
        ("ray start --dashboard-host=0.0.0.0 --dashboard-host=127.0.0.1", None),  # the last one counts
        ('ray start "--dashboard-host=0.0.0.0"', "0.0.0.0"),
        ('ray start --dashboard-host="127.0.0.1"', None),
        ("bash -c 'ray start --head --dashboard-host 0.0.0.0'", "0.0.0.0"),
        ("ray start --head --dashboard-host=0.0.0.0; echo --dashboard-host=127.0.0.1", "0.0.0.0"),
        ("ray start --head --dashboard-host=0.0.0.0\nray start --head --dashboard-host=127.0.0.1", "0.0.0.0"),
        ("ray start --head >log 2>&1 --dashboard-host=::", "::"),
        ("ray start --head \\\n  --dashboard-host=$HOST", "$HOST"),
        ("ray symmetric-run --address x -- serve --dashboard-host=0.0.0.0", None),  # another program's
    ],
)
def test_of_an_option_that_stands_twice_the_last_one_counts(command: str, open_to: str | None) -> None:
    said = [what for what, _ in wrong_options(command)]
    assert [re.search(r"host=(\S+) opens", what)[1] for what in said] == [open_to] * (open_to is not None)  # type: ignore


@pytest.mark.parametrize(
    "command",
    [
        *("env -i ray", "env - ray", "/usr/bin/env --ignore-environment ray", "env A=1 -i ray", "a; env \\\n -i ray"),
        *("env --unset=RAY_AUTH_MODE ray", "env --unset RAY_AUTH_MODE ray", "env -u A -u RAY_AUTH_MODE ray"),
        *('env "-u" RAY_AUTH_MODE ray', 'env -S "-u RAY_AUTH_MODE ray"', "env -C /tmp -u RAY_AUTH_MODE ray"),
        *("unset -v RAY_AUTH_MODE", "declare +x RAY_AUTH_MODE", "export -n RAY_AUTH_MODE", "true && exec -c ray"),
        *("env -i RAY_AUTH_MODE=token true; env -i ray", "bash -c 'env -i ray'", "env -i RAY_AUTH_MODE=tokens ray"),
    ],
)
def test_what_drops_the_variable_is_found(command: str) -> None:
    assert turns_tokens_off(command)
    assert list(tokens_off({"setup_commands": [command]})) == [("setup_commands", 0)]


@pytest.mark.parametrize(
    "innocent",
    [
        *("env -i RAY_AUTH_MODE=token ray", "env -u A RAY_AUTH_MODE=token ray", "unset RAY_ADDRESS"),
        *("docker run --env A=1 -it x", "env A=1 sed -i x", "env bash -i", "kubectl exec -c x pod", "env | grep RAY"),
    ],
)
def test_what_keeps_the_variable_is_no_mistake(innocent: str) -> None:
    assert not turns_tokens_off(innocent)


@pytest.mark.parametrize(
    "planted",
    [
        *("--cap-add SYS_PTRACE", "--pid=host", "--pid host", "--userns=host", "--security-opt apparmor:unconfined"),
        *("--security-opt=label=disable", "--security-opt no-new-privileges=false", "-v/etc:/x", "--volume=//run/:/x"),
        *("--volume /data/../root:/x", "--mount type=bind,source=/,target=/x", "--mount=type=bind,src=/proc,dst=/p"),
    ],
)
def test_what_gives_a_container_its_machine_is_found(planted: str) -> None:
    assert "machine" in " ".join(what for what, _ in wrong_docker_runs(f"docker run {planted} x"))


@pytest.mark.parametrize(
    "innocent",
    [
        *("docker run -p 127.0.0.1:80:80 x", "docker run --publish=[::1]:80:80 x", "docker run --network=host x"),
        *(
            "docker run --privileged --privileged=false x",
            "docker ps -p",
            "mkdir -p run",
            "docker run -v ./data:/etc x",
        ),
        *(
            "docker run -v /data:/data:ro x",
            "docker run --mount type=bind,src=/data,dst=/etc x",
            "docker run --gpus all x",
        ),
        *("docker run --mount type=tmpfs,dst=/run x", "docker run --gpus all --cap-drop=ALL x"),
    ],
)
def test_what_docker_keeps_to_itself_is_no_mistake(innocent: str) -> None:
    assert list(wrong_docker_runs(innocent)) == []


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("--extra-index-url http://me:hunter2@x", "--extra-index-url"),
        ("--trusted-host x", "--trusted-host"),
        ("-i x", "-i"),
        ("-r other.txt", "-r"),
        ("  --find-links=x", "--find-links"),
        ("--hash=sha256:ab", "--hash=sha256:ab"),
        ("./numpy.whl", "./numpy.whl"),
    ],
)
def test_a_lock_has_packages_and_hashes_and_no_other_line(line: str, shown: str) -> None:
    assert check("x.lock", f"# made by make lock\n{LOCK}\n{LOCK}    # via x\n")[1] == []
    (mistake,) = check("x.lock", f"{LOCK}{line}\n{LOCK}")[1]
    assert mistake.line == 4
    assert mistake.what.startswith(f"{shown} is neither a package nor a hash")
    assert "hunter2" not in str(mistake)


@pytest.mark.parametrize(
    "text",
    [
        LOCK.replace("2.0.0 ", "2.0.0 --index-url x "),
        LOCK.replace("--hash=sha256:ab", "--config-settings=x"),
        LOCK.replace("--hash=sha256:cd", "--hash=md5:cd"),
        LOCK.replace("2.0.0", "2.*"),
        LOCK.replace("cd\n", "cd\fevil>=1\n"),
    ],
)
def test_nothing_hides_in_a_package_s_lines(text: str) -> None:
    assert check("x.lock", text)[1]


def test_google_s_lock_is_right_and_moves_nothing_of_the_other() -> None:
    text = (ROOT / "clusters/gcp.lock").read_text()
    assert check("gcp.lock", text)[1] == []
    assert "://" not in text
    pinned = [re.findall(r"(?m)^([\w.-]+)==(\S+)", lock) for lock in ((ROOT / "requirements.lock").read_text(), text)]
    ours = {name: {version for other, version in pinned[0] if other == name} for name, _ in pinned[0]}
    assert {"gcsfs", "google-api-python-client", "google-auth-httplib2"} <= dict(pinned[1]).keys()
    assert [name for name, version in pinned[1] if version not in ours.get(name, {version})] == []
    assert not list(wrong_installs("uv pip install --no-deps --require-hashes --requirement clusters/gcp.lock"))
