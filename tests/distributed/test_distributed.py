"""Every function over 1 to 4 ranks against the float64 oracle of the whole batch; all ranks get the same numbers."""

import emulated
import pytest
import torch
from cases import embeddings, loss_and_gradients, same_bits
from oracle import make_case, prior_probs
from over_ranks import SETTINGS, check_over_ranks, counts_of, dictionary_of, own_rows, results_over_ranks, without_a_gpu
from processes import Pool
from tiers import slow

import cplearn_kernels as cpk
from cplearn_kernels import ops
from cplearn_kernels.backends import sign_codes
from cplearn_kernels.distributed.loss import merge_row_sums
from cplearn_kernels.distributed.ranges import CodeRange, code_ranges

WORLDS = (1, 2, 3, 4)
BACKENDS = ("cpu", "torch", "reference")


@pytest.fixture(scope="module")
def pool():
    pool = Pool(4)
    yield pool
    pool.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["hadamard", "rademacher", "dense"])
@pytest.mark.parametrize("world", [1, 2, 3, slow(4)])
def test_loss(pool, conformance, world, kind, backend):
    # The oracle's float32 roundings are those of a BLAS; in float64 it differs from one process in nothing else.
    dtype = torch.float64 if backend == "reference" else torch.float32
    for f, c, n in ((33, 500, 9), (128, 1000, 17)):
        check_over_ranks(pool, conformance, world, kind, f, c, n, "l2", dtype, backend, "sharded")
    check_over_ranks(pool, conformance, world, kind, 33, 500, 9, "l2", dtype, backend, "replicated")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU: test_distributed_gpu.py")
@pytest.mark.parametrize("rows", ["sharded", slow("replicated")])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_loss_of_gpu_kernels_on_the_cpu(pool, conformance, backend, rows):
    if backend == "triton" and not cpk.backends()["triton"].available:
        pytest.skip(cpk.backends()["triton"].reason)
    if backend == "cuda":
        emulated.kernels()  # built here, or skipped
    check_over_ranks(pool, conformance, 2, "hadamard", 33, 200, 5, "l2", torch.float32, backend, rows, SETTINGS[1::2])


def beyond_the_limit(group):
    """Errors of a dictionary with more codes than the backend serves: whole, and in two ranges."""
    dictionary, found = cpk.HadamardDictionary(33, 200), []
    mine = own_rows(group, embeddings(6, 33), [3, 3], "sharded")
    with without_a_gpu("cuda"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sign_codes, "MAX_CODES", 128)
        for process_group in (None, group):
            found.append(None)
            try:
                cpk.cplearn_loss(*mine, dictionary, temperature=0.3, process_group=process_group, backend="cuda")
            except RuntimeError as error:
                found[-1] = str(error)
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs in emulation")
def test_the_limit_on_codes_is_one_on_the_range_of_a_rank(pool):
    emulated.kernels()
    for whole, shared in pool.run(beyond_the_limit, world=2):
        assert "it serves up to 2^7 codes, got 200" in whole and shared is None


@pytest.mark.parametrize("kind", ["hadamard", "rademacher", "normal"])
@pytest.mark.parametrize("world", [1, 2, 3, slow(4)])
def test_loss_in_float64_is_the_oracles_to_rounding(pool, world, kind):
    for rows in ("sharded", "replicated"):
        results = results_over_ranks(pool, world, kind, 33, 500, 9, "l2", torch.float64, "torch", rows)
        for oracle, setting, *found in results:
            assert max(oracle.errors(*setting, *found)) < 1e-12


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("regime", ["tanh", "l2 to ±300"])
def test_loss_of_large_logits(pool, conformance, backend, regime):
    for kind in ("hadamard", "rademacher"):
        check_over_ranks(pool, conformance, 3, kind, 96, 700, 13, regime, torch.float32, backend, "sharded")


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_of_half_precision(pool, conformance, backend, dtype):
    check_over_ranks(pool, conformance, 2, "hadamard", 64, 700, 13, "l2", dtype, backend, "sharded")


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_rank_without_codes(pool, conformance, backend):
    # Two blocks of 128 for four ranks, and one code for three.
    check_over_ranks(pool, conformance, 4, "hadamard", 100, 200, 9, "l2", torch.float32, backend, "sharded")
    check_over_ranks(pool, conformance, 3, "hadamard", 100, 1, 9, "l2", torch.float32, backend, "sharded", SETTINGS[:1])


