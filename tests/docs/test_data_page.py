"""The page about data: its programs run, and print what stands beside them."""

import re
from pathlib import Path

import pytest

import umbel

PAGE = Path(umbel.__file__).parent / "docs" / "data.md"


def test_the_programs_print_what_the_page_says(monkeypatch, tmp_path, capsys):
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        exec(block, names)
        printed = capsys.readouterr().out.splitlines()
        expected = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert not expected or printed == expected
