"""Tests of modules.py: the head, the loss as a module, its state dict and copies, an optimiser's loop."""

import copy
import io
import pickle

import pytest
import torch
from cases import DICTIONARY_KINDS, embeddings, make_dictionary, one_thread, prior_probs, same_bits  # noqa: F401
from refusals import refused

import cplearn_kernels as cpk

H1, H2 = embeddings(6, 7)


@pytest.mark.parametrize("n, features, f", [(2, 3, 1), (5, 12, 7), (8, 4, 129)])
def test_l2_head_gives_unit_rows(n, features, f):
    """Unit to a few float32 roundings; a row of one feature that the normalisation maps to 0 stays 0."""
    h = cpk.CPLearnHead(features, f)(torch.randn(n, features, generator=torch.Generator().manual_seed(0)))
    assert h.shape == (n, f)
    torch.testing.assert_close(h.norm(dim=1), torch.ones(n), rtol=1e-6, atol=0)


def test_tanh_head_stays_in_range():
    x = 100 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    h = cpk.CPLearnHead(4, 16, embedding="tanh")(x)
    assert h.shape == (8, 16) and bool((h.abs() < 1).all())
    spread = h.detach().norm(dim=1)
    assert float(spread.max() - spread.min()) > 1e-3  # not unit rows


@pytest.mark.parametrize("embedding", ["l2", "tanh"])
def test_gradients_flow_through_the_head(embedding):
    head = cpk.CPLearnHead(5, 7, embedding=embedding)
    assert cpk.CPLearnHead(4).linear.out_features == 2048 and f"embedding='{embedding}'" in repr(head)
    assert cpk.CPLearnHead(4).embedding == "l2"
    x = torch.randn(6, 5, requires_grad=True)
    criterion = cpk.CPLearnLoss(make_dictionary("hadamard", 7, 20), temperature=0.5)
    criterion(head(x), head(x.flip(0))).backward()
    for tensor in (x, *head.parameters()):
        assert bool(tensor.grad.isfinite().all()) and bool(tensor.grad.any())
    assert sum(parameter.numel() for parameter in head.parameters()) == 5 * 7 + 2 * 7


@pytest.mark.parametrize("arguments, options, given, expected", [
    ((0, 7), {}, "got 0", "in_features: expected at least 1"),
    ((5, -1), {}, "got -1", "num_features: expected at least 1"),
    ((5, 7), {"embedding": "relu"}, "got 'relu'", "expected one of ('l2', 'tanh')"),
])  # fmt: skip
def test_bad_heads(arguments, options, given, expected):
    refused(lambda: cpk.CPLearnHead(*arguments, **options), ValueError, given, expected)


@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
@pytest.mark.parametrize("prior, given, beta", [("reverse_kl", False, 1.0), ("cross_entropy", True, 0.5)])
def test_module_equals_the_function(kind, prior, given, beta):
    dictionary = make_dictionary(kind, 7, 20)
    q = prior_probs(20) if given else None
    criterion = cpk.CPLearnLoss(dictionary, temperature=0.3, beta=beta, prior=prior, prior_probs=q)
    options = {"temperature": 0.3, "beta": beta, "prior": prior, "prior_probs": q}
    assert same_bits(criterion(H1, H2), cpk.cplearn_loss(H1, H2, dictionary, **options))
    assert not same_bits(criterion(H1, -H2), cpk.cplearn_loss(H1, H2, dictionary, **options))
    value, terms = criterion(H1, H2, return_terms=True)
    expected, expected_terms = cpk.cplearn_loss(H1, H2, dictionary, return_terms=True, **options)
    assert same_bits(value, expected) and all(same_bits(terms[name], expected_terms[name]) for name in expected_terms)
    for mine, function in zip(criterion.assign(H1, 3), cpk.assign(H1, dictionary, top_k=3), strict=True):
        assert same_bits(mine, function)
    assert criterion.assign(H1)[1].shape == (6, 1)


def test_default_temperatures():
    d = make_dictionary("hadamard", 7, 20)
    assert cpk.CPLearnLoss(d).temperature == cpk.default_temperature(7, 20)
    assert cpk.CPLearnLoss(d, eps=0.01).temperature == cpk.default_temperature(7, 20, eps=0.01)
    tanh = cpk.CPLearnLoss(d, embedding="tanh", batch_size=64)
    assert tanh.temperature == cpk.default_temperature(7, 20, embedding="tanh", batch_size=64)
    assert cpk.CPLearnLoss(d, embedding="tanh", temperature=0.5).temperature == 0.5


