"""A dictionary's codes in pieces: how they are cut for the Triton kernels' launches, and the bits of a piece."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from .codes import Codes
from .kernels import sign_bits as bits

SPAN = 1 << 22  # codes whose column sums are held at a time
_TABLE_WORDS = 1 << 22  # sign bits of codes that are held at a time, in 32-bit words
_SHORTEST_PIECE = 8192  # the largest Hadamard block
_BLOCK = 128


class Pieces:
    """The codes on a device, a piece at a time; what launches on that device need.

    Args:
        codes: the dictionary as kernel arguments.
        device: where the tables of bits are made.
    """

    def __init__(self, codes: Codes, device: torch.device) -> None:
        self.codes, self.device = codes, device
        self._table: tuple[int, int, Tensor] | None = None

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield (start, length) of the stretches of codes whose column sums are held together."""
        return cut(0, self.codes.num_codes, SPAN)

    def pieces(
        self, start: int = 0, length: int | None = None, size: int | None = None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (start, length, table) over the codes of a span (all by default), for one launch each."""
        if size is None:
            # Blocks' signs take one bit per code, and a dense dictionary brings its bits along.
            made = not (self.codes.transformed or self.codes.given)
            size = max(_SHORTEST_PIECE, min(SPAN, floor_power(_TABLE_WORDS // self.codes.words))) if made else SPAN
        for first, count in cut(start, self.codes.num_codes if length is None else length, size):
            yield first, count, self.table(first, count)

    def table(self, start: int, count: int) -> Tensor:
        """The sign bits of a piece: int32 (count, words), or (blocks, F / 32) for Kronecker products."""
        codes = self.codes
        if codes.given:
            return codes.packed[start:]
        if self._table is None or self._table[:2] != (start, count):
            self._table = (start, count, self._packed_bits(start, count))
        return self._table[2]

    def table_row(self, offset: int) -> int:
        """Where the codes from `offset` on begin in a piece's table; `offset` a multiple of the block size."""
        codes = self.codes
        return offset // codes.block * codes.words if codes.transformed else offset

    def _packed_bits(self, start: int, count: int) -> Tensor:
        codes = self.codes
        with self.on_device():
            if codes.transformed:
                words = triton.cdiv(count, codes.block) * codes.words
                table = self.empty(words, dtype=torch.int32)
                bits.pack_block_signs[(triton.cdiv(words, _BLOCK),)](
                    table, codes.coordinates, codes.first_index + start // codes.block, *codes.keys, words,
                    F=codes.block, BLOCK=_BLOCK,
                )  # fmt: skip
            else:
                table = self.empty(count, codes.words, dtype=torch.int32)
                bits.pack_codes[(triton.cdiv(count * codes.groups, _BLOCK),)](
                    table, codes.sylvester, codes.first_index, *codes.keys, start, count, codes.groups, F=codes.block,
                    KIND=codes.kind, BLOCK=_BLOCK,
                )  # fmt: skip
        return table

    def dense_codes(self, start: int, count: int) -> Tensor:
        """Codes as float32 `(count, f)`, coordinate by coordinate as the finishing kernels make them."""
        codes, out = self.codes, self.empty(count, self.codes.num_features)
        with self.on_device():
            bits.dense_codes[(count,)](
                out, codes.positions, codes.packed, codes.packed.shape[1], codes.first_index, *codes.keys, start, count,
                codes.num_features, F=codes.block, KIND=codes.kind, BLOCK=triton.next_power_of_2(codes.num_features),
            )  # fmt: skip
        return out

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def on_device(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()


def cut(start: int, length: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of pieces of at most `size`."""
    for first in range(start, start + length, size):
        yield first, min(size, start + length - first)


def floor_power(x: int) -> int:
    return 1 << max(0, x.bit_length() - 1)
