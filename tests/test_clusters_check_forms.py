"""The same mistakes in other forms: what only looks as if a token were asked for, and what lends or fetches unseen."""

from pathlib import Path

import pytest

from clusters.check import check
from clusters.checks.docker_options import wrong_docker_runs
from clusters.checks.downloads import runs_downloads
from clusters.checks.firewall import too_wide
from clusters.checks.images import wrong_installs
from clusters.checks.python_commands import wrong_python
from clusters.checks.shell import check_shell
from clusters.checks.starts import wrong_starts
from clusters.checks.tokens import opens_the_token, turns_tokens_off

ROOT = Path(__file__).parents[1]
MINE = "/home" + "/me"  # in two parts: a test holds that no file names a place on a machine
CLUSTER, JOB = "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"
ON = "    - --env RAY_AUTH_MODE=token"
HEAD, BARE = "    RAY_AUTH_MODE=token ray start --head", "    ray start --head"
SHM, SETUP, MOUNT = "    - --shm-size=16g", "\nsetup_commands: []", "  ~/.ray/auth_token: ~/.ray/auth_token"
PORTS, SPOT, UMASK = "            ports:\n", "InstanceMarketOptions", "umask 077\n"
UNKNOWN, STRANGER = "not one that the check knows to be harmless", "`ray start` without token authentication"
ELSEWHERE, UNSEEN = "gets another environment", "what is downloaded is run unseen"
POD = "        securityContext: &pod-security {runAs"
UNCONFINED = "seccompProfile: {type: Unconfined}"
SUBMITTER = (
    "  submitterPodTemplate: {spec: {containers: [{name: x, image: 'x:1.0.0', command: [sh, -c, 'curl x|sh']}]}}\n"
)

