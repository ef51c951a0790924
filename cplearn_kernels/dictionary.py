"""The dictionaries: fixed matrices W of shape (num_features, num_codes), made from a seed or given by the caller."""

from __future__ import annotations

import functools
import hashlib
import struct
from typing import Any, TypeAlias

import torch

from . import bits, philox
from .options import KINDS, Kind

Device: TypeAlias = torch.device | str | int | None

# Bit-layout version, place of the kind in KINDS from 1 on, num_features, num_codes, seed.
_IDENTITY_FORMAT = "<BBQQQ"


class Dictionary:
    """What all dictionaries share: sizes, slices as dense matrices, and an identity that checkpoints can compare.

    Attributes:
        kind: "hadamard", "rademacher" or "dense".
        num_features: f, the length of a code.
        num_codes: c, the number of codes.
        seed: the 64-bit seed (0 for a dense dictionary).
        weight: the `(f, c)` matrix of a dense dictionary, else None.
        signs: the matrix of a dense dictionary whose entries are all ±1, packed to bits, else None: int32 of shape
            `(c, ceil(f / 32))`, bit k mod 32 of word k div 32 set where coordinate k is -1.
        first_code, total_codes: 0 and c; for a range of codes where it begins, and c of the whole dictionary.
    """

    kind: Kind
    weight: torch.Tensor | None = None
    signs: torch.Tensor | None = None
    first_code: int = 0

    def __init__(self, num_features: int, num_codes: int, seed: int = 0):
        self.num_features = _checked_int("num_features", num_features, 1, 2**31 - 1)
        self.num_codes = _checked_int("num_codes", num_codes, 1, 2**62)
        self.seed = _checked_int("seed", seed, 0, 2**64 - 1)

    @property
    def total_codes(self) -> int:
        return self.num_codes

    @property
    def block_size(self) -> int:
        """Consecutive codes that are made together; a range of codes begins at a multiple of it."""
        return 1

    def to_dense(
        self, start: int = 0, stop: int | None = None, dtype: torch.dtype = torch.float32, device: Device = None
    ) -> torch.Tensor:
        """Columns `start` … `stop - 1` of W as a matrix of shape `(num_features, stop - start)`.

        Args:
            start, stop: 0 <= start <= stop <= num_codes; `stop=None` means num_codes.
            dtype: a floating-point dtype; ±1 is exact in all of them.
            device: where the result lives (default: the CPU; a dense dictionary's own device).

        Raises:
            TypeError: start or stop is not an integer.
            ValueError: the slice does not lie inside the dictionary.
        """
        stop = self.num_codes if stop is None else stop
        for name, value in (("start", start), ("stop", stop)):
            _check_integer(name, value)
        if not 0 <= start <= stop <= self.num_codes:
            raise ValueError(f"expected 0 <= start <= stop <= {self.num_codes}, got start={start}, stop={stop}")
        return self._columns(start, stop, dtype, device)

    def to(self, device: Device) -> Dictionary:
        """This dictionary, ready for `device`. Only a dense dictionary holds anything that has to move."""
        return self

    def identity(self) -> bytes:
        """Bytes that two dictionaries share exactly when their codes are the same."""
        sizes = self.num_features, self.num_codes
        return struct.pack(_IDENTITY_FORMAT, philox.BIT_LAYOUT_VERSION, KINDS.index(self.kind) + 1, *sizes, self.seed)

    def _columns(self, start: int, stop: int, dtype: torch.dtype, device: Device) -> torch.Tensor:
        raise NotImplementedError

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(num_features={self.num_features}, num_codes={self.num_codes}, seed={self.seed})"


class HadamardDictionary(Dictionary):
    """Random-sign Hadamard blocks: every code marginally a uniform ±1 vector, all logits by fast transforms.

    With F the power of two at or above f, block b holds the F codes
    `w_{bF+r}[k] = d_b[k] * (-1)^popcount(position(k) & r)`, with `d_b` a random sign vector and `position` the
    identity when f = F, else a seeded random injection of the f coordinates into F places. c need not be a multiple
    of F: the last block is cut. `W W^T = c I` holds exactly when F divides c. All logits of one row cost c log2 F
    additions, and nothing of size c is ever stored.

    Args:
        num_features: f >= 1.
        num_codes: c >= 1.
        seed: in [0, 2^64).

    Raises:
        TypeError, ValueError: an argument that is not an integer, or lies outside its range.

    Example:
        >>> d = HadamardDictionary(num_features=2048, num_codes=1 << 20, seed=0)
        >>> d.to_dense(0, 4).shape
        torch.Size([2048, 4])
    """

    kind = "hadamard"

    @property
    def block_size(self) -> int:
        """F = 2^ceil(log2 f), the number of codes in a block."""
        return 1 << (self.num_features - 1).bit_length()

    def positions(self) -> torch.Tensor:
        """int64 CPU tensor `(f,)`: the place of each coordinate inside a block."""
        return philox.injection(self.seed, self.num_features, self.block_size)

    def _columns(self, start: int, stop: int, dtype: torch.dtype, device: Device) -> torch.Tensor:
        block_size = self.block_size
        first_block, last_block = start // block_size, -(-stop // block_size)
        if first_block >= last_block:
            return torch.empty(self.num_features, 0, dtype=dtype, device=device)
        stream = philox.STREAM_HADAMARD_SIGNS
        negative = philox.sign_bits(self.seed, stream, first_block, last_block, self.num_features, device)
        signs = (1 - 2 * negative).T.to(dtype)  # (f, blocks)
        rows = _sylvester_rows(self.seed, self.num_features, block_size, dtype, torch.device(device or "cpu"))
        if last_block - first_block == 1:
            offset = first_block * block_size
            return signs * rows[:, start - offset : stop - offset]
        columns = (signs[:, :, None] * rows[:, None, :]).flatten(1)
        return columns[:, start - first_block * block_size : stop - first_block * block_size]


