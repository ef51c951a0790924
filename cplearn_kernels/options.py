"""The options that are strings, as types and as tuples, and the dtypes that go in and come out.

The place of an option in its tuple is its number in the compiled kernels (csrc/codes.h, csrc/formulas.h) and in what
ranks compare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Kind = Literal["hadamard", "rademacher", "dense"]
Prior = Literal["reverse_kl", "cross_entropy"]
Embedding = Literal["l2", "tanh"]
# How the rows of a batch lie on the ranks of a process group: each has its own, or all have the same ones.
Rows = Literal["sharded", "replicated"]
# After the oracle the fastest first: the order in which a call without a named backend tries them.
BackendName = Literal["reference", "cpu", "cuda", "triton", "torch"]
Group: TypeAlias = "ProcessGroup | Literal['world'] | None"

KINDS: tuple[Kind, ...] = get_args(Kind)
PRIORS: tuple[Prior, ...] = get_args(Prior)
EMBEDDINGS: tuple[Embedding, ...] = get_args(Embedding)
ROWS: tuple[Rows, ...] = get_args(Rows)
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def result_dtype(h: torch.Tensor) -> torch.dtype:
    """The dtype of a result: float64 for float64 embeddings, else float32."""
    return torch.float64 if h.dtype == torch.float64 else torch.float32
