"""docs/extending.md is one program, which runs as it is printed."""

import re
from pathlib import Path

import umbel

PAGE = Path(umbel.__file__).parent / "docs" / "extending.md"


def test_the_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.S | re.M)
    assert len(blocks) == 8
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {"__name__": "extending"})
