"""Shell recipes: syntax by bash itself, options by Ray and Slurm, authentication, no other process ended."""

import os
import re
import subprocess
from collections.abc import Iterator

from clusters.checks.docker_options import wrong_docker_runs
from clusters.checks.downloads import RUN_UNSEEN, runs_downloads
from clusters.checks.job_stops import names_a_head, stated_in, too_short
from clusters.checks.mistakes import Mistake
from clusters.checks.python_commands import wrong_python
from clusters.checks.ray_options import wrong_options
from clusters.checks.starts import ASSIGNMENT, TOKEN_MODE, wrong_starts
from clusters.checks.tokens import opens_the_token, turns_tokens_off
from clusters.checks.words import separated
from clusters.config import nearest

# Options of sbatch (long form), and those that pyxis adds for containers.
# fmt: off
SBATCH = [
    "account", "acctg-freq", "array", "batch", "bb", "bbf", "begin", "chdir", "cluster-constraint", "clusters",
    "comment", "consolidate-segments", "constraint", "container", "container-id", "contiguous", "core-spec",
    "cores-per-socket", "cpu-freq", "cpus-per-gpu", "cpus-per-task", "deadline", "delay-boot", "dependency",
    "distribution", "error", "exclude", "exclusive", "export", "export-file", "extra", "extra-node-info",
    "get-user-env", "gid", "gpu-bind", "gpu-freq", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres",
    "gres-flags", "hint", "hold", "ignore-pbs", "input", "job-name", "kill-on-invalid-dep", "licenses", "mail-type",
    "mail-user", "mcs-label", "mem", "mem-bind", "mem-per-cpu", "mem-per-gpu", "mincpus", "network", "nice", "no-kill",
    "no-requeue", "nodefile", "nodelist", "nodes", "ntasks", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node",
    "ntasks-per-socket", "oom-kill-step", "open-mode", "output", "overcommit", "oversubscribe", "parsable",
    "partition", "power", "prefer", "priority", "profile", "propagate", "qos", "quiet", "reboot", "requeue",
    "reservation", "resv-ports", "segment", "signal", "sockets-per-node", "spread-job", "spread-segments", "stepmgr",
    "switches", "test-only", "thread-spec", "threads-per-core", "time", "time-min", "tmp", "tres-bind",
    "tres-per-task", "uid", "use-min-nodes", "verbose", "wait", "wait-all-nodes", "wckey",
    "container-image", "container-mounts", "container-workdir", "container-name", "container-save",
    "container-mount-home", "no-container-mount-home", "container-remap-root", "no-container-remap-root",
    "container-entrypoint", "no-container-entrypoint", "container-entrypoint-log", "container-writable",
    "container-readonly", "container-env",
]
# fmt: on
NEEDED = [
    ("symmetric-run", "exclusive", "", "`ray symmetric-run` ends every Ray of yours on its nodes, other jobs' too"),
    ("-m", "signal", "=B:TERM@180", "Slurm would end a run at its time limit before its step is saved"),
]
"""What a job needs that has such a word in it."""
FLAGS = {"e": "errexit", "u": "nounset"}


def check_shell(text: str) -> Iterator[Mistake]:
    """What is wrong with a bash script that starts Ray."""
    yield from _check_syntax(text)
    code = re.sub(
        r"(?m)^[ \t]*#.*$|(?<=\s)#[ \t].*$", "", text
    )  # comments leave their lines behind, so that lines keep count
    exported_at = _exported_at(code)
    if not exported_at:
        yield Mistake(1, "token authentication is not on", "add `export RAY_AUTH_MODE=token`")
    if not re.search(r"(?m)^umask 0?77$", code):
        yield Mistake(1, "logs and tokens would be readable by others", "add `umask 077`")
    flags = _flags(code)
    if not {"errexit", "pipefail"} <= flags:
        yield Mistake(1, "a failing command would be passed over", "add `set -euo pipefail`")
    elif "nounset" not in flags:
        yield Mistake(1, "a name that is not set would stand for nothing", "write `set -euo pipefail`")
    forbidden = {
        r"(?:^|[\s;])umask\s+(?!0?77\b|-)": ("files are opened to others again", "leave `umask 077` as it is"),
        r"\bSLURM_EXPORT_ENV=(?![\"']?ALL\b)": (
            "what srun starts gets no RAY_AUTH_MODE",
            "leave SLURM_EXPORT_ENV alone",
        ),
        r"\b(?:APPTAINER|SINGULARITY)_(?:CLEANENV|CONTAINALL|COMPAT|ENV_FILE)=": (
            "what Apptainer starts gets no RAY_AUTH_MODE",
            "take it out",
        ),
        r"\bray stop\b": ("`ray stop` ends every Ray of this machine", "end by process id what was started here"),
        r"\b(?:pkill|killall)\b": ("this ends processes by name, whoever's they are", "end by process id"),
    }
    loaded: set[str] = set()
    for number, command in _commands(code):
        for pattern, (what, mend) in forbidden.items():
            if re.search(pattern, command):
                yield Mistake(number, what, mend)
        if turns_tokens_off(command):
            yield Mistake(number, "token authentication is turned off", "set RAY_AUTH_MODE=token")
        if runs_downloads(command, loaded):
            yield Mistake(number, RUN_UNSEEN, "install from the lock")
        if opens_the_token(command):
            yield Mistake(number, "others on the machine could read the token", "leave the file 0600")
        starts = wrong_starts(command, on=number > exported_at)
        for what, mend in (*wrong_options(command), *starts, *wrong_docker_runs(command), *wrong_python(command)):
            yield Mistake(number, what, mend)
    head = next((number for number, command in _commands(code) if names_a_head(command)), 0)
    # To a cluster that a job of Slurm brings up for its own command nobody submits
    for what, mend in too_short(stated_in(code)) if head and "\n#SBATCH" not in text else ():
        yield Mistake(head, what, mend)
    yield from _check_sbatch(text, code)


