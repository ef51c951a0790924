"""Tests of dictionary.py as objects: arguments and their errors, dtypes, devices, copies, identity, text."""

import copy
import pickle

import numpy as np
import pytest
import torch
from cases import DICTIONARY_KINDS, make_dictionary, one_thread  # noqa: F401
from refusals import refused

import cplearn_kernels as cpk
from cplearn_kernels.dictionary import describe_identity, rebuild

RANDOM = [cpk.HadamardDictionary, cpk.RademacherDictionary]


@pytest.mark.parametrize("cls", RANDOM)
@pytest.mark.parametrize("arguments, error, given, expected", [
    ((0, 4), ValueError, "got 0", "1 <= num_features"),
    ((-3, 4), ValueError, "got -3", "1 <= num_features"),
    ((2**31, 4), ValueError, "got 2147483648", "num_features <= 2147483647"),
    ((4, 0), ValueError, "got 0", "1 <= num_codes"),
    ((4, 2**62 + 1), ValueError, str(2**62 + 1), f"num_codes <= {2**62}"),
    ((4, 4, -1), ValueError, "got -1", "0 <= seed"),
    ((4, 4, 2**64), ValueError, str(2**64), f"seed <= {2**64 - 1}"),
    ((True, 4), TypeError, "True", "num_features: expected an integer"),
    ((4.0, 4), TypeError, "4.0", "num_features: expected an integer"),
    ((4, 4.5), TypeError, "4.5", "num_codes: expected an integer"),
    ((4, False), TypeError, "False", "num_codes: expected an integer"),
    ((4, "8"), TypeError, "'8'", "num_codes: expected an integer"),
    ((4, 4, 1.0), TypeError, "1.0", "seed: expected an integer"),
    ((4, 4, None), TypeError, "None", "seed: expected an integer"),
])  # fmt: skip
def test_bad_sizes_and_seeds(cls, arguments, error, given, expected):
    refused(lambda: cls(*arguments), error, given, expected)


@pytest.mark.parametrize("cls", RANDOM)
def test_sizes_at_the_ends_of_their_ranges(cls):
    smallest = cls(1, 1)
    assert (smallest.num_features, smallest.num_codes, smallest.seed) == (1, 1, 0)
    largest = cls(3, 2**62, seed=2**64 - 1)
    assert largest.to_dense(2**62 - 1).shape == (3, 1)
    numpy = cls(np.int64(5), np.int32(6), seed=np.uint64(2**63))
    assert [type(size) for size in (numpy.num_features, numpy.num_codes, numpy.seed)] == [int] * 3


@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
@pytest.mark.parametrize("slices, error, words", [
    ([(-1, 3), (0, 11), (4, 3), (11, None)], ValueError, "expected 0 <= start <= stop <= 10, got start="),
    ([(0.5, 3), (0, 2.0), ("0", 2), (True, 3)], TypeError, "expected an integer, got"),
])  # fmt: skip
def test_bad_slices(kind, slices, error, words):
    for start, stop in slices:
        given = f"{start}, stop=" if error is ValueError else ""
        refused(lambda: make_dictionary(kind, 4, 10).to_dense(start, stop), error, words + given)  # noqa: B023


@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(kind, dtype):
    """Signs are exact in every floating dtype; a dense matrix is rounded once."""
    dictionary = make_dictionary(kind, 7, 20)
    columns = dictionary.to_dense(3, 17, dtype=dtype)
    assert columns.dtype == dtype
    assert torch.equal(columns, dictionary.to_dense(3, 17).to(dtype))
    assert dictionary.to_dense().dtype == torch.float32


@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
def test_devices(kind):
    dictionary = make_dictionary(kind, 7, 20)
    assert dictionary.to_dense(3, 17, device="meta").device.type == "meta"
    assert dictionary.to_dense(3, 17, device=torch.device("cpu")).device.type == "cpu"
    assert dictionary.to_dense(3, 3, device="meta").shape == (7, 0) == dictionary.to_dense(20, 20).shape
    moved = dictionary.to("meta")
    assert (moved.num_features, moved.num_codes, type(moved)) == (7, 20, type(dictionary))
    assert (moved is dictionary) == (kind != "dense")
    assert dictionary.to_dense().device.type == "cpu"


@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
@pytest.mark.parametrize("duplicate", [
    copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d)),
    lambda d: rebuild(d.kind, d.num_features, d.num_codes, d.seed, d.weight, d.signs),
])  # fmt: skip
@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_copies(kind, duplicate, seed):
    dictionary = make_dictionary(kind, 7, 20, seed)
    twin = duplicate(dictionary)
    assert twin.identity() == dictionary.identity()
    assert torch.equal(twin.to_dense(), dictionary.to_dense())