class RademacherDictionary(Dictionary):
    """Independent uniform ±1 entries, as in the paper; code j is made from (seed, j) alone.

    Args:
        num_features: f >= 1.
        num_codes: c >= 1.
        seed: in [0, 2^64).

    Raises:
        TypeError, ValueError: an argument that is not an integer, or lies outside its range.

    Example:
        >>> RademacherDictionary(num_features=128, num_codes=500_000, seed=1).to_dense(0, 8).abs().unique()
        tensor([1.])
    """

    kind = "rademacher"

    def _columns(self, start: int, stop: int, dtype: torch.dtype, device: Device) -> torch.Tensor:
        negative = philox.sign_bits(self.seed, philox.STREAM_RADEMACHER, start, stop, self.num_features, device)
        return (1 - 2 * negative).T.to(dtype)


class DenseDictionary(Dictionary):
    """The caller's own matrix, kept fixed: no gradient flows into it.

    Args:
        weight: floating-point tensor of shape `(num_features, num_codes)`, all entries finite. It is detached, not
            copied. If all entries are ±1 a copy packed to bits is made (1/32 of float32), which the kernels use: the
            matrix must not be changed afterwards.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not a non-empty matrix, or an entry is NaN or infinite.

    Example:
        >>> DenseDictionary(torch.eye(16)).num_codes
        16
    """

    kind = "dense"
    weight: torch.Tensor

    def __init__(self, weight: torch.Tensor):
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            got = weight.dtype if isinstance(weight, torch.Tensor) else type(weight).__name__
            raise TypeError(f"weight: expected a floating-point tensor (num_features, num_codes), got {got}")
        if weight.dim() != 2 or weight.numel() == 0:
            raise ValueError(f"weight: expected a non-empty (num_features, num_codes), got {tuple(weight.shape)}")
        if not bool(torch.isfinite(weight).all()):
            raise ValueError("weight: expected finite entries, got NaN or infinity")
        super().__init__(weight.shape[0], weight.shape[1])
        self.weight = weight.detach()
        if bool((self.weight.abs() == 1).all()):
            self.signs = _packed_signs(self.weight)

    def to(self, device: Device) -> DenseDictionary:
        signs = None if self.signs is None else self.signs.to(device)
        moved = object.__new__(DenseDictionary)
        moved.__dict__.update(self.__dict__, weight=self.weight.to(device), signs=signs)
        return moved

    def identity(self) -> bytes:
        """As for the others, followed by the SHA-256 of the matrix as row-major little-endian float32."""
        matrix = self.weight.to(device="cpu", dtype=torch.float32).contiguous().numpy()
        return super().identity() + hashlib.sha256(matrix.astype("<f4", copy=False).data).digest()

    def _columns(self, start: int, stop: int, dtype: torch.dtype, device: Device) -> torch.Tensor:
        return self.weight[:, start:stop].to(dtype=dtype, device=device)

    def __repr__(self) -> str:
        return f"DenseDictionary(num_features={self.num_features}, num_codes={self.num_codes})"


def describe_identity(identity: bytes) -> str:
    """A readable form of `Dictionary.identity()`, for error messages."""
    size = struct.calcsize(_IDENTITY_FORMAT)
    if len(identity) < size:
        return f"{len(identity)} bytes that are no dictionary's identity"
    version, number, num_features, num_codes, seed = struct.unpack(_IDENTITY_FORMAT, identity[:size])
    kind = KINDS[number - 1] if 1 <= number <= len(KINDS) else f"unknown kind {number}"
    text = f"{kind} dictionary, num_features={num_features}, num_codes={num_codes}, seed={seed}"
    digest = identity[size:].hex()
    return f"{text}, bit layout {version}" + (f", SHA-256 {digest[:12]}…" if digest else "")


def rebuild(
    kind: str, num_features: int, num_codes: int, seed: int, weight: torch.Tensor | None, signs: torch.Tensor | None
) -> Dictionary:
    """The dictionary that the plain values of an operator call stand for; checks were made when it was first built.

    The seed may be the signed integer of the same 64 bits.
    """
    if kind == "dense":
        assert weight is not None
        dense = object.__new__(DenseDictionary)
        Dictionary.__init__(dense, num_features, num_codes)
        dense.weight, dense.signs = weight, signs
        return dense
    cls = {"hadamard": HadamardDictionary, "rademacher": RademacherDictionary}[kind]
    return cls(num_features, num_codes, seed % (1 << 64))


def _packed_signs(weight: torch.Tensor) -> torch.Tensor:
    """`Dictionary.signs` of a matrix of ±1, a few codes at a time."""
    num_features, num_codes = weight.shape
    words = -(-num_features // 32)
    packed = torch.empty(num_codes, words, dtype=torch.int32, device=weight.device)
    step = max(1, (1 << 20) // num_features)
    for start in range(0, num_codes, step):
        packed[start : start + step] = bits.packed((weight[:, start : start + step] < 0).T, words)
    return packed


@functools.lru_cache(maxsize=4)
def _sylvester_rows(
    seed: int, num_features: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """`(f, F)` matrix of (-1)^popcount(position(k) & r): one block without its signs."""
    places = philox.injection(seed, num_features, block_size).to(device)
    overlap = places[:, None] & torch.arange(block_size, device=device)[None, :]
    return (1 - 2 * bits.parity(overlap)).to(dtype)


def _checked_int(name: str, value: Any, low: int, high: int) -> int:
    _check_integer(name, value)
    number = int(value.__index__())
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {low} <= {name} <= {high}, got {number}")
    return number


def _check_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
