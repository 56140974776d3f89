"""`python -m clusters check FILE …`: is a recipe for a cluster right? Offline: nothing is started, nobody is asked."""

import re
from collections.abc import Sequence
from pathlib import Path

from clusters.checks.dockerfile import check_dockerfile
from clusters.checks.kuberay import check_kuberay
from clusters.checks.lock import check_lock
from clusters.checks.mistakes import Mistake
from clusters.checks.ray_up import check_ray_up
from clusters.checks.secrets import secrets_in
from clusters.checks.shell import check_shell
from clusters.checks.yaml_lines import Document, Mistaken, documents_in
from clusters.config import InputError

# Without these a lock of the project's packages is another's, or cut off.
WHOLE = ("ray", "torch")
# What may stand beside a cluster of KubeRay, since it opens nothing.
BESIDE = (
    "ConfigMap", "LimitRange", "Namespace", "NetworkPolicy", "PersistentVolumeClaim", "PodDisruptionBudget",
    "PriorityClass", "ResourceQuota", "ServiceAccount",
)  # fmt: skip


def usage() -> str:
    """What `check` is for."""
    return """  python -m clusters check FILE …
      holds recipes for clusters (ray up, KubeRay, shell, Dockerfile) and locks against what reads them, and looks for
      what is open, unpinned, secret or known to be bad; each mistake with its line and how to mend it"""


def run(argv: Sequence[str]) -> None:
    """Check each file and say what was found. Raises InputError where anything was."""
    if not argv:
        raise InputError("check: name the files to check, such as clusters/aws.yaml")
    num_mistakes = 0
    for name in argv:
        text = _read(name)
        kind, mistakes = check(name, text)
        for mistake in mistakes:
            print(f"{name}:{mistake.line}: {mistake}", flush=True)
        if not mistakes:
            print(f"{name}: right, as {kind}, as far as can be known offline{_left_to_fill(text)}", flush=True)
        num_mistakes += len(mistakes)
    if num_mistakes:
        raise InputError(f"check: {num_mistakes} mistake{'s' * (num_mistakes > 1)}; mend the lines named above")


def check(name: str, text: str) -> tuple[str, list[Mistake]]:
    """What kind of recipe a file of this name is, and the mistakes in it, by line.

    Raises InputError for a kind of file that nothing is known about.
    """
    path = Path(name)
    if path.suffix == ".lock":
        return "a lock", sorted(set(check_lock(text, WHOLE if path.name == "requirements.lock" else ())))
    found = list(secrets_in(text))
    if "dockerfile" in path.name.lower():
        return "a Dockerfile", sorted({*found, *check_dockerfile(text)})
    if path.suffix == ".sh" or re.match(r"#!.*\bbash\b", text):
        return "a shell recipe", sorted({*found, *check_shell(text)})
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"{name}: neither a .yaml, a .sh, a .lock nor a Dockerfile; see python -m clusters --help")
    try:
        documents = documents_in(text)
    except Mistaken as error:
        return "YAML", sorted([*found, error.mistake])
    if not documents or not all(isinstance(document.value, dict) for document in documents):
        raise InputError(f"{name}: not a cluster's file; expected `key: value` lines")
    kind, mistakes = _check_documents(documents)
    return kind, sorted({*found, *mistakes})


def _check_documents(documents: Sequence[Document]) -> tuple[str, list[Mistake]]:
    """What the documents of a YAML file are, and the mistakes in them."""
    of_kubernetes = [document for document in documents if {"kind", "apiVersion"} & document.value.keys()]
    if not of_kubernetes:
        more = [Mistake(d.first_line, "`ray up` reads one document a file", "leave one") for d in documents[1:]]
        return "a cluster for `ray up`", [*more, *check_ray_up(documents[0])]
    checked = [document for document in of_kubernetes if document.value.get("kind") not in BESIDE] or of_kubernetes
    mistakes = [mistake for document in checked for mistake in check_kuberay(document)]
    for document in documents:
        if document not in of_kubernetes:
            mend = "give it a kind, or a file of its own"
            mistakes.append(Mistake(document.first_line, "this document is nothing of Kubernetes'", mend))
    return " and ".join(f"a {document.value.get('kind')}" for document in checked) + " of KubeRay", mistakes


def _read(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{name}: not a text file") from None


def _left_to_fill(text: str) -> str:
    """What a person has yet to put in."""
    placeholders = sorted(set(re.findall(r"(?m)^(?!\s*#).*?\b(YOUR-[A-Z-]+)", text)))
    return f"; still to be replaced: {', '.join(placeholders)}" if placeholders else ""
