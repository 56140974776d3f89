"""The threat model names only code and tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_claim_of_the_threat_model_names_code_or_tests_that_exist() -> None:
    page = (ROOT / "clusters/SECURITY.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("|")][2:]
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert len(rows) > 10
    for _, _, held_by, shown_by in rows:
        for path in re.findall(r"`((?:clusters|data|tests)/[^`]+|requirements\.lock)`", held_by):
            assert (ROOT / path).exists(), path
        named = re.findall(r"`(test_\w+)`", shown_by)
        assert named, shown_by
        for test in named:
            assert f"def {test}(" in tests, test