def test_ranges_cover_the_codes_in_whole_blocks():
    dictionary = cpk.HadamardDictionary(100, 5 * 128 + 7)
    for world in (1, 2, 3, 6, 7, 20):
        ranges = [codes for codes in code_ranges(dictionary, world) if codes is not None]
        assert torch.equal(torch.cat([codes.to_dense() for codes in ranges], 1), dictionary.to_dense())
        sizes = [codes.num_codes for codes in ranges]
        assert all(codes.first_code % 128 == 0 and codes.total_codes == 647 for codes in ranges)
        assert max(sizes) - min(sizes[:-1], default=0) <= 128 or len(sizes) == 1
    with pytest.raises(ValueError, match="start a multiple of 128, got start=64"):
        CodeRange(dictionary, 64, 128)


def test_of_equal_logits_one_rank_owns_the_best():
    best = torch.tensor([[1.0, -2.0, 3.0], [1.0, -2.0, 3.0], [0.5, -1.0, 3.0]], dtype=torch.float64)
    others = torch.full_like(best, 0.25)
    merged = [merge_row_sums(best, others, rank, 1.0) for rank in range(3)]
    assert [m[2].tolist() for m in merged] == [[True, False, True], [False] * 3, [False, True, False]]
    # exp(0) of the second, then the third's best and others; all relative to the best.
    e = torch.tensor(-0.5, dtype=torch.float64).exp()
    assert torch.allclose(merged[0][1][0], 0.25 + 1.25 + 1.25 * e)
    assert torch.allclose(merged[0][1][2], torch.tensor(0.25 + 1.25 + 1.25, dtype=torch.float64))


def combined(group, best, others):
    """What `_combine` hands to a shard, for this rank's rows of the given arrays."""
    from cplearn_kernels.distributed import groups
    from cplearn_kernels.distributed import loss as distributed

    class Recorder:
        LOG_UNIT = 1.0

        def combine(self, *values):
            self.values = values

    shard = Recorder()
    distributed._combine(groups.of(group), shard, best[group.rank()], others[group.rank()])
    return [value.numpy() for value in shard.values]


def test_combining_over_ranks_is_merging(pool):
    generator = torch.Generator().manual_seed(0)
    best = torch.randn(4, 1000, generator=generator, dtype=torch.float64) * 100
    best[:, :500] = best[:, :500].float().double()
    best[2, ::7] = best[1, ::7] = best[3, ::7] = best.max(0).values[::7].round()
    best[3, ::11] = -torch.inf
    others = torch.rand(4, 1000, generator=generator, dtype=torch.float64)
    others[3, ::11] = 0
    for rank, values in enumerate(pool.run(combined, best, others)):
        top, total, mine = (torch.from_numpy(value) for value in values)
        expected_top, expected_total, expected_mine = merge_row_sums(best, others, rank, 1.0)
        # float64 logits may differ from the largest in their last 16 bits.
        assert torch.equal(top[:500], expected_top[:500])
        assert torch.allclose(top, expected_top, rtol=2e-11)
        assert torch.equal(mine[:500], expected_mine[:500])
        assert torch.allclose(total * (top - expected_top).exp(), expected_total, rtol=1e-8)


def with_nan(group, backend):
    views = embeddings(6, 40)
    views[1][4, 3] = torch.nan
    mine, dictionary = own_rows(group, views, [3, 3], "sharded"), cpk.HadamardDictionary(40, 300)
    loss, *grads = loss_and_gradients(*mine, dictionary, process_group=group, backend=backend)
    return bool(loss.isnan()), [bool(grad[row].isnan().all()) for grad in grads for row in range(3)]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_nan_reaches_every_rank(pool, backend):
    for rank, (loss, rows) in enumerate(pool.run(with_nan, backend, world=2)):
        assert loss and (rank == 0 or (rows[1] and rows[4]))


