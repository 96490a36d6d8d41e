"""The notebooks run from top to bottom, and show what they say."""

import re
from pathlib import Path

import nbclient
import nbformat

import umbel
from optional import needs_tenseal

FOLDER = Path(umbel.__file__).parent / "experiments" / "notebooks"
MODES = ("arithmetic", "protocol")


def executed(name, folder):
    """The notebook's pictures, and all of its text."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    texts = [output.data["text/plain"] if "data" in output else output.get("text", "") for output in outputs]
    return pictures, "".join(texts)


def test_the_quickstart_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    pictures, text = executed("quickstart", tmp_path)
    assert len(pictures) == 2
    assert "test_accuracy" in text
    assert "'skewed': None" not in text  # both federations reach 90 %


@needs_tenseal
def test_the_walk_through_privacy_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    pictures, text = executed("privacy", tmp_path)
    assert len(pictures) == 2
    arithmetic, protocol = (re.search(rf"secure sum, {mode} .*?([0-9a-f]{{8}}) ", text)[1] for mode in MODES)
    assert arithmetic == protocol
    assert "the privacy budget is spent: 25 rounds" in text
    assert "exceeds the claim" not in text
    assert re.search(r"inversion .*1\.00", text)


def test_no_notebook_is_left_out():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {"quickstart", "privacy"}
