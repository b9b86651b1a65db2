"""HTML: elements whose texts are escaped by construction, and the frame of a page that needs nothing else."""

import base64
import hashlib
import html
from collections.abc import Sequence
from importlib import resources

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
VOID = {"img", "meta"}
CONTROLS = {code: "\ufffd" for code in (*range(32), 127) if chr(code) not in "\n\t\r"}


class Markup(str):
    """HTML already; whatever else is put into a tag is escaped."""


def tag(element: str, /, *children: str | None, **attributes: object) -> Markup:
    """An element; children that are not Markup are escaped, None left out; `cls` spells class, `a_b` a-b."""
    opened = element
    for key, value in attributes.items():
        name = "class" if key == "cls" else key.replace("_", "-")
        opened += "" if value is None else f' {name}="{_escape(str(value))}"'
    return Markup(f"<{opened}>" if element in VOID else f"<{opened}>{_join(children)}</{element}>")


def _join(children: Sequence[str | None]) -> str:
    return "".join(child if isinstance(child, Markup) else _escape(child) for child in children if child is not None)


def _escape(text: str) -> str:
    return html.escape(text.translate(CONTROLS))


def data_url(mime: str, payload: bytes) -> str:
    """Bytes as the `src` of an element."""
    return f"data:{mime};base64,{base64.b64encode(payload).decode()}"


def html_page(title: str, *body: str, script: str = "") -> Markup:
    """A page with the style of reports, which may load nothing, and run nothing but `script`."""
    css = resources.files("mmgpt.reports").joinpath("report.css").read_text(encoding="utf-8")
    policy = POLICY
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        body = (*body, tag("script", Markup(script)))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", title),
        tag("style", Markup(css)),
    )
    return tag("html", head, tag("body", *body), lang="en")
