"""Virtual environments for the peers, under `.cache/bench`, from the pinned lists in `requirements/`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache" / "bench"


class InstallError(Exception):
    """An environment could not be made; the last line of the installer's complaint."""


def interpreter(name: str | None) -> Path:
    """Return the Python of environment `name`, made on first use and again when its list changes; None: this one.

    Packages are byte-compiled. Errors: InstallError.
    """
    if name is None:
        return Path(sys.executable)
    requirements = HERE / "requirements" / f"{name}.txt"
    folder, wanted = CACHE / name, requirements.read_text()
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    if not installed.exists() or installed.read_text() != wanted:
        print(f"making the environment of {name} …", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        for command in _commands(folder, python, requirements):
            _check(command)
        installed.write_text(wanted)
    return python


def versions(name: str, packages: tuple[str, ...]) -> dict[str, str]:
    """Return the pinned versions of some packages of an environment."""
    lines = (HERE / "requirements" / f"{name}.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    return {package: pins[package] for package in packages}


def _commands(folder: Path, python: Path, requirements: Path) -> list[list[str]]:
    """Return the commands that make it: uv's where it is installed, ten times faster; else venv's and pip's."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv:
        install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python)]
        return [[uv, "venv", "--quiet", "--python", sys.executable, str(folder)], [*install, "-r", str(requirements)]]
    install = [str(python), "-m", "pip", "install", "--quiet", "--compile"]
    return [[sys.executable, "-m", "venv", str(folder)], [*install, "-r", str(requirements)]]


def _check(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise InstallError(lines[-1].strip() if lines else f"{command[0]} exited with {done.returncode}")
