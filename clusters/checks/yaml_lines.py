"""YAML whose values still know their lines."""

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from clusters.checks.mistakes import Mistake

Place = tuple[str | int, ...]


class Document:
    """One YAML document: its value, and the line of each key. Raises Mistaken where it is not one."""

    def __init__(self, text: str) -> None:
        try:
            loader = yaml.SafeLoader(text)
            root = loader.get_single_node()
            if root is not None:
                _refuse_double_keys(root)
            self.value: Any = None if root is None else loader.construct_document(root)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
            raise Mistaken(
                Mistake(line, f"not valid YAML: {error.problem or error.context}", "mend the line")
            ) from None
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


def _refuse_double_keys(node: Any) -> None:
    """Of a key that stands twice the first would be lost in silence."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise Mistaken(Mistake(line, f"the key '{key.value}' stands twice", "leave one of them"))
            seen.add(key.value)
            _refuse_double_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_double_keys(item)
