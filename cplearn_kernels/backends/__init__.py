"""The backends: each a folder that offers what `interface.py` lists; `select.py` chooses among them."""

from .select import BackendInfo, Backends, backends, select

__all__ = ["BackendInfo", "Backends", "backends", "select"]
