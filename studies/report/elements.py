"""Elements of the report, made from values. Text is escaped, whatever it holds."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


class Html(str):
    """Text that is HTML already."""


def h(name: str, *children: object, **attributes: object) -> Html:
    """Write an element. What is not Html is escaped; None is left out."""
    words = "".join(f' {key.rstrip("_")}="{html.escape(str(value))}"' for key, value in attributes.items())
    return Html(f"<{name}{words}>{_joined(children)}</{name}>")


def section(title: str, *content: object) -> Html:
    """Write a part of the report under its title."""
    return h("section", h("h2", title), content, class_="section")


def card(title: str, svg: str, note: str = "") -> Html:
    """Write a chart with its title, and a note of what cannot be drawn."""
    return h(
        "figure", h("figcaption", title), Html(svg), h("p", note, class_="note") if note else None, class_="card chart"
    )


def table(titles: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "") -> Html:
    """Write a table whose first column names its rows."""
    head = h("thead", h("tr", [h("th", title, scope="col") for title in titles]))
    body = [h("tr", h("th", row[0], scope="row"), [h("td", cell) for cell in row[1:]]) for row in rows]
    return h("div", h("table", head, h("tbody", body), **({"class_": kind} if kind else {})), class_="scroll")


def state(name: str) -> Html:
    """Write how a run ended."""
    return h("span", h("i"), name, class_=f"state {name}")


def quiet(text: str) -> Html:
    """Write a sentence in the place of what cannot be shown."""
    return h("p", text, class_="quiet")


def figure(value: Any) -> str:
    """Write a number, or a dash where there is none."""
    if value is None:
        return "–"
    number = float(value)
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "∞" if number > 0 else "−∞"
    return f"{number:,.0f}" if number.is_integer() and abs(number) < 1e9 else f"{number:.4g}"


def share(value: Any) -> str:
    """Write an accuracy, to four places."""
    return figure(value) if value is None or not math.isfinite(float(value)) else f"{float(value):.4f}"


def figures(values: Mapping[str, Any]) -> str:
    """Write numbers by name, in a line."""
    return ", ".join(f"{name.replace('_', ' ')} {figure(value)}" for name, value in values.items())


def duration(value: Any) -> str:
    """Write seconds as people say them."""
    seconds = float(value or 0)
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size(count: int | None) -> str:
    """Write bytes as people say them."""
    if count is None:
        return "–"
    found = next(((unit, name) for unit, name in UNITS if count >= unit), None)
    return f"{count} B" if found is None else f"{count / found[0]:.3g} {found[1]}"


def _joined(children: Iterable[object]) -> str:
    found = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            found.append(str(child))
        elif isinstance(child, (list, tuple)):
            found.append(_joined(child))
        else:
            found.append(html.escape(str(child)))
    return "".join(found)