# Recipe, what is replaced by what (each pair once), words of what must be said, and words of the line it is said of.
PLANTED = [
    # Token authentication that is on in words alone.
    ("aws.yaml", {ON: f"{ON}\n    - -eRAY_AUTH_MODE=disabled", HEAD: BARE}, STRANGER, "- >-"),
    ("aws.yaml", {ON: f"{ON}\n    - -eRAY_AUTH_MODE=disabled"}, "is turned off", "-eRAY"),
    (
        "aws.yaml",
        {"  run_options:": "  head_run_options: [-Re, A=1]\n  run_options:"},
        f"option -R is {UNKNOWN}",
        "-Re",
    ),
    ("aws.yaml", {ON: "    - --label RAY_AUTH_MODE=token", HEAD: BARE}, STRANGER, "- >-"),
    ("aws.yaml", {ON: "    - --env X=RAY_AUTH_MODE=token", HEAD: BARE}, STRANGER, "- >-"),
    ("aws.yaml", {ON: f"{ON}\n    - --env-file=x"}, f"option --env-file is {UNKNOWN}", "--env-file"),
    ("gcp.yaml", {ON: "    - --rm", HEAD: "    RAY_AUTH_MODE=token true; ray start --head"}, STRANGER, "- >-"),
    ("gcp.yaml", {HEAD: "    bash ~/x.sh --head"}, "no `ray start` that a check could see", "head_start"),
    ("gcp.yaml", {ON: "    - --rm", HEAD: "    ray  start --head"}, STRANGER, "- >-"),
    ("gcp.yaml", {ON: "    - --rm", HEAD: "    python -m ray.scripts.scripts start --head"}, STRANGER, "- >-"),
    ("gcp.yaml", {ON: "    - --rm", HEAD: BARE, "_config.yaml\n": "_c # RAY_AUTH_MODE=token\n"}, STRANGER, "- >-"),
    ("gcp.yaml", {HEAD: "    RAY_AUTH_MODE=token sudo ray start --head"}, f"behind sudo {ELSEWHERE}", "- >-"),
    ("gcp.yaml", {SETUP: "\nsetup_commands: [sudo ray start]"}, f"behind sudo {ELSEWHERE}", "setup_commands"),
    ("gcp.yaml", {SETUP: f"{SETUP}\ninitialization_commands: [ray start]"}, STRANGER, "initialization"),
    ("local.sh", {UMASK: f"{UMASK}printf -v RAY_AUTH_MODE disabled\n"}, "is turned off", "printf"),
    ("local.sh", {"        ray status\n": "        sudo ray start --head\n"}, f"behind sudo {ELSEWHERE}", "sudo"),
    ("local.sh", {"        ray status\n": '        su - root -c "ray start"\n'}, f"behind su {ELSEWHERE}", "su -"),
    ("slurm.sh", {"trap tell TERM\n": "ssh node ray start\n"}, f"behind ssh {ELSEWHERE}", "ssh node"),
    ("slurm.sh", {"trap tell TERM\n": "srun --export=NONE ray start\n"}, STRANGER, "srun --export"),
    ("slurm.sh", {"trap tell TERM\n": "SLURM_EXPORT_ENV=NONE\n"}, "what srun starts gets no", "SLURM_EXPORT"),
    ("slurm.sh", {"#SBATCH --requeue": "#SBATCH --export=NONE"}, "gets no RAY_AUTH_MODE", "--export"),
    (JOB, {"  backoffLimit: 4": "  clusterSelector: {ray.io/cluster: x}"}, "at which no check looks", "Selector"),
    (JOB, {"    python -m pretrain /opt": "    sudo ray start; python /opt"}, f"behind sudo {ELSEWHERE}", "entrypoint"),
    # The container's machine, and keys.
    ("aws.yaml", {SHM: f"{SHM}\n    - -itv /:/host"}, "its machine's own /", "- -itv"),
    ("aws.yaml", {SHM: f"{SHM}\n    - -v ~/.aws:/keys"}, "its machine's own ~/.aws", "- -v"),
    ("aws.yaml", {SHM: f"{SHM}\n    - --volumes-from x"}, "rights over its machine", "--volumes-from"),
    ("aws.yaml", {SHM: f"{SHM}\n    - --user=0"}, "run as root", "--user"),
    ("aws.yaml", {SHM: f"{SHM}\n    - other:image\n    - --privileged"}, "taken for the image", "other:image"),
    ("aws.yaml", {SHM: f"{SHM}\n    - --name $(id)"}, "a command of the machine's shell", "$(id)"),
    ("aws.yaml", {MOUNT: f"{MOUNT}\n  /k: ~/.aws"}, "keys of yours to every machine", "~/.aws"),
    ("aws.yaml", {MOUNT: f"{MOUNT}\n  /keys: ~/.ssh/id_rsa"}, "keys of yours to every machine", "~/.ssh"),
    ("aws.yaml", {"077; chmod 600": "077; chmod 644"}, "could read the token", "- >-"),
    ("slurm.sh", {"trap tell TERM": 'chmod go+r "$RAY_AUTH_TOKEN_PATH"'}, "could read the token", "chmod go+r"),
    (CLUSTER, {"{allowPrivilegeEscalation: false, ": "{"}, "may become root", "&container-security"),
    (CLUSTER, {", capabilities: {drop: [ALL]}": ""}, "keeps rights", "&container-security"),
    (CLUSTER, {"{allowPriv": f"{{{UNCONFINED}, allowPriv"}, "all of the node's kernel", "&container-security"),
    (CLUSTER, {POD: POD.replace("runAs", f"{UNCONFINED}, runAs")}, "all of the node's kernel", "&pod-security"),
    (CLUSTER, {"ServiceAccountToken: false": "ServiceAccountToken: true"}, "a token for Kubernetes", "Token: true"),
    (CLUSTER, {"          automountServiceAccountToken: false\n": ""}, "a token for Kubernetes", "spec:"),
    (CLUSTER, {"Autoscaling: true": "Autoscaling: false"}, "a token for Kubernetes", "Token: true"),
    # What is fetched, and run or installed.
    ("aws.yaml", {SETUP: "\nsetup_commands: [pip3 install a]"}, "a is installed beside the lock", "pip3"),
    ("aws.yaml", {SETUP: "\nsetup_commands: [pip --quiet install a]"}, "a is installed beside", "--quiet"),
    ("aws.yaml", {SETUP: "\nsetup_commands: [pip install a==1.0]"}, "a==1.0 is installed beside", "a==1.0"),
    ("aws.yaml", {SETUP: "\nsetup_commands: [uv sync]"}, "requirements.lock does not hold", "uv sync"),
    ("aws.yaml", {SETUP: "\nsetup_commands: [conda install -y a]"}, "requirements.lock does not hold", "conda"),
    ("aws.yaml", {SETUP: "\nsetup_commands: [curl x | sudo bash]"}, UNSEEN, "curl"),
    ("aws.yaml", {SETUP: "\nsetup_commands:\n  - curl -o /tmp/i x\n  - sh /tmp/i"}, UNSEEN, "- sh"),
    ("aws.yaml", {SPOT: f"UserData: '#!/bin/sh\n\n        curl x | sh'\n      {SPOT}"}, UNSEEN, "UserData"),
    (
        "aws.yaml",
        {"    min_workers": "    worker_setup_commands: [pip install b]\n    min_workers"},
        "b is inst",
        "inst",
    ),
    ("aws.yaml", {"    min_workers": "    docker: {worker_image: x}\n    min_workers"}, "x is not pinned", "_image"),
    ("local.sh", {UMASK: f"{UMASK}wget -qO- x | sudo -E bash -\n"}, UNSEEN, "wget"),
    ("local.sh", {UMASK: f"{UMASK}curl -o i x\nsh ./i\n"}, UNSEEN, "sh ./i"),
    ("Dockerfile", {"RUN apt-get": "RUN curl x | python - && apt-get"}, UNSEEN, "curl"),
    ("Dockerfile", {"WORKDIR": "COPY --from=x /y /z\nWORKDIR"}, "the base x is not pinned", "--from"),
    ("Dockerfile", {"FROM python:3": "FROM x AS x\nFROM python:3"}, "the base x is not pinned", "AS x"),
    *(("Dockerfile", {"USER manyview": f"USER {user}"}, "runs as", "USER") for user in ("00", "$X", '"0:1000"')),
    ("Dockerfile", {"WORKDIR": "FROM x:1.0.0\nWORKDIR"}, "the container runs as root", "# The image"),
    ("Dockerfile", {"    RAY_AUTH_MODE=token": "    X='is RAY_AUTH_MODE=token'"}, "is not on", "# The image"),
    (JOB, {"  backoffLimit": f"{SUBMITTER}  backoffLimit"}, UNSEEN, "submitterPod"),
    (JOB, {"    python -m pretrain /opt": "    pip install a; python /opt"}, "a is installed beside", "entrypoint"),
    (JOB, {"  backoffLimit": "  runtimeEnvYAML: 'pip: [a]'\n  backoffLimit"}, "installs by pip", "runtimeEnv"),
    (JOB, {"  backoffLimit": "  runtimeEnvYAML: 'working_dir: s3://x/y.zip'\n  backoffLimit"}, "fetched", "runtime"),
    (CLUSTER, {PORTS: f"            command: [pip, install, a]\n{PORTS}"}, "a is installed beside", "command"),
    (
        CLUSTER,
        {PORTS: f"            lifecycle: {{postStart: {{exec: {{command: [sh, -c, 'curl x | sh']}}}}}}\n{PORTS}"},
        UNSEEN,
        "lifecycle",
    ),
    # Firewalls.
    ("aws.yaml", {SPOT: f"SecurityGroupIds: [sg-1]\n      {SPOT}"}, "whose rules no check sees", "SecurityGroupIds"),
]


