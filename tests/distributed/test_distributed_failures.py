"""A rank that differs, fails, dies or stays away is named on every rank that is left, soon, and nothing hangs."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from cases import make_dictionary
from processes import Pool
from tiers import slow

import cplearn_kernels as cpk

F, C = 40, 300


@pytest.fixture(scope="module")
def pool():
    pool = Pool(3)
    yield pool
    pool.close()


def error_of(group, changes, rank):
    """(kind, sentence, seconds) of the error that this rank gets when `rank` changes some arguments, or None."""
    options = dict(f=F, c=C, seed=0, kind="hadamard", dtype=torch.float32, n=4, n2=None, call="cplearn_loss")
    options |= dict(temperature=0.3, beta=1.0, prior="reverse_kl", prior_probs=None, rows="sharded", backend="torch")
    if group.rank() == rank:
        options |= changes
    f, c, seed, kind, dtype, n, n2, call = (options.pop(name) for name in
                                            ("f", "c", "seed", "kind", "dtype", "n", "n2", "call"))  # fmt: skip
    dictionary = make_dictionary(kind, f, c, seed)
    h = [torch.ones(rows, f, dtype=dtype) for rows in (n, n2 or n)]
    began = time.monotonic()
    try:
        if call == "assign":
            cpk.assign(h[0], dictionary, process_group=group, rows=options["rows"], backend=options["backend"])
        else:
            cpk.cplearn_loss(*h, dictionary, process_group=group, **options)
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - began
    return None


DIFFERENT = {
    "num_features": ({"f": 48}, "num_features was 40 on ranks 0, 2 and 48 on rank 1"),
    "num_codes": ({"c": 301}, "num_codes was 300 on ranks 0, 2 and 301 on rank 1"),
    "seed": ({"seed": 2**64 - 1}, f"seed was 0 on ranks 0, 2 and {2**64 - 1} on rank 1"),
    "kind": ({"kind": "rademacher"}, "the dictionary's kind was hadamard on ranks 0, 2 and rademacher on rank 1"),
    "temperature": ({"temperature": 0.31}, "temperature was 0.3 on ranks 0, 2 and 0.31 on rank 1"),
    "beta": ({"beta": 0}, "beta was 1.0 on ranks 0, 2 and 0.0 on rank 1"),
    "prior": ({"prior": "cross_entropy"}, "prior was reverse_kl on ranks 0, 2 and cross_entropy on rank 1"),
    "prior_probs": ({"prior_probs": torch.ones(C) / C}, "prior_probs was None on ranks 0, 2 and with checksum "),
    "dtype": ({"dtype": torch.bfloat16}, "dtype was float32 on ranks 0, 2 and bfloat16 on rank 1"),
    "rows": ({"rows": "replicated"}, "rows was sharded on ranks 0, 2 and replicated on rank 1"),
    "backend": ({"backend": "reference"}, "backend was torch on ranks 0, 2 and reference on rank 1"),
    "function": ({"call": "assign"}, "the function was cplearn_loss on ranks 0, 2 and assign on rank 1"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_different_arguments_are_named_on_every_rank(pool, what):
    changes, sentence = DIFFERENT[what]
    answers = pool.run(error_of, changes, 1)
    assert all(answer is not None and answer[0] == "Disagreement" for answer in answers), answers
    assert len({text for _, text, _ in answers}) == 1
    assert answers[0][1].startswith("process_group: expected the same arguments on every rank, but ")
    assert sentence in answers[0][1]
    # Other functions have other arguments: comparing them says nothing.
    assert what != "function" or answers[0][1].endswith(sentence)
    # Nothing is out of step afterwards.
    assert pool.run(error_of, {}, 1) == [None] * 3


def replicated_rows_of_different_number(group):
    return error_of(group, {"rows": "replicated", "n": 4 + group.rank() // 2}, group.rank())


def test_different_dense_matrices_and_numbers_of_replicated_rows(pool):
    def sentences(function):
        answers = pool.run(function)
        assert len({text for _, text, _ in answers}) == 1
        return answers[0][1]

    assert "the number of rows was 4 on ranks 0, 1 and 5 on rank 2" in sentences(replicated_rows_of_different_number)
    text = sentences(dense_matrices)
    assert "the dense dictionary's matrix was one with checksum " in text and text.endswith(" on rank 2")


def dense_matrices(group):
    return error_of(group, {"seed": group.rank() // 2, "kind": "dense"}, group.rank())


BAD = {
    "shape": ({"f": 40, "n2": 3}, "ValueError", "h1 and h2: expected the same shape, got (4, 40) and (3, 40)"),
    "temperature": ({"temperature": -1.0}, "ValueError", "temperature: expected a positive finite number, got -1.0"),
    "rows": ({"rows": "split"}, "ValueError", "rows: expected one of ('sharded', 'replicated'), got 'split'"),
    "values of q": ({"prior_probs": torch.ones(C)}, "ValueError", "prior_probs: expected a sum of 1, got 300.0"),
    "values of q, oracle": (
        {"prior_probs": torch.ones(C), "backend": "reference"},
        "ValueError",
        "expected a sum of 1, got 300.0",
    ),
    "backend": ({"backend": "triton", "dtype": torch.float64}, "RuntimeError", "backend 'triton' cannot run"),
}


CASES = [(what, 1) if what in ("shape", "temperature", "values of q, oracle") else slow(what, 1) for what in BAD]


def errors_in_a_new_group(group, changes, rank, earlier, late):
    """The errors of a call, after `earlier` good ones, of the next call, and of one with another new group.

    `late`: ranks that come seconds after the others to the call.
    """
    first, second = dist.new_group([0, 1, 2]), dist.new_group([0, 1, 2])
    assert [error_of(first, {}, rank) for _ in range(earlier)] == [None] * earlier
    if group.rank() in late:
        time.sleep(2.5)
    return error_of(first, changes, rank), error_of(first, {}, rank), error_of(second, {}, rank)


@pytest.mark.parametrize("what, earlier", [("shape", 0), *CASES])
def test_an_error_on_one_rank_reaches_the_others_which_wait(pool, what, earlier):
    changes, kind, sentence = BAD[what]
    answers = pool.run(errors_in_a_new_group, changes, 1, earlier, [1])
    assert answers[1][0][0] == kind and sentence in answers[1][0][1] and answers[1][0][2] < 2
    for rank in (0, 2):
        first, second, other = answers[rank]
        assert first[0] == "RankFailure" and first[2] < 8
        assert f"rank 1 failed: {kind}: " in first[1] and sentence in first[1]
        # What was under way in the group may still be: it is of no more use, another one is.
        assert second[0] == "RankFailure" and second[2] < 1
        assert second[1].startswith("an earlier call with this process group failed (")
        assert "rank 1 failed: " in second[1] and second[1].endswith("), expected a new group")
        assert other is None
    assert answers[1][1][0] == "RankFailure" and answers[1][2] is None


def test_an_error_on_one_rank_that_goes_on_puts_no_calls_together_that_do_not_belong_together(pool):
    changes, kind, sentence = BAD["shape"]
    answers = pool.run(errors_in_a_new_group, changes, 1, 1, [0, 2])
    assert answers[1][0][0] == kind and answers[1][1][0] == "RankFailure"
    for rank in (0, 2):
        first, second, other = answers[rank]
        assert first[0] == second[0] == "RankFailure" and other is None
        assert f"rank 1 failed: {kind}: " in first[1] and sentence in first[1]


def same_mistake(group):
    return error_of(group, {"temperature": -1.0}, group.rank()), error_of(group, {}, group.rank())


def test_ranks_that_all_make_the_same_mistake_stay_in_step(pool):
    for first, second in pool.run(same_mistake):
        assert first[0] == "ValueError" and second is None


def in_a_part(group):
    """Processes 1 and 2 in a group of their own, where 2 fails, then one where they differ."""
    parts = [dist.new_group([1, 2]), dist.new_group([1, 2])]
    if group.rank() == 0:
        return None
    failing = group.rank() - 1 if group.rank() == 2 else -1
    if group.rank() == 2:
        time.sleep(2)
    return error_of(parts[0], {"temperature": -1.0}, failing), error_of(parts[1], {"temperature": 0.5}, failing)


def test_ranks_of_a_part_are_named_by_their_numbers_among_all(pool):
    _, one, two = pool.run(in_a_part)
    assert one[0][1].startswith("rank 2 failed: ValueError: temperature")
    assert one[1][1] == two[1][1] and "temperature was 0.3 on rank 1 and 0.5 on rank 2" in one[1][1]


def steps_until_error(group, die, at):
    """Steps until an error; `die` kills itself in step `at`. (steps done, kind, sentence, seconds of the last call)."""
    dictionary, step = cpk.HadamardDictionary(F, C), 0
    while True:
        if group.rank() == die and step == at:
            os.kill(os.getpid(), signal.SIGKILL)
        h = torch.randn(4, F, requires_grad=True)
        began = time.monotonic()
        try:
            loss = cpk.cplearn_loss(h, h.detach(), dictionary, temperature=0.3, process_group=group, backend="torch")
            loss.backward()
        except Exception as error:
            return step, type(error).__name__, str(error), time.monotonic() - began
        step += 1


@pytest.mark.parametrize("die, at", [slow(0, 0), (2, 3)])
def test_a_rank_that_dies_is_named_by_the_others(die, at):
    pool = Pool(3, timeout=20, subgroups=False)
    try:
        pool.start(steps_until_error, die, at)
        for rank in {0, 1, 2} - {die}:
            good, (step, kind, text, seconds) = pool.answer(rank, 60)
            assert good and step == at and kind == "RankFailure"
            assert text.startswith(f"rank {die} did not "), text
            # Of a first call the group's timeout is waited for: a rank may be slow to start.
            assert seconds < (25 if at == 0 else 15)
    finally:
        pool.close()


def outsider(group, members):
    """The error of a process that is no member of a group, and that of a destroyed group."""
    inner, found = dist.new_group(members), []
    other = dist.new_group([0, 1, 2])
    dist.destroy_process_group(other)
    for process_group in (inner, other):
        try:
            cpk.CPLearnLoss(cpk.HadamardDictionary(F, C), process_group=process_group, backend="torch")(
                *torch.ones(2, 4, F)
            )
            found.append(None)
        except Exception as error:
            found.append((type(error).__name__, str(error)))
    return found


def test_groups_that_cannot_be_used(pool):
    answers = pool.run(outsider, [0, 1])
    assert answers[0][0] is None and answers[1][0] is None
    assert answers[2][0] == (
        "ValueError", "process_group: this process is no member of the group, expected one that it belongs to"
    )  # fmt: skip
    assert {answer[1] for answer in answers} == {
        ("ValueError", "process_group: the group was destroyed, expected one that is initialised")
    }
