"""What csrc/bindings.cpp offers: addresses and sizes, checked by the caller."""

from typing import Any

openmp: bool
row_scalars: int
cuda: Any  # absent if built without CUDA
without_cuda: str  # absent if built with it

class Codes:
    """A dictionary, or a range of one. What it points into is attached, so that it lives as long."""

    tensors: Any

    def __init__(
        self,
        kind: int,
        num_features: int,
        num_codes: int,
        seed: int,
        log2_block: int,
        positions: int,
        packed: int,
        first_code: int,
        total_codes: int,
    ) -> None: ...

def targets() -> list[tuple[str, int]]: ...
def __getattr__(name: str) -> Any: ...  # the kernels, each (target, codes, ..., threads)