@pytest.mark.parametrize(("recipe", "replaced", "said", "line"), PLANTED)
def test_a_mistake_in_another_form_is_found_in_its_line(
    recipe: str, replaced: dict[str, str], said: str, line: str
) -> None:
    text = (ROOT / "clusters" / recipe).read_text()
    for right, wrong in replaced.items():
        assert right in text
        text = text.replace(right, wrong, 1)
    mistakes = check(recipe, text)[1]
    found = [mistake for mistake in mistakes if said in str(mistake)]
    assert found, mistakes
    assert any(line in text.splitlines()[mistake.line - 1] for mistake in found), found


@pytest.mark.parametrize(
    "command",
    [
        *("(export RAY_AUTH_MODE=token); ray start", "true || export RAY_AUTH_MODE=token; ray start"),
        *("# now; export RAY_AUTH_MODE=token\nray start", "echo RAY_AUTH_MODE=token | ray start", "R=ray; $R start"),
        *("RAY_AUTH_MODE=token docker exec x ray start", "sudo bash -c 'RAY_AUTH_MODE=token ray start'"),
        *("RAY_AUTH_MODE=token srun --export=NONE ray start", "bash -c 'ray start'", "echo 'ray start' | bash"),
        *("ray start; export RAY_AUTH_MODE=token", "declare RAY_AUTH_MODE=token; ray start", "echo `ray start`"),
        *("nohup $(which ray) start", "su root <<EOF\nx\nEOF", "RAY_AUTH_MODE=token ray start; sudo sh -c '"),
    ],
)
def test_a_start_that_no_token_protects_is_found(command: str) -> None:
    assert list(wrong_starts(command))