@pytest.mark.parametrize("dictionary, text", [
    (cpk.HadamardDictionary(7, 20, seed=3), "HadamardDictionary(num_features=7, num_codes=20, seed=3)"),
    (cpk.RademacherDictionary(7, 20), "RademacherDictionary(num_features=7, num_codes=20, seed=0)"),
    (cpk.DenseDictionary(torch.eye(5)), "DenseDictionary(num_features=5, num_codes=5)"),
])  # fmt: skip
def test_repr(dictionary, text):
    assert repr(dictionary) == text


def test_identities_differ_exactly_when_codes_do():
    matrix = torch.randn(7, 20, generator=torch.Generator().manual_seed(0))
    other = matrix.clone()
    other[6, 19] += 1e-6
    dictionaries = [cls(*sizes) for cls in RANDOM for sizes in ((7, 20, 0), (8, 20, 0), (7, 21, 0), (7, 20, 1))]
    dictionaries += [cpk.DenseDictionary(m) for m in (matrix, other, matrix.T)]
    identities = [d.identity() for d in dictionaries]
    assert len(set(identities)) == len(identities)
    assert cpk.DenseDictionary(matrix.T.contiguous().T).identity() == cpk.DenseDictionary(matrix).identity()
    for dictionary, identity in zip(dictionaries, identities, strict=True):
        assert dictionary.kind in describe_identity(identity)
        assert f"num_codes={dictionary.num_codes}" in describe_identity(identity)
    assert "3 bytes" in describe_identity(b"abc")


@pytest.mark.parametrize("weight, error, given, expected", [
    ([[1.0]], TypeError, "list", "a floating-point tensor"),
    (torch.ones(2, 2, dtype=torch.int64), TypeError, "torch.int64", "a floating-point tensor"),
    (torch.ones(2, 2, dtype=torch.complex64), TypeError, "torch.complex64", "a floating-point tensor"),
    (torch.ones(2, 2, dtype=torch.bool), TypeError, "torch.bool", "a floating-point tensor"),
    (torch.ones(4), ValueError, "(4,)", "(num_features, num_codes)"),
    (torch.ones(1, 2, 2), ValueError, "(1, 2, 2)", "(num_features, num_codes)"),
    (torch.ones(0, 2), ValueError, "(0, 2)", "non-empty"),
    (torch.ones(2, 0), ValueError, "(2, 0)", "non-empty"),
    (torch.tensor([[1.0, torch.nan]]), ValueError, "NaN or infinity", "finite"),
    (torch.tensor([[1.0, -torch.inf]]), ValueError, "NaN or infinity", "finite"),
])  # fmt: skip
def test_bad_matrices(weight, error, given, expected):
    assert refused(lambda: cpk.DenseDictionary(weight), error, given, expected).startswith("weight: ")


def test_dense_matrix_is_detached_and_not_copied():
    parameter = torch.nn.Parameter(torch.randn(4, 6))
    dictionary = cpk.DenseDictionary(parameter)
    assert not dictionary.weight.requires_grad
    assert dictionary.weight.data_ptr() == parameter.data_ptr()
    h = torch.randn(3, 4, requires_grad=True)
    cpk.cplearn_loss(h, h.flip(0), dictionary, temperature=1.0).backward()
    assert parameter.grad is None and h.grad is not None


@pytest.mark.parametrize("f, c", [(1, 1), (31, 5), (32, 3), (33, 70), (2048, 600)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_packed_signs_of_a_dense_matrix(f, c, dtype):
    """Bit k % 32 of word k // 32 is set where w_kj = -1, and no bit where there is no coordinate."""
    weight = torch.randn(f, c, generator=torch.Generator().manual_seed(f)).sign().to(dtype)
    packed = cpk.DenseDictionary(weight).signs
    assert packed.dtype == torch.int32 and packed.shape == (c, -(-f // 32))
    words = packed.long() % (1 << 32)
    for k in range(words.shape[1] * 32):
        bits = (words[:, k // 32] >> (k % 32)) & 1
        assert torch.equal(bits, (weight[k] < 0).long() if k < f else torch.zeros(c, dtype=torch.int64))


def test_only_a_matrix_of_signs_is_packed_and_moves_with_it():
    weight = torch.ones(3, 4)
    assert cpk.DenseDictionary(weight).to("meta").signs.device.type == "meta"
    for other in (0.0, 0.5, 2.0, -3.0):
        weight[1, 2] = other
        assert cpk.DenseDictionary(weight).signs is None
    for kind in ("hadamard", "rademacher"):
        assert make_dictionary(kind, 3, 4).signs is None
