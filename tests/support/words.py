"""Docstrings whose first line is a riddle, printed by `python -m tests.support.words` from the repository's root.

A first line is a sentence, or a noun phrase that stands alone: it leans neither on the name above nor on the next line.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.house import ROOT, folder_of, modules, tree_of

OPENERS = ("as", "by", "for", "from", "how", "in", "its", "of", "that", "their", "those", "to", "what", "when", "where")
OPENERS += ("which", "who", "whose", "with")

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SENTENCE_END = re.compile(r"([.:!?…]|https?://\S+)[)\"'`]*$")


class Riddle(NamedTuple):
    """Docstring whose first line does not stand alone."""

    line: int
    name: str  # name of what the docstring describes, below the classes and functions around it
    opening: str  # the docstring's first line
    module: Path = Path()

    def __str__(self) -> str:
        return f"{self.module.as_posix()}:{self.line}: {self.name}: {self.opening}"


def riddles() -> list[Riddle]:
    """List the riddles of the package, the benchmarks and what tests share, in the order of the files."""
    helpers = [path for path in (ROOT / "tests").glob("*.py") if not path.name.startswith("test_")]
    more = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests" / "support").rglob("*.py"), *helpers]
    files = sorted([*modules(), *(path.relative_to(ROOT) for path in more)])
    return [riddle._replace(module=module) for module in files for riddle in riddles_in(tree_of(module))]


def riddles_in(tree: ast.Module) -> Iterator[Riddle]:
    """Yield the riddles among a module's docstrings."""
    for name, node in _named(tree):
        text = ast.get_docstring(node)
        if text is not None and not _stands_alone(text, node):
            yield Riddle(node.body[0].lineno, name, text.split("\n")[0])


def doubles() -> dict[str, list[Path]]:
    """Find the names that several public classes share, each with the modules that define them."""
    places: dict[str, list[Path]] = defaultdict(list)
    for module in modules():
        for node in tree_of(module).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module)
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


def _named(node: ast.AST, around: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield everything in node that may have a docstring, and its dotted name."""
    if isinstance(node, ast.Module):
        yield "module", node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            yield around + child.name, child
            yield from _named(child, f"{around}{child.name}.")
        else:
            yield from _named(child, around)


def _stands_alone(text: str, node: ast.AST) -> bool:
    first_line = text.split("\n")[0]
    opener = re.split(r"[\s,:]", first_line.lower(), maxsplit=1)[0]
    if opener == "whether" and not _answers_yes_or_no(node):
        return False
    is_word = any(map(str.isalpha, opener))  # a bare number leans on the name
    return is_word and opener not in OPENERS and bool(SENTENCE_END.search(first_line))


def _answers_yes_or_no(node: ast.AST) -> bool:
    returned = ast.unparse(node.returns) if isinstance(node, FUNCTIONS) and node.returns else ""
    return returned.strip("'\"") == "bool" or "bool_" in returned


def main() -> None:
    """Print every riddle, their number in each folder, and the names that several public classes share."""
    found = riddles()
    for riddle in found:
        print(riddle)
    for folder, count in sorted(Counter(folder_of(riddle.module) for riddle in found).items()):
        print(f"{count:5} {folder}")
    print(f"{len(found):5} in all")
    for name, places in doubles().items():
        print(f"several classes {name}: {' '.join(place.as_posix() for place in places)}")


if __name__ == "__main__":
    main()
