"""Secrets that stand in a file: by their forms, by the names they are given, or since they look drawn at random."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

from clusters.checks.mistakes import Mistake

# Forms by which issuers mark their keys.
KNOWN = {
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,})",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a Google key": r"\bAIza[\w-]{35}|\bya29\.[\w-]{20,}",
    "a Slack token": r"\bxox[abprs]-[\w-]{10,}",
    "a W&B key": r"\bwandb_v1_\w{40,}|\bwandb\s+login\s(?:.*\s)?[0-9a-f]{40}\b",
    "a signed web token": r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}",
    "a password in a URL": r"\w://[^/\s:@]+:[^/\s:@$]{3,}@",
}
NAMED = re.compile(
    r"\b(?P<name>[\w-]*(?:password|passwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?))"
    r"[\"']?\s*[:=]\s*[\"']?(?P<value>[^\s\"',;}]+)",
    re.IGNORECASE,
)
SECRET_NAME = re.compile(
    r"(?:password|passwd|secret|token|api_?key|access_?key|private_?key|credentials?)$", re.IGNORECASE
)
# A value that says where a secret is, or whether there is one, gives none away.
REFERENCE = re.compile(r"^(?:[$~/.<{&*|>\[]|[01]$|true$|false$|null$|none$|token$|\w+://)", re.IGNORECASE)
RANDOM_WORD = re.compile(r"(?<![\w+/@:.-])[A-Za-z0-9+_-]{20,}(?![\w./])")
# AWS's secret keys, in which a slash may stand as in a path, and hardly a digit.
FORTY = re.compile(r"(?<![\w+/@:.~$}-])[A-Za-z0-9+/]{40}(?![\w+/=.-])")
# Digests of images, and commits where they are said to be such.
DIGEST = re.compile(
    r"sha256[:=][0-9a-f]{64}"
    r"|\b[\w.-]*(?:revision|commit|rev|ref|sha|git)\b[\"']?[\s:=]+[\"'`]?[0-9a-f]{40}\b",
    re.IGNORECASE,
)
HEXADECIMAL = re.compile(r"[0-9a-f]{32,}|[0-9A-F]{32,}")
# What is long and names something: an AWS resource (ami-0123456789abcdef0), a UUID, words with numbers and dates.
NAME = re.compile(
    r"""
      (?:[a-z]+-)* [0-9a-f]{8,17}
    | (?:[a-z]+-)* [0-9a-f]{8} (?:-[0-9a-f]{4}){3} -[0-9a-f]{12}
    | [_-]* {part} (?: [_-]+ {part} )+
    """.replace("{part}", r"(?: [A-Z]?[a-z]+\d{0,5} | [A-Z]+\d{0,5} | \d+[a-z]? | \d{8}T\d{6}Z? )"),
    re.VERBOSE,
)
# Fields of names, whose parts may be more mixed than in words: gpu-a100x8-7d9f8b6c5d.
FIELD = re.compile(r"(?:\b(?:ImageId|project_id|claimName)[\"']?\s*:\s*|--reservation[=\s]\s*)[\"']?$")
FIELD_NAME = re.compile(r"[a-z0-9]{1,19}(?:[_-][a-z0-9]{1,19})+")

MEND = "take it out, revoke it, and give it by a file of yours (0600) or by the scheduler's secret"


def secrets_in(text: str) -> Iterator[Mistake]:
    """Every line, comments too, in which a secret seems to stand. What is said shows four characters of it at most."""
    yield from _told(text, lambda line: _secret_of(DIGEST.sub("", line)))


def marked_secret_in(text: str) -> Iterator[Mistake]:
    """Of `secrets_in` what a form or a name marks: among ids and names of runs, looking random says nothing."""
    yield from _told(text, _marked_secret_of)


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name would hold a secret itself, rather than a path to one."""
    return SECRET_NAME.search(name) is not None


def _told(text: str, secret_of: Callable[[str], tuple[str, str] | None]) -> Iterator[Mistake]:
    for number, line in enumerate(text.splitlines(), start=1):
        if found := secret_of(line):
            what, value = found
            yield Mistake(number, f"{what} stands here ({value[:4]}…)", MEND)


def _marked_secret_of(line: str) -> tuple[str, str] | None:
    for what, pattern in KNOWN.items():
        if match := re.search(pattern, line):
            return what, match.group()
    for match in NAMED.finditer(line):
        if not REFERENCE.match(match["value"]):
            return f"a value for {match['name']}", match["value"]
    return None


def _secret_of(line: str) -> tuple[str, str] | None:
    if found := _marked_secret_of(line):
        return found
    for match in RANDOM_WORD.finditer(line):
        word, names = match.group(), FIELD.search(line, 0, match.start())
        if _looks_random(word) and not (NAME.fullmatch(word) or (names and FIELD_NAME.fullmatch(word))):
            return "what looks like a key", word
    for match in FORTY.finditer(line):
        if _is_mixed(match.group()) and _entropy_bits(match.group()) > 4.2 and _changes(match.group()) >= 0.3:
            return "what looks like a key", match.group()
    return None


def _looks_random(word: str) -> bool:
    """Long, of letters and digits mixed as no name or path is."""
    num_digits = sum(letter.isdigit() for letter in word)
    if not 3 <= num_digits < len(word):
        return False
    if HEXADECIMAL.fullmatch(word):
        return True
    mixed = _is_mixed(word)
    return _entropy_bits(word) > (3.5 if mixed else 3.7) and (mixed or num_digits >= 5)


def _is_mixed(word: str) -> bool:
    """Whether capitals and others stand in it."""
    return word.lower() != word and word.upper() != word


def _changes(word: str) -> float:
    """How often, a letter, one of another kind follows: a capital, a small letter, a digit or a sign."""
    kinds = [(letter.isupper(), letter.islower(), letter.isdigit()) for letter in word]
    return sum(one != other for one, other in itertools.pairwise(kinds)) / len(word)


def _entropy_bits(word: str) -> float:
    """Shannon entropy of its letters, in bits a letter."""
    shares = [count / len(word) for count in Counter(word).values()]
    return -sum(share * math.log2(share) for share in shares)
