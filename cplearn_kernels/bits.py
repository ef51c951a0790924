"""Bits of codes and numbers: parities, 32 of them in a word, and unsigned integers as signed ones of the same bits."""

from __future__ import annotations

import torch


def parity(numbers: torch.Tensor) -> torch.Tensor:
    """0 or 1: whether the number of bits set in each integer below 2^32 is odd. Overwrites `numbers`."""
    for shift in (16, 8, 4, 2, 1):
        numbers ^= numbers >> shift
    return numbers.bitwise_and_(1)


def packed(bits: torch.Tensor, words: int) -> torch.Tensor:
    """int32 `(n, words)` of `(n, k)` bits: bit k is bit k mod 32 of word k div 32; the rest is 0."""
    bits = torch.nn.functional.pad(bits, (0, 32 * words - bits.shape[1])).unflatten(1, (words, 32))
    word = (bits.long() << torch.arange(32, device=bits.device)).sum(2)
    return torch.where(word < 1 << 31, word, word - (1 << 32)).to(torch.int32)


def signed(number: int, bits: int) -> int:
    """The signed integer with the same `bits` bits as an unsigned one."""
    return number - (1 << bits) if number >= 1 << (bits - 1) else number
