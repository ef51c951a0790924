"""The loss over the ranks of a pool, on CPUs or GPUs, and its check against the oracle of the whole batch."""

import contextlib

import emulated
import torch
from cases import make_dictionary, same_bits
from oracle import LossOracle, check_loss, make_case, prior_probs

import cplearn_kernels as cpk
from cplearn_kernels.backends.cuda import functions as cuda

SETTINGS = (("reverse_kl", False, 1.0), ("reverse_kl", True, 0.5), ("cross_entropy", False, 0.5),
            ("cross_entropy", True, 3.0))  # fmt: skip


def dictionary_of(kind, f, c):
    """A dictionary of ±1 codes by name ("dense": a matrix that no generator made), or a "normal" dense one."""
    if kind == "dense":
        return cpk.DenseDictionary(cpk.RademacherDictionary(f, c, seed=11).to_dense())
    return make_dictionary("dense" if kind == "normal" else kind, f, c, seed=2)


def own_rows(group, tensors, counts, rows, device="cpu"):
    """This rank's rows of each tensor, ready for a gradient."""
    if rows == "sharded":
        tensors = [tensor.split(counts)[group.rank()] for tensor in tensors]
    return [tensor.to(device, copy=True).requires_grad_() for tensor in tensors]


def without_a_gpu(backend):
    """Where the kernels of a GPU backend run on the CPU: the CUDA ones in emulation, Triton's in its interpreter."""
    return cuda.emulated(emulated.kernels()) if backend == "cuda" else contextlib.nullcontext()


def on_the_cpu(group):
    return torch.device("cpu")


def loss_over_ranks(group, kind, f, c, n, regime, dtype, backend, rows, settings, device_of, counts):
    """For each setting the loss, its terms and the gradients of this rank's rows."""
    device, dictionary, found = device_of(group), dictionary_of(kind, f, c), []
    case = make_case(dictionary, n, regime, dtype)
    dictionary = dictionary.to(device)
    for prior, given, beta in settings:
        q = prior_probs(c, with_zeros=prior == "cross_entropy").to(device) if given else None
        views = own_rows(group, case.views, counts, rows, device)
        with without_a_gpu(backend) if device.type == "cpu" else contextlib.nullcontext():
            loss, terms = cpk.cplearn_loss(
                *views, dictionary, temperature=case.temperature, beta=beta, prior=prior, prior_probs=q,
                return_terms=True, process_group=group, rows=rows, backend=backend,
            )  # fmt: skip
        # As a gradient scaler does, so that float16 does not underflow.
        gradients = torch.autograd.grad(loss, views, loss.new_tensor(2.0**10))
        found.append([value.detach().cpu().numpy() for value in (loss, *terms.values())])
        found[-1] += [gradient.double().div(2.0**10).cpu().numpy() for gradient in gradients]
    return found


def counts_of(n, world):
    """Unequal parts of n, one of them a single row."""
    parts = [1] + [(n - 1) // (world - 1)] * (world - 1) if world > 1 else [n]
    parts[-1] += n - sum(parts)
    return parts


def results_over_ranks(
    pool, world, kind, f, c, n, regime, dtype, backend, rows, settings=SETTINGS, device_of=on_the_cpu
):
    """(oracle, setting, loss, gradients of the whole batch) for each setting; the ranks agree to the last bit."""
    arguments = kind, f, c, n, regime, dtype, backend, rows, settings, device_of, counts_of(n, world)
    answers = pool.run(loss_over_ranks, *arguments, world=world)
    dictionary = dictionary_of(kind, f, c)
    oracle = LossOracle(dictionary, make_case(dictionary, n, regime, dtype))
    for i, setting in enumerate(settings):
        of_ranks = [[torch.from_numpy(value) for value in answer[i]] for answer in answers]
        for values in of_ranks[1:]:
            assert all(same_bits(mine, first) for mine, first in zip(values[:3], of_ranks[0][:3], strict=True))
        if rows == "sharded":
            gradients = [torch.cat([values[view] for values in of_ranks]) / world for view in (3, 4)]
        else:
            gradients = of_ranks[0][3:]
            assert all(same_bits(a, b) for values in of_ranks for a, b in zip(values[3:], gradients, strict=True))
        yield oracle, setting, of_ranks[0][0], gradients


def check_over_ranks(pool, conformance, world, kind, f, c, n, regime, dtype, backend, rows, *more):
    for found in results_over_ranks(pool, world, kind, f, c, n, regime, dtype, backend, rows, *more):
        check_loss(conformance, f"{backend}, ranks: {world}", *found, dtype)
