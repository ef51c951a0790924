"""`python -m train.pictures RUN OUT`: the pictures of a run's report as PNG files, for a paper or a README."""

from __future__ import annotations

import argparse
import base64
import html
import re
import sys
from pathlib import Path

from train import report

_IMAGE = re.compile(r'<img alt="([^"]*)" src="data:image/png;base64,([A-Za-z0-9+/=]+)"')


def save(run: Path, out: Path) -> list[Path]:
    """Write every picture of `run`/report.html to the folder `out`, named after the start of its caption.

    Returns:
        The files, in the report's order.

    Raises:
        FileNotFoundError: `run` holds no report.
    """
    page = (run / report.FILE).read_text(encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for caption, data in _IMAGE.findall(page):
        name = "_".join(re.findall(r"\w+", re.split(r"[:.]", html.unescape(caption))[0].lower()))
        files.append(out / f"{name}.png")
        files[-1].write_bytes(base64.b64decode(data))
    return files


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.pictures", description=__doc__)
    parser.add_argument("run", type=Path, help="output directory of a finished run, which holds report.html")
    parser.add_argument("out", type=Path, help="folder for the PNG files; made if missing")
    options = parser.parse_args(arguments)
    try:
        files = save(options.run, options.out)
    except FileNotFoundError:
        print(f"train.pictures: expected {report.FILE} in {options.run}, found none", file=sys.stderr)
        return 2
    print("\n".join(str(file) for file in files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
