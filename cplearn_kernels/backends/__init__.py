"""The backends: each a folder that offers what `interface.py` lists; `select.py` chooses among them."""

from .select import NAMES, BackendInfo, Backends, backends, check_name, select

__all__ = ["NAMES", "BackendInfo", "Backends", "backends", "check_name", "select"]
