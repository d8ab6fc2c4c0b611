"""Inline SVG by hand. Text and attributes are escaped here, so no caller has to think of it."""

from __future__ import annotations

from markupsafe import Markup, escape


def tag(name: str, /, *content: str | Markup, **attributes: str | float | None) -> Markup:
    """An element. `class_` and the like lose the underscore at the end, others become dashes; None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(escape(part) for part in content)
    return Markup(f"<{name}{written}>{inside}</{name}>")


def picture(width: float, height: float, name: str, *content: Markup, class_: str = "chart") -> Markup:
    """A whole drawing with its name for those who cannot see it. It scales with its place on the page."""
    box = f"0 0 {_short(width)} {_short(height)}"
    return tag("svg", *content, viewBox=box, role="img", class_=class_, aria_label=name)


def label(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Markup:
    """A line of text; `anchor` is start, middle or end."""
    return tag("text", words, x=x, y=y, class_=class_ or None, text_anchor=anchor if anchor != "start" else None)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def hover(words: str) -> Markup:
    """What a browser shows when the pointer rests on the element that this is put into."""
    return tag("title", words)


def _short(value: str | float) -> str:
    """Coordinates to a tenth of a pixel: charts of long runs stay small."""
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
