"""Print what pyproject.toml in this folder requires, with the extras named: python requirements.py postgres he."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *(one for extra in sys.argv[1:] for one in extras[extra]), sep="\n")
