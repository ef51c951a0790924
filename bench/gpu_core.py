"""Gives the checkout the compiled core of the installed package, where it has none or an older one.

`python -m bench.gpu` and the tests run in the checkout, whose `cplearn_kernels` hides the one that `pip install .` put
elsewhere; only an editable install leaves the compiled core beside the sources. Without it there is no backend "cuda".
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

from bench.gpu_process import ROOT

PACKAGE = "cplearn_kernels"


def adopt(root: Path = ROOT, path: list[str] | None = None) -> str | None:
    """Copies the core; to be called before anything imports the package.

    Args:
        root: the checkout.
        path: where packages are looked for; None: `sys.path`.

    Returns:
        A sentence on what was done, None where the checkout's core is the newest or there is none to be had.
    """
    name = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    target = root / PACKAGE / name
    for entry in sys.path if path is None else path:
        source = Path(entry or ".").resolve() / PACKAGE / name
        if not source.is_file() or source == target.resolve():
            continue
        # The copy keeps its time, so that the next install is seen to be newer, and a build in place too.
        if target.exists() and source.stat().st_mtime <= target.stat().st_mtime:
            return None
        old = "an older" if target.exists() else "no"
        shutil.copy2(source, target)
        return f"the checkout had {old} compiled core: that of the installed package was copied from {source.parent}"
    return None