def test_backend_is_used():
    criterion = cpk.CPLearnLoss(make_dictionary("dense", 7, 20), backend="cpu")  # its entries are not ±1
    for call in (lambda: criterion(H1, H2), lambda: criterion.assign(H1)):
        with pytest.raises(RuntimeError, match="'cpu' cannot run"):
            call()


@pytest.mark.parametrize("options, error, given, expected", [
    ({"embedding": "tanh"}, ValueError, "got None", "batch size"),
    ({"embedding": "cosine"}, ValueError, "got 'cosine'", "('l2', 'tanh')"),
    ({"temperature": 0.0}, ValueError, "got 0.0", "positive finite"),
    ({"temperature": float("nan")}, ValueError, "got nan", "positive finite"),
    ({"beta": -1}, ValueError, "got -1", "beta: expected a finite number >= 0"),
    ({"eps": 0.05}, ValueError, "eps=0.05 with num_codes=20", "eps * num_codes < 1"),
    ({"prior": "kl"}, ValueError, "got 'kl'", "prior: expected one of"),
    ({"prior_probs": torch.ones(3) / 3}, ValueError, "got (3,)", "expected shape (20,)"),
    ({"prior_probs": torch.ones(20)}, ValueError, "got 20.0", "a sum of 1"),
    ({"prior_probs": prior_probs(20, zeros=True)}, ValueError, "got a zero", "reverse_kl needs q_j > 0"),
    ({"process_group": "all"}, ValueError, "got 'all'", 'expected a ProcessGroup, "world" or None'),
    ({"process_group": 1}, TypeError, "got int", 'expected a ProcessGroup, "world" or None'),
    ({"rows": "split"}, ValueError, "got 'split'", "expected one of ('sharded', 'replicated')"),
    ({"backend": "gpu"}, ValueError, "got 'gpu'", "backend: expected None or one of"),
    ({"dictionary": torch.eye(7)}, TypeError, "got Tensor", "expected a Dictionary"),
])  # fmt: skip
def test_bad_arguments_fail_when_the_module_is_made(options, error, given, expected):
    options = {"dictionary": make_dictionary("hadamard", 7, 20), **options}
    refused(lambda: cpk.CPLearnLoss(**options), error, given, expected)


def through_a_file(content, weights_only=False):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=weights_only)


OTHERS = {
    "another kind": lambda: make_dictionary("rademacher", 7, 20, seed=5),
    "fewer codes": lambda: make_dictionary("hadamard", 7, 19, seed=5),
    "wider codes": lambda: make_dictionary("hadamard", 8, 20, seed=5),
    "another seed": lambda: make_dictionary("hadamard", 7, 20, seed=6),
    "a seed that differs beyond 32 bits": lambda: make_dictionary("hadamard", 7, 20, seed=5 + 2**40),
    "a matrix": lambda: make_dictionary("dense", 7, 20, seed=5),
}


@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
def test_state_is_one_tensor_of_bytes_and_loads(kind):
    criterion = cpk.CPLearnLoss(make_dictionary(kind, 7, 20, seed=5), prior_probs=prior_probs(20))
    state = criterion.state_dict()
    (identity,) = state.values()
    assert list(criterion.parameters()) == []
    assert identity.dtype == torch.uint8 and bytes(identity.tolist()) == criterion.dictionary.identity()
    twin = cpk.CPLearnLoss(make_dictionary(kind, 7, 20, seed=5))
    assert str(twin.load_state_dict(state)) == "<All keys matched successfully>"
    twin.load_state_dict(through_a_file(state, weights_only=True))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("swap", [False, True])
def test_state_of_another_dictionary_is_refused(name, strict, swap):
    mine, other = make_dictionary("hadamard", 7, 20, seed=5), OTHERS[name]()
    saved, loading = (other, mine) if swap else (mine, other)
    state, described = cpk.CPLearnLoss(saved).state_dict(), "{d.kind} dictionary, num_features={d.num_features}, "
    described += "num_codes={d.num_codes}, seed={d.seed}"
    with pytest.raises(RuntimeError, match="the state was saved with a.*but this module has a") as caught:
        cpk.CPLearnLoss(loading).load_state_dict(state, strict=strict)
    assert all(described.format(d=d) in str(caught.value) for d in (saved, loading))


