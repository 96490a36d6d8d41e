"""Figures of the source tree's structure, printed by `python -m tests.support.house` from the repository's root.

Each function takes and returns plain values, so that a test can hold a figure to a target.
"""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ("tests", "benchmarks")
SNIFFERS = ("hasattr", "getattr", "vars")
LONGEST_FUNCTION = 40  # most lines of a function
LONGEST_FILE = 400  # most lines of a file
TABLES = ("core/traits.py",)  # the only files that may refuse two parts for what they declare


def modules() -> list[Path]:
    """List every module of the packages that pyproject.toml names, relative to the root, sorted.

    Whatever else lies in the checkout, an environment or a benchmark's cache, is no part of it.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = [Path(*name.split(".")[1:]) for name in project["tool"]["setuptools"]["packages"]]
    own = [folder for folder in folders if not folder.parts or folder.parts[0] not in OUTSIDE]
    return sorted(path.relative_to(ROOT) for folder in own for path in (ROOT / folder).glob("*.py"))


@cache
def tree_of(module: Path) -> ast.Module:
    """Return the syntax tree of a module."""
    return ast.parse((ROOT / module).read_text("utf-8"))


def folder_of(module: Path) -> str:
    """Return the folder of a module, "." for the root."""
    return module.parent.as_posix()


@cache
def imported(module: Path) -> frozenset[Path]:
    """Return the package's own modules that a module imports anywhere in it, type hints included."""
    return frozenset(_imported(module))


