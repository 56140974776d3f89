"""Shell text as the words of its commands, quotes taken off."""

import re
import shlex


def commands_in(text: str) -> list[list[str]]:
    """The words of each simple command of some shell text. What is quoted is one word, a whole command too."""
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
    for word in words:
        if word and not word.strip(";&|"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def values_of(words: list[str], option: str) -> list[str]:
    """Each value that a command's words give to an option, as `option=value` or `option value`; the last one counts."""
    found = []
    for place, word in enumerate(words):
        name, given, value = word.partition("=")
        if name == option:
            found.append(value if given else "".join(words[place + 1 : place + 2]))
    return found