def test_state_of_another_matrix_is_refused():
    matrix = torch.randn(7, 20)
    other = matrix.clone()
    other[3, 3] += 1e-3
    state = cpk.CPLearnLoss(cpk.DenseDictionary(matrix)).state_dict()
    cpk.CPLearnLoss(cpk.DenseDictionary(matrix.clone())).load_state_dict(state)
    with pytest.raises(RuntimeError, match="SHA-256 .*but this module has a dense.*SHA-256"):
        cpk.CPLearnLoss(cpk.DenseDictionary(other)).load_state_dict(state)


def test_state_of_a_model_that_holds_the_loss():
    def model(seed):
        return torch.nn.ModuleDict(
            {"head": cpk.CPLearnHead(3, 7), "criterion": cpk.CPLearnLoss(make_dictionary("hadamard", 7, 20, seed))}
        )

    state = model(0).state_dict()
    model(0).load_state_dict(state)
    with pytest.raises(RuntimeError, match="criterion.dictionary_identity: the state was saved with"):
        model(1).load_state_dict(state)
    del state["criterion.dictionary_identity"]
    with pytest.raises(RuntimeError, match="Missing key.*criterion.dictionary_identity"):
        model(0).load_state_dict(state)
    model(0).load_state_dict(state, strict=False)


def test_states_that_are_no_identity():
    criterion = cpk.CPLearnLoss(make_dictionary("hadamard", 7, 20))
    for wrong in (torch.zeros(3, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8)):
        with pytest.raises(RuntimeError, match=f"{wrong.numel()} bytes that are no dictionary's identity"):
            criterion.load_state_dict({"dictionary_identity": wrong})


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": through_a_file}


@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
@pytest.mark.parametrize("name", COPIES)
def test_copies_compute_the_same(kind, name):
    q = prior_probs(20)
    criterion = cpk.CPLearnLoss(make_dictionary(kind, 7, 20, seed=2**63), beta=0.5, prior_probs=q)
    expected = criterion(H1, H2)
    twin = COPIES[name](criterion)
    assert same_bits(twin(H1, H2), expected)
    assert repr(twin) == repr(criterion) and "beta=0.5" in repr(criterion)
    q.fill_(1.0)  # the module keeps a copy of its own
    assert same_bits(criterion(H1, H2), expected)


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double()])
def test_casts_keep_the_prior_and_the_identity(cast):
    q = prior_probs(20)
    criterion = cpk.CPLearnLoss(make_dictionary("hadamard", 7, 20), prior_probs=q)
    expected = criterion(H1, H2)
    model = cast(torch.nn.Sequential(torch.nn.Linear(2, 2), criterion))
    assert model[0].weight.dtype != torch.float32
    assert same_bits(criterion.prior_probs, q) and criterion.dictionary_identity.dtype == torch.uint8
    assert same_bits(criterion(H1, H2), expected)


def test_moves_take_the_matrix_along():
    criterion = cpk.CPLearnLoss(make_dictionary("dense", 7, 20), prior_probs=prior_probs(20)).to("meta")
    assert criterion.dictionary.weight.device.type == criterion.prior_probs.device.type == "meta"


@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
@pytest.mark.parametrize("embedding", ["l2", "tanh"])
def test_an_optimiser_lowers_the_loss(kind, embedding):
    """24 noisy points through a head: 30 steps take the loss at least a quarter of the way to its floor log(c / n)."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    points = torch.randn(24, 10, generator=generator)
    head = cpk.CPLearnHead(10, 32, embedding=embedding)
    criterion = cpk.CPLearnLoss(make_dictionary(kind, 32, 64), embedding=embedding, batch_size=24)

    def run(climb):
        model = copy.deepcopy(head)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2, maximize=climb)
        losses = []
        for _ in range(30):
            views = (points + 0.05 * torch.randn(24, 10, generator=generator) for _ in range(2))
            value = criterion(*(model(view) for view in views))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            losses.append(value.item())
        return losses

    floor = torch.tensor(64 / 24).log().item()
    losses, climbing = run(False), run(True)
    assert losses[-1] - floor < 0.75 * (losses[0] - floor) and climbing[-1] > climbing[0]
