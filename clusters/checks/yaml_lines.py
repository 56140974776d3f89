"""YAML whose values still know their lines."""

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from clusters.checks.mistakes import Mistake, line_at

Place = tuple[str | int, ...]


class Document:
    """One YAML document: its value, its first line, and the line of each key."""

    def __init__(self, root: yaml.Node, value: Any) -> None:
        self.value = value
        self.first_line = root.start_mark.line + 1
        self._root = root

    def line(self, path: Sequence[str | int]) -> int:
        """The line of the key at a path, or of the last part of the path that is there."""
        node, line = self._root, 1
        for part in path:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return line

    def texts(self) -> Iterator[tuple[Place, str]]:
        """Each text of the document that may be a command, with its place: of more than a word, or one of a list."""
        for path, text in _texts(self.value, ()):
            if len(text.split()) > 1 or (path and isinstance(path[-1], int)):
                yield path, text


def documents_in(text: str) -> list[Document]:
    """Each document of a YAML file, but those that are empty. Raises Mistaken where it is none."""
    try:
        loader = _Loader(text)
        documents = []
        while loader.check_node():
            root = loader.get_node()
            assert root is not None
            _refuse_keys(root, [])
            documents.append(Document(root, loader.construct_document(root)))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise Mistaken(Mistake(line, f"not valid YAML: {error.problem or error.context}", "mend the line")) from None
    except yaml.reader.ReaderError as error:
        what = f"not valid YAML: a character {text[error.position]!a}"
        raise Mistaken(Mistake(line_at(text, error.position), what, "take it out")) from None
    except RecursionError:
        raise Mistaken(Mistake(1, "not valid YAML: too many lists within lists", "mend them")) from None
    return [document for document in documents if document.value is not None]


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a value that is not what it looks like (2026-13-45) has its line too."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


class Mistaken(Exception):
    """Nothing more can be checked than this one mistake."""

    def __init__(self, mistake: Mistake) -> None:
        super().__init__(str(mistake))
        self.mistake = mistake


def _texts(value: Any, path: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(value, str):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _texts(item, (*path, key))


def _child(node: Any, part: str | int) -> tuple[int, Any] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


def _refuse_keys(node: Any, around: list[Any]) -> None:
    """Refuse keys that are no text, or stand twice, of which the first would be lost in silence.

    `around`: what the node stands within, which no alias may bring in again.
    """
    line = node.start_mark.line + 1
    if any(node is outer for outer in around):
        raise Mistaken(Mistake(line, "what an alias (*) stands for holds that alias itself", "write it out"))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            _refuse_key(key, seen)
            seen.add(key.value)
            _refuse_keys(value, [*around, node])
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_keys(item, [*around, node])


def _refuse_key(key: Any, seen: set[str]) -> None:
    line = key.start_mark.line + 1
    if not isinstance(key, yaml.ScalarNode):
        mend = "write `key: value`; of a template check what `helm template` makes of it"
        raise Mistaken(Mistake(line, "a list or a mapping stands where a key should", mend))
    if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
        raise Mistaken(Mistake(line, f"the key {key.value or 'of nothing'} is no text", "write it in quotes"))
    if key.value in seen:
        raise Mistaken(Mistake(line, f"the key '{key.value}' stands twice", "leave one of them"))