def _exported_at(code: str) -> int:
    """The line by which token authentication is on for what is started afterwards; 0 where it never is.

    Set and exported at once or one after the other, by assignments and exports that begin a line, not within a pipe, a
    `$(…)` or the background, nor within an `if`, a function, a `( )` or a heredoc.
    """
    stated = exported = False
    lines = code.splitlines()
    for number, command in _commands(code):
        surely = "RAY_AUTH_MODE" in command and _complete(lines[: number - 1])
        for before, words, after in separated(command) if surely else ():
            exports = words[:1] == ["export"] or words[:2] in (["declare", "-x"], ["typeset", "-x"])
            given = words[2 if words[1:2] == ["-x"] else 1 :] if exports else words
            plain = exports or all(ASSIGNMENT.match(word) for word in words)
            within = "".join(words).count("(") != "".join(words).count(")") or "".join(words).count("`") % 2
            if not plain or words[1:2] == ["-n"] or within or before not in ("", ";") or after in ("|", "|&", "&"):
                break
            stated = stated or TOKEN_MODE in given
            exported = exported or (exports and any(word.partition("=")[0] == "RAY_AUTH_MODE" for word in given))
        if stated and exported:
            return number
    return 0


def _complete(lines: list[str]) -> bool:
    """Whether bash would run what follows these lines on its own: no compound command or heredoc is open."""
    plain = {**os.environ, "LC_ALL": "C"}  # bash warns of languages that are not installed
    parsed = subprocess.run(["bash", "-n"], input="\n".join(lines), env=plain, capture_output=True, text=True)
    return not parsed.returncode and not parsed.stderr  # it only warns of a heredoc without an end


def _flags(code: str) -> set[str]:
    """Names of the options of `set` that are on at a script's end, by commands of their own."""
    found: set[str] = set()
    for words in (options.split() for options in re.findall(r"(?m)^set[ \t]+([-+][^\n;&|]*)", code)):
        for word, following in zip(words, [*words[1:], ""]):
            if word == "--":
                break  # what follows are the script's own words
            named = {FLAGS.get(letter, "") for letter in word} | ({following} if word.endswith("o") else set())
            if word.startswith("-"):
                found |= named
            elif word.startswith("+"):
                found -= named
    return found


def _check_syntax(text: str) -> Iterator[Mistake]:
    parsed = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    if parsed.returncode:
        found = re.search(r"line (\d+): (.*)", parsed.stderr)
        line, what = (int(found[1]), found[2]) if found else (1, parsed.stderr.strip())
        yield Mistake(line, f"bash cannot read this: {what}", "see `bash -n`")


def _commands(code: str) -> Iterator[tuple[int, str]]:
    """Each command with its first line's number, what a backslash continues joined."""
    lines = code.splitlines()
    number = 0
    while number < len(lines):
        first, command = number, lines[number]
        while command.endswith("\\") and number + 1 < len(lines):
            number += 1
            command = command[:-1] + " " + lines[number].strip()
        yield first + 1, command
        number += 1


def _check_sbatch(text: str, code: str) -> Iterator[Mistake]:
    given = set(re.findall(r"(?m)^#SBATCH\s+--([a-z-]+)", text))
    for command, option, value, what in NEEDED:
        if given and command in code and option not in given:
            yield Mistake(1, what, f"add `#SBATCH --{option}{value}`")
    first_command = next((n for n, line in enumerate(code.splitlines(), start=1) if line.strip()), 0)
    for number, line in enumerate(text.splitlines(), start=1):
        directive = re.match(r"#SBATCH\s+--([a-z-]+)", line)
        if directive is None:
            continue
        if directive[1] not in SBATCH:
            yield Mistake(number, f"sbatch has no --{directive[1]}{nearest(directive[1], SBATCH)}", "mend it")
        if directive[1] == "export" and not re.search(r"--export(?:=|\s+)ALL\b", line):
            mend = "take it out, or write --export=ALL"
            yield Mistake(number, "what the job's steps start gets no RAY_AUTH_MODE", mend)
        if number > first_command:
            yield Mistake(number, "Slurm reads no #SBATCH after the first command", "move it up")
