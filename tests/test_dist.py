"""What is built: a wheel and an sdist with all that the package needs, which run outside the checkout."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import umbel

ROOT = Path(umbel.__file__).parent
# What the code reads beside modules.
READ = ("py.typed", "server/ui/static/index.html", "server/ui/static/style.css", "studies/report/report.css")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the sdist that was built from the tree, as a folder."""
    pytest.importorskip("build", reason="the package build is not installed")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (built,) = folder.glob("*.whl")
    assert [*folder.glob("*.tar.gz")]
    zipfile.ZipFile(built).extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.mark.slow
def test_the_wheel_has_every_module_and_whatever_they_read(wheel):
    modules = {path.relative_to(ROOT) for room in rooms() for path in (ROOT / room).glob("*.py")}
    built = {path.relative_to(wheel / "umbel") for path in (wheel / "umbel").rglob("*") if path.is_file()}
    assert modules <= built
    assert {Path(name) for name in READ} <= built
    assert not [path for path in built if path.parts[0] in ("tests", "benchmarks", "docs")]


def rooms():
    """The folders of the package."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    return [Path(*name.split(".")[1:]) for name in packages]


@pytest.mark.slow
def test_a_run_outside_the_checkout_is_the_wheels(wheel, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    code = (
        "import sys, umbel; print(umbel.__file__); from umbel.cli.main import execute\n"
        "run = execute(['run', '--set', 'rounds=1', '--quiet', '--workers', '1'])\n"
        "sys.exit(run or execute(['report', 'latest']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(wheel / "umbel" / "__init__.py"), "report.html"]
    assert "<svg" in (tmp_path / "report.html").read_text("utf-8")


def test_what_is_read_is_in_the_tree_and_declared():
    assert [name for name in READ if not (ROOT / name).is_file()] == []


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