def _imported(module: Path) -> Iterator[Path]:
    for node in ast.walk(tree_of(module)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = module.parents[node.level - 1]
        target = base / Path(*(node.module or "").split("."))
        for alias in node.names:
            for place in (target / alias.name, target):
                if (found := _module_at(place)) is not None:
                    yield found
                    break


def _module_at(place: Path) -> Path | None:
    for candidate in (place.with_suffix(".py"), place / "__init__.py"):
        if place.name and (ROOT / candidate).is_file():
            return candidate
    return None


def arrows() -> set[tuple[str, str]]:
    """List pairs of different folders, the first of which imports from the second."""
    pairs = {(folder_of(module), folder_of(other)) for module in modules() for other in imported(module)}
    return {(one, other) for one, other in pairs if one != other}


def rooms() -> set[str]:
    """List the rooms: the folders at the top. The root, which only names what is public, is none."""
    return {module.parts[0] for module in modules() if len(module.parts) > 1}


def arrows_of_rooms() -> set[tuple[str, str]]:
    """List pairs of different rooms, the first of which imports from the second."""
    pairs, known = {(one.split("/")[0], other.split("/")[0]) for one, other in arrows()}, rooms()
    return {(one, other) for one, other in pairs if one != other and {one, other} <= known}


def floors(places: set[str], arrows: set[tuple[str, str]]) -> int:
    """Count the places on the longest way downwards; places that import one another share a floor."""
    edges: dict[str, set[str]] = {place: set() for place in places}
    for one, other in arrows:
        edges[one].add(other)
    groups = components(edges)
    place = {folder: number for number, group in enumerate(groups) for folder in group}
    heights: list[int] = []
    for number, group in enumerate(groups):  # what is imported comes first
        below = {place[other] for folder in group for other in edges[folder]} - {number}
        heights.append(1 + max((heights[one] for one in below), default=0))
    return max(heights)


def circles() -> list[list[str]]:
    """List groups of modules that import one another, type hints included."""
    edges = {module.as_posix(): {other.as_posix() for other in imported(module)} for module in modules()}
    return [group for group in components(edges) if len(group) > 1]


def components(edges: dict[str, set[str]]) -> list[list[str]]:
    """Find the strongly connected components, those that are pointed at first. Tarjan 1972."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in order:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], order[other])
        if lowest[node] == order[node]:
            start = stack.index(node)
            found.append(sorted(stack[start:]))
            del stack[start:]

    for node in sorted(edges):
        if node not in order:
            visit(node)
    return found


def sniffs() -> list[tuple[str, int, str]]:
    """List every call of hasattr, getattr or vars: file, line, and the call as text."""
    return [
        (module.as_posix(), node.lineno, ast.unparse(node))
        for module in modules()
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SNIFFERS
    ]


def refusals() -> list[tuple[str, int]]:
    """List every place outside the table that raises an IncompatibleError by hand: file and line."""
    return [
        (module.as_posix(), node.lineno)
        for module in modules()
        if module.as_posix() not in TABLES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Raise) and node.exc is not None and "IncompatibleError" in ast.unparse(node.exc)[:20]
    ]


def long_functions(with_docstrings: bool = True) -> list[tuple[str, str, int]]:
    """List functions of more than LONGEST_FUNCTION lines: file, name, lines, their docstrings among them or not."""
    return [
        (module.as_posix(), node.name, lines)
        for module in modules()
        for node in ast.walk(tree_of(module))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if (lines := _length(node) - (0 if with_docstrings else _docstring(node))) > LONGEST_FUNCTION
    ]


def _docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return _length(node.body[0]) if ast.get_docstring(node) else 0


def _length(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def long_files() -> list[tuple[str, int]]:
    """List files of more than LONGEST_FILE lines, with their length."""
    lengths = ((module.as_posix(), len((ROOT / module).read_text("utf-8").splitlines())) for module in modules())
    return [(name, length) for name, length in lengths if length > LONGEST_FILE]


def main() -> None:
    """Print every figure, one to a line; then the files behind those that should be few."""
    folders = Counter(map(folder_of, modules()))
    own = [one for one in sniffs() if not is_foreign(*one)]
    print(f"files                     {sum(folders.values())} in {len(folders)} folders")
    print(f"rooms at the top          {len(rooms())}")
    high = floors(rooms(), arrows_of_rooms())
    print(f"floors                    {high} of rooms, {floors(set(folders), arrows())} of folders")
    print(f"arrows                    {len(arrows_of_rooms())} between rooms, {len(arrows())} between folders")
    print(f"circles of files          {len(circles())}")
    print(f"hasattr, getattr, vars    {len(sniffs())}, of them on own values {len(own)}")
    print(f"refusals by hand          {len(refusals())} in {len({name for name, _ in refusals()})} files")
    bare = len(long_functions(with_docstrings=False))
    print(f"functions over {LONGEST_FUNCTION} lines   {len(long_functions())}, without docstrings {bare}")
    print(f"files over {LONGEST_FILE} lines      {len(long_files())}")
    print("\nfiles per folder:", ", ".join(f"{name} {count}" for name, count in sorted(folders.items())))
    for circle in circles():
        print("circle:", " ".join(circle))
    for name, line, call in own:
        print(f"own value: {name}:{line}: {call}")
    for name, line in refusals():
        print(f"refusal: {name}:{line}")
    for place in (*long_functions(), *long_files()):
        print("long:", *place)


# What may be asked of values that are not ours, by whose they are; and files in which users' own values are adapted.
FOREIGN = {
    "Python": "__code__ __dict__ __func__ __IPYTHON__ "
    "__qualname__ __name__ __module__ __file__ __notes__ _fields strerror sched_getaffinity nice RTLD_DEEPBIND",
    "a user's module": "experiment experiments compared_by",
    "Keras": "_direction _fn_kwargs "
    "inner_optimizer inputs outputs ignore_class compiled regularizer activity_regularizer activation "
    "lora_enabled mask_zero rms_scaling reduction quantization_mode data_format padding axis groups metrics "
    "_keras_mask _functional trainable_variables looking_back",
    "TensorFlow, PyTorch": "shape dtype",
    "NumPy": "files",
}
ADAPTING = {
    "core/reading/beside.py": "modules beside a user's file",
    "core/reading/description.py": "attributes of a user's own class",
    "core/reading/fingerprint.py": "methods of a user's own class",
    "core/reading/slips.py": "values of any kind where a part is expected",
    "server/arguments.py": "values of any kind where a store or a watcher is expected",
    "core/reading/adapted.py": "plain classes of the user's own",
    "core/validation.py": "methods of plain classes, a dataclass's fields by name",
    "core/reading/loading.py": "a user's file, run in a module",
    "core/reading/overrides.py": "type hints, read where their class was written",
    "clients/jax/eager.py": "a Keras model's steps by name",
    "clients/jax/variables.py": "a Keras optimizer's rate, and the optimizer inside a loss scale",
    "clients/tensorflow/eager.py": "a Keras model's steps by name",
    "clients/keras/joining.py": "a Keras metric's methods, by name",
    "clients/keras/directions.py": "a Keras metric's own dict, and the direction that it keeps to itself",
    "clients/tensorflow/mirrored.py": "methods of keras.Model that a subclass overrides",
    "clients/tensorflow/split.py": "settings of a Keras optimizer, copied to another",
    "clients/tensorflow/state.py": "a Keras optimizer's own dict",
    "clients/keras/reported.py": "methods of a Keras model by name, and of its metrics",
    "data/values.py": "a population's or a source's own dict, and the path of a user's source",
    "data/sources/datasets.py": "PyTorch data sets",
    "data/sources/tables.py": "pandas' readers",
    "privacy/contexts.py": "TenSEAL's vectors, by name",
    "runtimes/ray/crew.py": "Ray's actors, a method by name, and the error that Ray wraps",
    "runtimes/flower/objects.py": "Flower's requests",
    "runtimes/flower/secured.py": "Flower's client, a method by name",
    "server/monitoring/logs.py": "log records of any library",
}


def is_foreign(name: str, line: int, call: str) -> bool:
    """Return whether the call asks a value of somebody else's, as the tables above list them."""
    asked = call.split(", ")[1].rstrip(")").strip("'") if ", " in call else ""
    return name in ADAPTING or any(asked in names.split() for names in FOREIGN.values())


if __name__ == "__main__":
    main()
