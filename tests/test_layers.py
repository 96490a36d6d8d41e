"""The layout is the architecture: imports go downwards only, and each third-party package stays behind its wall."""

import ast
import functools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import umbel

ROOT = Path(umbel.__file__).parent
LAYERS = {
    "core": set(),
    "strategies": {"core"},
    "privacy": {"core"},
    "data": {"core"},
    "clients": {"core"},
    "server": {"core"},
    "runtimes": {"core", "clients", "server"},
    "studies": {"core", "data", "clients", "privacy", "server", "runtimes"},
    "deploy": {"core", "clients", "privacy", "server", "runtimes"},
    "cli": {"core", "clients", "privacy", "server", "runtimes", "studies", "deploy"},
}
# Files that open what a key file holds. Everything else in their rooms is handed a vault, a signer or an identity.
DOORS = {
    "server/vault.py": "umbel.privacy.keys",
    "runtimes/flower/identity.py": "umbel.privacy.keys",
}
# Who may import a package; everything else may not. A name stands for a folder, a file, or a file in a folder.
CLIENTS = {f"clients/{name}" for name in ("tensorflow", "jax", "keras", "optimizers.py")}
KERAS = CLIENTS | {"experiments", "benchmarks"}
WALLS = {
    "flwr": {"runtimes/flower", "benchmarks"},
    "ray": {"runtimes/ray", "benchmarks"},
    "tensorflow": {"clients/tensorflow", "clients/optimizers.py", "experiments", "benchmarks"},
    "jax": {"clients/jax", "experiments", "benchmarks"},
    "keras": KERAS,
    "sqlalchemy": {"server/store"},
    "alembic": {"server/store"},
    "dp_accounting": {"privacy/accounting.py"},
    "tenseal": {"privacy/contexts.py"},
    "typer": {"cli"},
    "rich": {"cli/console.py", "benchmarks"},
    "starlette": {"server/ui", "runtimes/flower"},
    "uvicorn": {"server/ui", "runtimes/flower"},
    "plotly": {"server/ui"},
    "prometheus_client": {"server/monitoring/metrics.py"},
    "tensorboard": {"server/tracking/tensorboard.py", "server/history.py"},
    "mlflow": {"server/tracking/mlflow.py"},
    "wandb": {"server/tracking/wandb.py"},
    "optuna": {"studies/sweep.py"},
    "datasets": {"data/sources"},
    "safetensors": {"studies/export.py"},
}
LAZY = (
    "tensorflow",
    "jax",
    "keras",
    "flwr",
    "ray",
    "sqlalchemy",
    "alembic",
    "pandas",
    "matplotlib",
    "sklearn",
    "typer",
    "rich",
    "dp_accounting",
    "starlette",
    "uvicorn",
    "plotly",
    "tensorboard",
    "mlflow",
    "wandb",
    "optuna",
    "datasets",
)
ROOMS = (*LAYERS, "experiments", "benchmarks")
MODULES = [
    *sorted(path.relative_to(ROOT) for folder in ROOMS for path in (ROOT / folder).rglob("*.py")),
    Path("__init__.py"),
    Path("__main__.py"),
]


@functools.cache
def imports(module: Path) -> tuple[str, ...]:
    """Return every module that a file imports, anywhere in it; Umbel's own as "umbel.…"."""
    return tuple(imported(module))


def imported(module: Path) -> Iterator[str]:
    """Same as `imports`, one by one."""
    package = ["umbel", *module.parent.parts]
    for node in ast.walk(ast.parse((ROOT / module).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from .. import server` imports a layer by its name alone.
            yield from ([name] if node.module else [f"{name}.{alias.name}" for alias in node.names])


def is_in(module: Path, places: set[str]) -> bool:
    return any(module.as_posix() == place or module.is_relative_to(place) for place in places)


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] in LAYERS], ids=str)
def test_arrows_go_downwards(module):
    layer = module.parts[0]
    door = DOORS.get(module.as_posix(), "no door")
    names = [name for name in imports(module) if name.startswith("umbel.") and not name.startswith(door)]
    reached = {name.split(".")[1] for name in names}
    assert reached <= LAYERS[layer] | {layer}
    assert "umbel" not in imports(module)  # the public face is for users; inside, imports are relative


def test_every_folder_of_modules_is_a_room_and_a_package_that_is_installed():
    outside = ("tests", "benchmarks", "build", "out")
    folders = [one for one in ROOT.iterdir() if one.is_dir() and one.name not in outside and one.name[0] != "."]
    rooms = {path.parent.relative_to(ROOT) for folder in folders for path in folder.rglob("__init__.py")}
    assert {room.parts[0] for room in rooms} == {*LAYERS, "experiments"}
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(installed) == sorted(["umbel", *(".".join(["umbel", *room.parts]) for room in rooms)])
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "__main__.py"]


@pytest.mark.parametrize("package", WALLS)
def test_third_party_packages_stay_behind_their_walls(package):
    users = {module for module in MODULES if package in {name.split(".")[0] for name in imports(module)}}
    assert not [str(module) for module in users if not is_in(module, WALLS[package])]


def test_experiments_import_keras_only_inside_their_models():
    for module in (m for m in MODULES if m.parts[0] == "experiments"):
        tree = ast.parse((ROOT / module).read_text("utf-8"))
        at_import = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not [node for node in at_import if "keras" in ast.unparse(node) or "tensorflow" in ast.unparse(node)]


def test_importing_umbel_and_its_experiments_imports_nothing_heavy():
    code = (
        "import sys, umbel\n"
        "from umbel.core.reading.loading import experiment_names, load_experiments\n"
        "for name in experiment_names(): load_experiments(name)\n"
        f"print(*[name for name in {LAZY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_parser_sees_every_form_of_import(monkeypatch, tmp_path):
    source = "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\ndef h():\n    from .. import i\n"
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "one.py").write_text(source)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    found = set(imports(Path("server/one.py")))
    assert found == {"a.b", "c", "umbel.server.e", "umbel.f", "umbel.i"}
