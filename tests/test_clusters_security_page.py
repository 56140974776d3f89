"""The threat model and the operator's page name only code and tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_claim_of_the_threat_model_names_code_or_tests_that_exist() -> None:
    page = (ROOT / "clusters/SECURITY.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("|")][2:]
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert len(rows) > 10
    for _, _, held_by, shown_by in rows:
        for path in re.findall(r"`((?:clusters|data|tests|finetune|pretrain)/[^`]+|requirements\.lock)`", held_by):
            assert (ROOT / path).exists(), path
        named = re.findall(r"`(test_\w+)`", shown_by)
        assert named, shown_by
        for test in named:
            assert f"def {test}(" in tests, test


def test_what_the_operator_s_page_names_is_there() -> None:
    page = (ROOT / "clusters/README.md").read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for test in re.findall(r"`(test_\w+)`", page):
        assert f"def {test}(" in tests, test
    for path in re.findall(r"`((?:clusters|tests)/[\w./]+\.\w+)`|\]\(([\w.]+)\)", page):
        assert (ROOT / path[0]).exists() and (ROOT / "clusters" / path[1]).exists(), path
    for recipe in (ROOT / "clusters").glob("*.sh"):
        assert f"`{recipe.name}`" in page, recipe
