"""The notebooks run from top to bottom, and show what they say."""

from pathlib import Path

import nbclient
import nbformat
import pytest

import umbel

FOLDER = Path(umbel.__file__).parent / "experiments" / "notebooks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    texts = "".join(output.data["text/plain"] for output in outputs if "data" in output)
    assert len(pictures) == 2
    assert "test_accuracy" in texts
    assert "'skewed': None" not in texts  # both federations reach 90 %