@pytest.mark.parametrize(
    "innocent",
    [
        *("RAY_AUTH_MODE=token ray start", "A=1 RAY_AUTH_MODE=token nohup ray start &", "sudo systemctl start docker"),
        *("ulimit -n 9; export RAY_AUTH_MODE=token && ray start", "export A=1 RAY_AUTH_MODE=token\nray start"),
        *("docker compose -f $X start", "[ $1 = start ]", "a run's notes: look at it"),
        *("env -u A RAY_AUTH_MODE=token ray start", "RAY_AUTH_MODE=token bash -c 'ray start'", "echo 'ray start next'"),
        *('log "about to ray start"', "grep -q 'ray start' f"),
        *("if RAY_AUTH_MODE=token ray start; then x; fi", "docker run -e RAY_AUTH_MODE=token x ray start"),
        *("RAY_AUTH_MODE=token srun --export=ALL,A=1 ray start", "sudo mkdir x; RAY_AUTH_MODE=token ray start"),
        *(
            "srun --export=ALL,RAY_AUTH_MODE=token ray start",
            "export RAY_AUTH_MODE=token; srun --export A=1,ALL ray start",
        ),
        *("declare -x RAY_AUTH_MODE=token; ray start", "(RAY_AUTH_MODE=token ray start)", "# ray start"),
    ],
)
def test_a_start_with_its_token_is_no_mistake(innocent: str) -> None:
    assert list(wrong_starts(innocent)) == []


@pytest.mark.parametrize(
    "command",
    [
        *("printf -v RAY_AUTH_MODE no", "read RAY_AUTH_MODE <<< no", ": ${RAY_AUTH_MODE:=no}", "RAY_AUTH_MODE+=x"),
        *("docker run -iteRAY_AUTH_MODE=no x", 'RAY_AUTH_"MODE"=no ray', "RAY_AUTH_MODE[0]=no"),
    ],
)
def test_what_sets_the_variable_in_another_way_is_found(command: str) -> None:
    assert turns_tokens_off(command)


@pytest.mark.parametrize("right", ["chmod 600 ~/.ray/auth_token", "chmod go-rwx ~/.ray/auth_token", "chmod 755 x"])
def test_a_token_of_its_owner_s_alone_is_no_mistake(right: str) -> None:
    assert not opens_the_token(right)


@pytest.mark.parametrize(
    "wrong", ["644 ~/.ray/auth_token", "a+r $RAY_AUTH_TOKEN_PATH", "-R 755 ~/.ray", "+r auth_token", "0604 auth_token"]
)
def test_a_token_that_others_can_read_is_found(wrong: str) -> None:
    assert opens_the_token(f"umask 077; chmod {wrong}")
    assert opens_the_token("install -m644 x ~/.ray/auth_token")


