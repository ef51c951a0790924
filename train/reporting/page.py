"""The parts of a page of HTML that refers to no other file: head, tables, pictures."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em; color: #222 }
div.table { overflow-x: auto } table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .25em 1em .25em 0; text-align: left; vertical-align: top; overflow-wrap: break-word }
tr { border-bottom: 1px solid #ddd } td small { display: block; color: #555; min-width: 11em; max-width: 22em }
figure { display: inline-block; width: 530px; max-width: 100%; margin: 0 1em 1.5em 0; vertical-align: top }
figure.wide { width: 100% } img { max-width: 100% } figcaption { font-size: 13px; color: #555 }
details { margin: 1em 0 } .bad { color: #b2182b } .good { color: #276419 } .unknown { color: #777 }
"""


class Markup(str):
    """Text that is HTML already; every other string is escaped when it comes to a page."""


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its PNG file and its caption; a photo keeps all its colours."""

    name: str
    figure: Figure
    caption: str
    wide: bool = False
    photo: bool = False

    @cached_property
    def png(self) -> bytes:
        """The figure as a PNG file."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=110)
        if self.photo:
            return buffer.getvalue()
        # A palette of the commonest colours, a third of the bytes. What is drawn has few colours, so that only mixtures
        # at the edges of letters and lines move to the nearest of them. (Pillow's own search would move white, too.)
        pixels = np.asarray(Image.open(buffer).convert("RGB"))
        colours, place, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
        palette = colours[np.argsort(-counts, kind="stable")[:256]]
        distance = np.square(colours[:, None].astype(np.int32) - palette[None]).sum(2)
        image = Image.fromarray(distance.argmin(1).astype(np.uint8)[place].reshape(pixels.shape[:2]))
        image.putpalette(palette.tobytes())
        buffer = io.BytesIO()
        image.save(buffer, format="png", optimize=True)
        return buffer.getvalue()


def page(title: str, body: Sequence[str]) -> str:
    """A whole document; `body` is HTML, `title` is not."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def picture(drawn: Picture) -> str:
    """A figure with its caption, the image inside the page."""
    data, caption = base64.b64encode(drawn.png).decode(), escape(drawn.caption)
    wide = ' class="wide"' if drawn.wide else ""
    return (
        f'<figure{wide}><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; each row has as many cells as the head."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return (
        f'<div class="table"><table><tr>{top}</tr>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"
    )


def items(texts: Sequence[str]) -> str:
    """A list with a dot for each text."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def escape(text: str) -> Markup:
    """The text as HTML; markup stays as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(text))
