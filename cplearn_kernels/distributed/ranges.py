"""Which codes a rank works on: contiguous ranges of a dictionary, of whole blocks, as equal as blocks allow."""

from __future__ import annotations

import torch

from ..dictionary import Device, Dictionary


class CodeRange(Dictionary):
    """Codes `first_code` … `first_code + num_codes - 1` of a dictionary, numbered from 0: what one rank works on.

    Args:
        whole: the dictionary.
        start, stop: 0 <= start < stop <= whole.num_codes, start a multiple of whole.block_size.

    Raises:
        ValueError: not such a range.
    """

    def __init__(self, whole: Dictionary, start: int, stop: int):
        if not 0 <= start < stop <= whole.num_codes or start % whole.block_size != 0:
            raise ValueError(
                f"expected 0 <= start < stop <= {whole.num_codes} and start a multiple of {whole.block_size}, "
                f"got start={start}, stop={stop}"
            )
        super().__init__(whole.num_features, stop - start, whole.seed)
        self.kind, self.first_code, self._whole = whole.kind, start, whole
        self.weight = None if whole.weight is None else whole.weight[:, start:stop]
        self.signs = None if whole.signs is None else whole.signs[start:stop]

    @property
    def total_codes(self) -> int:
        return self._whole.num_codes

    @property
    def block_size(self) -> int:
        return self._whole.block_size

    def identity(self) -> bytes:
        raise NotImplementedError("a range of codes has no identity of its own: ask the whole dictionary")

    def _columns(self, start: int, stop: int, dtype: torch.dtype, device: Device) -> torch.Tensor:
        return self._whole._columns(self.first_code + start, self.first_code + stop, dtype, device)

    def __repr__(self) -> str:
        return f"codes {self.first_code} to {self.first_code + self.num_codes - 1} of {self._whole!r}"


def code_ranges(dictionary: Dictionary, world: int) -> list[CodeRange | None]:
    """The codes cut into contiguous ranges of whole blocks, one per rank, as equal as blocks allow; None: no codes."""
    return [code_range(dictionary, rank, world) for rank in range(world)]


def code_range(dictionary: Dictionary, rank: int, world: int) -> CodeRange | None:
    """The range of one rank, see `code_ranges`."""
    blocks = -(-dictionary.num_codes // dictionary.block_size)
    start, stop = (min(r * blocks // world * dictionary.block_size, dictionary.num_codes) for r in (rank, rank + 1))
    return CodeRange(dictionary, start, stop) if start < stop else None


def largest_range(dictionary: Dictionary, world: int) -> CodeRange:
    """The most that a rank works on: what the backend of all ranks has to serve."""
    last = code_range(dictionary, world - 1, world)
    assert last is not None, "the last rank has the blocks that are left over"
    return last