@pytest.mark.parametrize(
    "options",
    [
        *(f"-v {MINE}:/x", "-v $HOME:/x", "-v${HOME}/.ssh:/x", "-v /var/lib/docker:/x", "-v ../..:/x", "-v $X:/x"),
        *("--mount type=volume,volume-opt=device=/,dst=/x", "--device=/dev/sda", "--ipc=host", "--uts=host"),
        *("-u root", "--user 1000:0", "--add-host a:1.2.3.4", "--entrypoint sh", "-zv /:/x", "--frob -v /:/x"),
        "--net=container:x",
    ],
)
def test_an_option_that_is_not_known_to_be_harmless_is_refused(options: str) -> None:
    assert list(wrong_docker_runs(f"docker run {options} image"))


@pytest.mark.parametrize(
    "options",
    [
        *(
            "-it --rm -v $PWD/data:/x",
            f"-v {MINE}/data:/x",
            "-v cache:/x",
            "--user 1000:1000",
            "--device=/dev/nvidia0",
        ),
        *("--ipc=private --runtime=nvidia", "--read-only --tmpfs /tmp", "--memory 8g --cpus=4 --hostname a -w /x"),
        *("--security-opt no-new-privileges --cap-drop ALL", "--log-opt max-size=1m --network x --label a=b -e A=1"),
    ],
)
def test_an_option_that_lends_nothing_is_no_mistake(options: str) -> None:
    assert list(wrong_docker_runs(f"docker run {options} image -v /:/of-the-command")) == []


@pytest.mark.parametrize(
    "command",
    [
        *("curl x | /bin/sh", "curl x | python3", "bash <(curl x)", 'sh -c "$(curl x)"', 'eval "$(wget -qO- x)"'),
        *("curl -fsSLo /tmp/i x; bash /tmp/i", "wget x.org/i.sh && chmod +x i.sh", "curl x >i; . ./i"),
        *(
            "bash -c 'curl x | sh'",
            "curl x | tee i; sh i",
            "wget http://x/y.deb; dpkg -i y.deb",
            "curl -sO -L x/i.sh; sh i.sh",
            "wget x/i; sha256sum -c s; sh i",
            "wget x/i; sha256sum i && sh i",
            "curl x | gunzip | sh",
        ),
    ],
)
def test_a_download_that_is_run_is_found(command: str) -> None:
    assert runs_downloads(command, set())


@pytest.mark.parametrize(
    "innocent",
    [
        *("apt-get install --yes wget && rm -rf x", "curl -o a.csv u; python train.py a.csv", "curl x | tar xz"),
        *("wget -qO- localhost | grep success", "curl x | python -m json.tool", "curl x; sh run.sh"),
        *("H=$(curl http://x/latest/meta-data/hostname); hostname -I", "curl -sSL x/i.sh | wc; cat i.sh | sh"),
        *("curl -O x/i.sh; echo 'h i.sh' | sha256sum -c - && sh i.sh", "wget x/i; sha256sum --check s && ./i"),
    ],
)
def test_a_download_that_is_only_read_is_no_mistake(innocent: str) -> None:
    assert not runs_downloads(innocent, set())


@pytest.mark.parametrize(
    "command", ["uv sync", "uv run x", "conda install a", "uv pip --quiet install a", "pipx run a"]
)
def test_what_installs_without_the_lock_is_found(command: str) -> None:
    assert list(wrong_installs(command))


def test_a_public_range_is_nobody_s_own_sooner_than_a_private_one() -> None:
    def wide(*names: str) -> bool:
        return bool(list(too_wide([{"FromPort": 1, "IpRanges": [{"CidrIp": name} for name in names]}])))

    assert [wide(name) for name in ("8.0.0.0/8", "8.8.0.0/15", "172.0.0.0/8")] == [True] * 3
    assert [wide(name) for name in ("10.0.0.0/8", "8.8.0.0/16", "172.16.0.0/12")] == [False] * 3
    assert wide("8.8.0.0/16", "8.9.0.0/16")


def test_a_script_is_read_alike_where_the_machine_s_language_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    assert list(check_shell((ROOT / "clusters/slurm.sh").read_text())) == []


def test_spaces_that_part_no_words_end_the_check_of_commands() -> None:
    assert list(wrong_python("echo 10\u00a0GB; python -m pretrian 'a\u3000b'"))
