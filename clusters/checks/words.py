"""Shell text as the words of its commands, quotes taken off."""

import re
import shlex

# What is quoted or escaped, in which a # begins no comment; then a comment, which begins where a word would.
QUOTED_OR_COMMENT = re.compile(
    r"""(?P<kept> '[^']*' | "(?:\\.|[^"\\])*" | \\. ) | (?:^|(?<=[\s;&|()]))\#[^\n]*""", re.DOTALL | re.VERBOSE
)


def commands_in(text: str) -> list[list[str]]:
    """The words of each simple command of some shell text. What is quoted is one word, a whole command too."""
    return [words for _, words, _ in separated(text)]


def separated(text: str) -> list[tuple[str, list[str], str]]:
    """Each simple command's words, with what separates it from the one before and from the one behind."""
    text = _without_comments(text)
    text = re.sub(r"\\\n", " ", text)
    text = re.sub(r"\d*[<>]+&\S*|&>+", " ", text)  # redirections, whose & ends no command
    text = text.replace("\n", " ; ")
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        words = list(lexer)
    except ValueError:  # a quote that is closed in another line
        words = [word.strip("\"'") for word in re.findall(r"[;&|]+|[^\s;&|]+", text)]
    commands: list[list[str]] = [[]]
    separators = [""]
    for word in words:
        if word and not word.strip(";&|"):
            if commands[-1]:
                commands.append([])
                separators.append("")
            separators[-1] += word
        else:
            commands[-1].append(word)
    separators += [""]
    found = zip(separators, commands, separators[1:], strict=False)
    return [(before, words, after) for before, words, after in found if words]


def ends_in_quotes(text: str) -> bool:
    """Whether a quote is open at the end of some shell text, so that a command goes on in other lines."""
    try:
        shlex.split(_without_comments(text))
    except ValueError:
        return True
    return False


def _without_comments(text: str) -> str:
    return QUOTED_OR_COMMENT.sub(lambda found: found["kept"] or "", text)


def values_of(words: list[str], option: str) -> list[str]:
    """Each value that a command's words give to an option, as `option=value` or `option value`; the last one counts."""
    found = []
    for place, word in enumerate(words):
        name, given, value = word.partition("=")
        if name == option:
            found.append(value if given else "".join(words[place + 1 : place + 2]))
    return found
