"""A report's page: its pictures as PNG files, and the template that puts them into one file of HTML."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image


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

    @property
    def base64(self) -> str:
        """The same as text."""
        return base64.b64encode(self.png).decode()


def render(**content: Any) -> str:
    """The page `report.html.jinja`, filled with this content; all of its text is escaped."""
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=folder, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html.jinja").render(content)
