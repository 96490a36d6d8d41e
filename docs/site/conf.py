"""The site: `make docs`. Pages are the Markdown of the repository, where it is; the reference is read off the code."""

import importlib.metadata
import itertools
import re
from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).resolve().parents[2]

project = "Umbel"
author = "The authors of Umbel"
release = importlib.metadata.version("umbel")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/decisions/*.md",
    "docs/reference/*.rst",
    "experiments/notebooks/*.ipynb",
]
exclude_patterns = ["**/.venv/**", "out/**", "build/**", "dist/**", "**/.ipynb_checkpoints/**"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks are executed by the tests, and shown as they are saved
# No lexer for a language is no fault of a page, nor is a notebook's cell magic.
suppress_warnings = ["misc.highlighting_failure", "mystnb.unknown_mime_type"]

html_theme = "furo"
html_title = f"Umbel {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_favicon = str(ROOT / "server/ui/static/umbel.svg")
html_logo = html_favicon
html_extra_path = ["redirect"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#226b47", "color-brand-content": "#226b47"},
    "dark_css_variables": {"color-brand-primary": "#7fcea6", "color-brand-content": "#7fcea6"},
}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 90

PARAMETER = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*|Errors|Guarantees|Edge cases|Neighbours): (?=\S)")
SECTIONS = ("Parameters", "Returns", "Yields", "Raises", "Notes", "Examples")
SPECIAL = re.compile(r"([\\*|_])")


def as_rst(lines: list[str]) -> list[str]:
    """A docstring as it is written here, in reStructuredText: parameters as a list, code as code, all else as text."""
    sections = [place for place, line in enumerate(lines) if line in SECTIONS and underlines(lines, place)]
    first = sections[0] if sections else len(lines)
    found = text_of(lines[:first])
    for start, end in itertools.pairwise([*sections, len(lines)]):
        found += ["", f".. rubric:: {lines[start]}", "", *items_of(lines[start + 2 : end])]
    return found


def underlines(lines: list[str], place: int) -> bool:
    """Return whether the line after a place is a rule of dashes, as long as a heading of NumPy's has it."""
    return place + 1 < len(lines) and lines[place + 1] == "-" * len(lines[place])


def items_of(lines: list[str]) -> list[str]:
    """A section of NumPy's: names without indentation, and below each what is said of it."""
    found: list[str] = []
    for line in lines:
        if not line.strip():
            continue
        if line.startswith(" "):
            found[-1] += f" {escaped(line.strip())}"
        else:
            found += ["", f"- **{escaped(line.strip())}**:"]
    return [*found, ""]


def text_of(lines: list[str]) -> list[str]:
    """Text with code that is indented, and names with a colon after them."""
    found: list[str] = []
    in_item = in_code = False
    for line in lines:
        indented = line.startswith("    ")
        if not line.strip():
            found.append("")
            in_item = in_code = False
        elif indented and not in_item and (in_code or not found or not found[-1]):
            found += [] if in_code else ["::", ""]
            found.append(line)
            in_code = True
        elif (named := PARAMETER.match(line)) is not None and (in_item or ends(found)):
            found += ["", f"- **{escaped(named[1])}**: {escaped(line[named.end() :])}"]
            in_item = True
        else:
            found.append(("  " if in_item else "") + escaped(line.strip()))
    return found


def ends(lines: list[str]) -> bool:
    """Return whether a sentence ends with these lines: a parameter's name may follow it, and no other word."""
    return not lines or not lines[-1] or lines[-1].rstrip().endswith((".", ")", ":"))


def escaped(text: str) -> str:
    """Text in which nothing is markup but code between backticks."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick that nothing closes on its line
        return SPECIAL.sub(r"\\\1", text).replace("`", r"\`")
    code = (part if place % 2 else SPECIAL.sub(r"\\\1", part) for place, part in enumerate(parts))
    return "".join(f"``{part}``" if place % 2 and part else part for place, part in enumerate(code))


def rewrite(app, what, name, thing, options, lines):
    """Sphinx's autodoc-process-docstring."""
    lines[:] = [*as_rst(list(lines)), ""]


def simplify(app, what, name, thing, options, signature, returned):
    """Sphinx's autodoc-process-signature: a default that a factory makes is no Python, and would spoil the rest."""
    return (signature or "").replace("<factory>", "...") or None, returned


PARTS = {  # of llms.txt, by how pages' names begin, the first that fits; "Optional" is what a reader may leave out
    "Start": ("README", "docs/index"),
    "Notebooks": ("experiments/notebooks/",),
    "Reference": ("docs/reference/",),
    "Optional": ("docs/decisions/", "CHANGELOG", "CONTRIBUTING", "docs/benchmarks"),
    "Pages": ("docs/",),
}


def write_llms(app, error):
    """llms.txt: every page with its title, for whoever reads by program."""
    if error is not None or app.builder.format != "html":
        return
    pages = sorted(app.env.found_docs)
    titles = {page: app.env.titles[page].astext() for page in pages}
    first = "Federated learning for Keras: simulate a million clients on one machine, run the same on real devices."
    parts = ["# Umbel", "", f"> {first}", ""]
    for heading, begins in PARTS.items():
        own = [page for page in pages if page.startswith(begins)]
        pages = [page for page in pages if page not in own]
        parts += [f"## {heading}", "", *(f"- [{titles[page]}]({app.builder.get_target_uri(page)})" for page in own), ""]
    text = "\n".join(parts)
    (Path(app.outdir) / "llms.txt").write_text(text, encoding="utf-8")


def warn_of_lost_images(app, document):
    """A picture without words for whoever cannot see it is a fault of a page."""
    for image in document.findall(nodes.image):
        if not image.get("alt") and "notebooks" not in app.env.docname:
            raise ValueError(f"{app.env.docname}: {image['uri']} has no alternative text")


def setup(app):
    """Sphinx's."""
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("autodoc-process-signature", simplify)
    app.connect("doctree-read", warn_of_lost_images)
    app.connect("build-finished", write_llms)