def mean_and_codes(group, kind, f, c, counts, backend, rows, top_k):
    dictionary = dictionary_of(kind, f, c)
    (h,) = own_rows(group, [make_case(dictionary, sum(counts), "l2").views[0]], counts, rows)
    mean = cpk.mean_assignment(h, dictionary, temperature=0.4, process_group=group, rows=rows, backend=backend)
    weights = torch.randn(c, generator=torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad((mean * weights).sum(), h)
    scores, codes = cpk.assign(h, dictionary, top_k=top_k, process_group=group, rows=rows, backend=backend)
    return [value.detach().numpy() for value in (mean, gradient, scores, codes)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", ["sharded", "replicated"])
@pytest.mark.parametrize("kind", ["hadamard", "rademacher", "dense"])
def test_mean_assignment_and_assign(pool, kind, rows, backend):
    f, c, top_k = 40, 300, 90
    dictionary = dictionary_of(kind, f, c)
    for world in WORLDS:
        counts = counts_of(11, world)
        answers = pool.run(mean_and_codes, kind, f, c, counts, backend, rows, top_k, world=world)
        h = make_case(dictionary, 11, "l2").views[0].double().requires_grad_()
        expected = cpk.reference.mean_assignment(h, dictionary, temperature=0.4)
        weights = torch.randn(c, generator=torch.Generator().manual_seed(5)).double()
        (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), h)
        for mean in (torch.from_numpy(answer[0]) for answer in answers):
            assert same_bits(mean, torch.from_numpy(answers[0][0]))
            assert (mean - expected).norm() <= 1e-5 * expected.norm()
        all_codes, parts = cpk.assign(h.detach().float(), dictionary, top_k=top_k, backend="torch"), []
        for part in (1, 2, 3):
            found = [torch.from_numpy(answer[part]) for answer in answers]
            parts.append(torch.cat(found) if rows == "sharded" else found[-1])
        factor = world if rows == "sharded" else 1
        assert (parts[0] / factor - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()
        assert torch.allclose(parts[1], all_codes[0], atol=1e-4)
        # The order of nearly equal scores is free.
        scores = h.detach() @ dictionary.to_dense(dtype=torch.float64)
        assert torch.allclose(scores.gather(1, parts[2]), parts[1].double(), atol=1e-4)
        assert all(len(set(row.tolist())) == top_k for row in parts[2])


def second_derivative(group):
    (h1, h2) = own_rows(group, embeddings(6, 8, dtype=torch.float64), [2, 4], "sharded")
    loss = cpk.cplearn_loss(h1, h2, cpk.HadamardDictionary(8, 40), temperature=0.5, process_group=group,
                            backend="reference")  # fmt: skip
    (first,) = torch.autograd.grad(loss, h1, create_graph=True)
    return [value.numpy() for value in torch.autograd.grad(first.square().sum(), (h1, h2))]


def test_the_oracle_stays_differentiable_twice(pool):
    answers = pool.run(second_derivative, world=2)
    h1, h2 = (h.requires_grad_() for h in embeddings(6, 8, dtype=torch.float64))
    loss = cpk.reference.cplearn_loss(h1, h2, cpk.HadamardDictionary(8, 40), temperature=0.5)
    (first,) = torch.autograd.grad(loss, h1, create_graph=True)
    for rank, rows in enumerate((slice(0, 2), slice(2, 6))):
        # Each rank differentiates its own rows alone: the others' are constants to it.
        expected = torch.autograd.grad((2 * first[rows]).square().sum(), (h1, h2), retain_graph=True)
        for found, whole in zip(answers[rank], expected, strict=True):
            assert torch.allclose(torch.from_numpy(found), 2 * whole[rows], rtol=1e-10)


def without_gradient_on_one_rank(group):
    (h1, h2) = own_rows(group, embeddings(6, 40), [3, 3], "sharded")
    with torch.set_grad_enabled(group.rank() == 0):
        loss = cpk.cplearn_loss(h1, h2, cpk.HadamardDictionary(40, 300), temperature=0.3, process_group=group)
    moved = loss.requires_grad and torch.autograd.grad(loss, h1)[0].abs().sum() > 0
    return float(loss), loss.requires_grad, bool(moved)


def test_one_rank_may_want_no_gradient(pool):
    first, second = pool.run(without_gradient_on_one_rank, world=2)
    assert first == (first[0], True, True) and second == (first[0], False, False)


def the_same_again(group):
    (h1, h2) = own_rows(group, embeddings(20, 40), [10, 10], "sharded")
    dictionary = cpk.HadamardDictionary(40, 3000)
    runs = [loss_and_gradients(h1, h2, dictionary, process_group=group) for _ in range(2)]
    return all(same_bits(a, b) for a, b in zip(*runs, strict=True))


def test_the_same_inputs_give_the_same_bits(pool):
    assert pool.run(the_same_again, world=2) == [True, True]


def operators_checked(group):
    """opcheck on each operator that takes a group; every rank calls them equally often."""
    operators = torch.ops.cplearn_kernels
    views = own_rows(group, embeddings(6, 7), [1, 2, 2, 1], "sharded")
    dictionary = ops.dictionary_arguments(cpk.HadamardDictionary(7, 40))
    settings = "torch", "world", "sharded"
    loss = *views, prior_probs(40, False), *dictionary, 0.5, 1.0, "reverse_kl", True, *settings
    torch.library.opcheck(operators.loss.default, loss)
    torch.library.opcheck(operators.mean_assignment_over_ranks.default, (views[0], *dictionary, 0.5, *settings))
    torch.library.opcheck(operators.assign.default, (views[0].detach(), *dictionary, 3, *settings))
    return True


def test_operators(pool):
    assert all(pool.run(operators_checked))
