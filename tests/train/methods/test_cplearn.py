"""train/methods/cplearn.py: the loss it trains, the levels of its plots, and options that the library rejects."""

import math

import numpy as np
import pytest
import torch
from running import build

import cplearn_kernels as cpk
from train.errors import InputError


def views(f=16, n=32):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.functional.normalize(torch.randn(n, f, generator=generator), dim=1) for _ in range(2)]


@pytest.mark.parametrize("changes", [
    {}, {"embedding": "tanh"}, {"prior": "cross_entropy"}, {"dictionary": "rademacher"}, {"beta": 2.0, "eps": 1e-4},
])  # fmt: skip
def test_options_reach_the_loss(tiny_config, changes):
    config = tiny_config(**changes)
    family = cpk.RademacherDictionary if config.dictionary == "rademacher" else cpk.HadamardDictionary
    temperature = cpk.default_temperature(16, 64, embedding=config.embedding, batch_size=32, eps=config.eps)
    h1, h2 = views()
    loss, terms = build(config).loss(h1, h2)
    options = dict(temperature=temperature, beta=config.beta, prior=config.prior)
    dictionary = family(16, 64, seed=config.seed)
    expected = cpk.reference.cplearn_loss(h1.double(), h2.double(), dictionary, **options)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx(terms["prior"].item() + config.beta * terms["invariance"].item(), rel=1e-5)


def test_levels_bound_the_loss(tiny_config):
    """The loss is log c when all embeddings are one code, and the floor when every row has a code of its own."""
    method = build(tiny_config(batch_size=16, beta=1.0))
    collapsed, floor = method.lines().values()
    assert (collapsed, floor) == (pytest.approx(math.log(64)), pytest.approx(math.log(4)))
    codes = method.criterion.dictionary.to_dense().T / 4
    one = codes[:1].expand(16, -1).contiguous()
    assert method.loss(one, one)[0].item() == pytest.approx(collapsed, abs=1e-4)
    # One block of codes, orthogonal to each other: codes of other blocks can be at cosine 14/16, which costs 1e-3.
    own = codes[:16].contiguous()
    assert method.loss(own, own)[0].item() == pytest.approx(floor, abs=1e-3)


def test_a_small_beta_has_a_lower_floor_that_undecided_rows_reach(tiny_config):
    """Each of 4 rows spreads evenly over 16 of the 64 codes: p̄ is uniform, H(p) = log 16, so L = beta log 16."""
    method = build(tiny_config(batch_size=4, beta=0.75))
    p = torch.block_diag(*[torch.full((1, 16), 1 / 16.0)] * 4)
    mean = p.mean(0)
    loss = (mean * (64 * mean).log()).sum() - 0.75 * torch.xlogy(p, p).sum(1).mean()
    assert list(method.lines().values()) == pytest.approx([math.log(64), math.log(16), loss.item()])


def test_assign_finds_the_code(tiny_config):
    method = build(tiny_config())
    clusters = method.assign(method.criterion.dictionary.to_dense().T[[5, 63, 0]] / 4)
    assert clusters.tolist() == [5, 63, 0] and clusters.dtype == torch.int64


def test_a_dense_dictionary_comes_from_its_file(tiny_config, tmp_path):
    codes = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).sign()
    np.save(tmp_path / "w.npy", codes.numpy().astype(np.int8))
    dense = {"dictionary": "dense", "dictionary_file": tmp_path / "w.npy"}
    method = build(tiny_config(**dense))
    assert method.assign(codes.T[[5, 63, 0]].contiguous() / 4).tolist() == [5, 63, 0]
    options = dict(temperature=method.criterion.temperature, beta=0.75)
    h1, h2 = (h.double() for h in views())
    expected = cpk.reference.cplearn_loss(h1, h2, cpk.DenseDictionary(codes.double()), **options)
    assert method.loss(*views())[0].item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(InputError, match=r"int8 of shape \(16, 64\), expected numbers of shape \(16, 128\)"):
        build(tiny_config(num_codes=128, **dense))
    (tmp_path / "w.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match="expected an .npy file with the codes"):
        build(tiny_config(**dense))
    with pytest.raises(InputError, match="none.npy, expected an .npy file"):
        build(tiny_config(**dense | {"dictionary_file": tmp_path / "none.npy"}))


@pytest.mark.parametrize("changes, words", [({"eps": 0.5}, "0.5"), ({"backend": "abacus"}, "abacus")])
def test_options_that_the_library_rejects_are_input_errors(tiny_config, changes, words):
    with pytest.raises(InputError, match=f"The loss cannot be set up with these options: .*{words}"):
        build(tiny_config(**changes))
