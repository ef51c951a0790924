"""The functions as torch.library operators: fake implementations for the compiler, autograd, and the backend's choice.

A dictionary crosses the operator boundary as plain values (kind, num_features, num_codes, seed) plus the matrix of a
dense one, a process group as its name ("" for none), because schemas know no Python objects. Every backward is an
operator of its own whose own backward raises: second derivatives are not implemented, and saying so beats returning
zeros.
"""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Callable, Iterator
from typing import Any, Optional

import torch
from torch import Tensor

from . import validation
from .backends.interface import Backend
from .backends.select import select
from .bits import signed
from .dictionary import Dictionary, rebuild
from .distributed import groups
from .distributed import loss as distributed
from .distributed.collectives import Ranks
from .distributed.ranges import largest_range
from .options import result_dtype

_LIBRARY = torch.library.Library("cplearn_kernels", "DEF")


def dictionary_arguments(dictionary: Dictionary) -> tuple[Tensor | None, Tensor | None, str, int, int, int]:
    """(weight, signs, kind, num_features, num_codes, seed) as the operators take them; the seed as a signed integer."""
    d = dictionary
    return d.weight, d.signs, d.kind, d.num_features, d.num_codes, signed(d.seed, 64)


def _select(backend: str, function: str, dictionary: Dictionary, h: Tensor, others: Ranks | None = None) -> Backend:
    if others is not None:
        dictionary = largest_range(dictionary, others.world)
    return select(backend or None, function, dictionary, h)


def _operator(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as operator `name`, its schema read off its annotations, with the shapes that `fake` gives.

    torch.library.define rather than custom_op: the latter's wrapper imports the whole compiler in the first call
    (seconds).
    """

    def register(implementation: Callable[..., Any]) -> Any:
        implementation.__annotations__ = typing.get_type_hints(implementation)
        _LIBRARY.define(name + torch.library.infer_schema(implementation, mutates_args=()))
        _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{_LIBRARY.ns}::{name}", fake, lib=_LIBRARY)
        return getattr(getattr(torch.ops, _LIBRARY.ns), name).default

    return register


def _register_autograd(operator: Any, backward: Callable[..., Any], setup: Callable[..., Any]) -> None:
    torch.library.register_autograd(operator._schema.name, backward, setup_context=setup, lib=_LIBRARY)


# --- cplearn_loss: the gradient is made in the forward, where each block of codes is at hand ------------------------


def _loss_fake(h1, h2, prior_probs, weight, signs, kind, num_features, num_codes, seed, temperature, beta, prior,
               need_grad, backend, group="", rows="sharded"):  # fmt: skip
    scalars = [h1.new_empty((), dtype=result_dtype(h1)) for _ in range(3)]
    shape = h1.shape if need_grad else (0,)
    return (*scalars, *(h1.new_empty(shape, dtype=result_dtype(h1)) for _ in range(2)))


def _loss(
    h1: Tensor, h2: Tensor, prior_probs: Optional[Tensor], weight: Optional[Tensor], signs: Optional[Tensor],
    kind: str, num_features: int, num_codes: int, seed: int, temperature: float, beta: float, prior: str,
    need_grad: bool, backend: str, group: str = "", rows: str = "sharded",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(loss, invariance, prior, dL/dh1, dL/dh2); the last two are empty unless `need_grad`."""
    dictionary = rebuild(kind, num_features, num_codes, seed, weight, signs)
    arguments = h1, h2, dictionary, temperature, beta, prior, prior_probs, need_grad
    with _over_ranks(group, h1) as others:
        _check_prior_values(prior, prior_probs)
        module = _select(backend, "cplearn_loss", dictionary, h1, others)
        if others is None:
            return module.cplearn_loss(*arguments)
        return distributed.cplearn_loss(others, module, *arguments, rows)


@contextlib.contextmanager
def _over_ranks(group: str, h: Tensor) -> Iterator[Ranks | None]:
    """The ranks of the group that `group` names, None if there is one process; an error inside is reported to them."""
    others = groups.named(group) if group else None
    if others is None or others.world == 1:
        yield None
        return
    if h.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("process_group: ranks compare their arguments on the host, which no CUDA graph can capture")
    with others.call():
        yield others


def _check_prior_values(prior: str, prior_probs: Tensor | None) -> None:
    # Reading values would make the GPU wait, which a graph cannot capture: there they are taken on trust.
    if prior_probs is not None and not (prior_probs.is_cuda and torch.cuda.is_current_stream_capturing()):
        validation.check_prior_values(prior, prior_probs)


def _loss_backward(upstream: Tensor, grad: Tensor, h: Tensor) -> Tensor:
    """`upstream * grad` in float32, then cast: a gradient scaler's factor arrives before half precision rounds."""
    return (upstream * grad).to(h.dtype, memory_format=torch.contiguous_format, copy=True)


loss = _operator("loss", _loss_fake)(_loss)
loss_backward = _operator(
    "loss_backward", lambda upstream, grad, h: torch.empty_like(h, memory_format=torch.contiguous_format)
)(_loss_backward)


def _loss_setup(ctx, inputs, output):
    h1, h2, need_grad = inputs[0], inputs[1], inputs[12]
    if not need_grad:
        raise RuntimeError("cplearn loss: the operator was called without need_grad, yet an input needs a gradient")
    ctx.save_for_backward(h1, h2, output[3], output[4])


def _loss_autograd(ctx, upstream, *_):
    h1, h2, grad1, grad2 = ctx.saved_tensors
    # With gradients enabled here (create_graph=True) the operator must see the call, so that it can refuse.
    scale = loss_backward if torch.is_grad_enabled() or not _is_direct(h1) else _loss_backward
    return (
        scale(upstream, grad1, h1) if ctx.needs_input_grad[0] else None,
        scale(upstream, grad2, h2) if ctx.needs_input_grad[1] else None,
        *[None] * 14,
    )


_register_autograd(loss, _loss_autograd, _loss_setup)


class _DirectLoss(torch.autograd.Function):
    """The same forward and backward without the operator."""

    backward = staticmethod(_loss_autograd)

    @staticmethod
    def forward(ctx, *arguments):  # a separate setup_context would cost an inspection of the signature in every call
        output = _loss(*arguments)
        _loss_setup(ctx, arguments, output)
        ctx.mark_non_differentiable(*output[1:])
        return output


def call_loss(*arguments: Any) -> Any:
    """`loss(*arguments)`; past the operator where nobody could tell, which saves a small call half of its time."""
    h1, need_grad = arguments[0], arguments[12]
    if not _is_direct(h1):
        return loss(*arguments)
    return _DirectLoss.apply(*arguments) if need_grad else _loss(*arguments)


def _is_direct(h: Tensor) -> bool:
    """Whether a call need not go through an operator: eager mode, plain tensors, nobody watching what is dispatched."""
    return (
        not torch.compiler.is_compiling()
        and type(h) in (Tensor, torch.nn.Parameter)
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
    )


# --- functions of one batch: f(h, dictionary, temperature) ----------------------------------------------------------


def _unary(name: str, shape: Callable[[Tensor, int], tuple[int, ...]]) -> tuple[Any, Any]:
    """Operators `name` and `name_backward` for a function of one batch whose result has shape `shape(h, num_codes)`."""

    def fake(h, weight, signs, kind, num_features, num_codes, seed, temperature, backend):
        return h.new_empty(shape(h, num_codes), dtype=result_dtype(h))

    @_operator(name, fake)
    def forward(
        h: Tensor, weight: Optional[Tensor], signs: Optional[Tensor], kind: str, num_features: int, num_codes: int,
        seed: int, temperature: float, backend: str,
    ) -> Tensor:  # fmt: skip
        dictionary = rebuild(kind, num_features, num_codes, seed, weight, signs)
        return getattr(_select(backend, name, dictionary, h), name)(h, dictionary, temperature)

    def backward_fake(upstream, h, output, weight, signs, kind, num_features, num_codes, seed, temperature, backend):
        return torch.empty_like(h, memory_format=torch.contiguous_format)

    @_operator(f"{name}_backward", backward_fake)
    def backward(
        upstream: Tensor, h: Tensor, output: Optional[Tensor], weight: Optional[Tensor], signs: Optional[Tensor],
        kind: str, num_features: int, num_codes: int, seed: int, temperature: float, backend: str,
    ) -> Tensor:  # fmt: skip
        dictionary = rebuild(kind, num_features, num_codes, seed, weight, signs)
        module = _select(backend, name, dictionary, h)
        if name == "projector_logsumexp":  # dL/dh_i = v_i B_i / temperature for v = upstream
            return module.expected_code(h, dictionary, temperature).mul_((upstream / temperature)[:, None]).to(h.dtype)
        kept = () if output is None else (output,)
        return getattr(module, f"{name}_backward")(upstream, h, *kept, dictionary, temperature).to(h.dtype)

    keeps_output = name == "projector_softmax"  # its gradient is written in p; the others recompute what they need

    def setup(ctx, inputs, output):
        h, weight, signs, *ctx.settings = inputs
        ctx.save_for_backward(h, output if keeps_output else None, weight, signs)

    def autograd(ctx, upstream):
        h, output, weight, signs = ctx.saved_tensors
        return backward(upstream, h, output, weight, signs, *ctx.settings), *[None] * 8

    _register_autograd(forward, autograd, setup)
    return forward, backward


projector_softmax, projector_softmax_backward = _unary("projector_softmax", lambda h, c: (h.shape[0], c))
projector_logsumexp, projector_logsumexp_backward = _unary("projector_logsumexp", lambda h, c: (h.shape[0],))
expected_code, expected_code_backward = _unary("expected_code", lambda h, c: h.shape)
mean_assignment, mean_assignment_backward = _unary("mean_assignment", lambda h, c: (c,))


# --- mean_assignment over many processes ------------------------------------------------------------------------------


def _mean_fake(h, weight, signs, kind, num_features, num_codes, seed, temperature, backend, group, rows):
    return h.new_empty(num_codes, dtype=result_dtype(h)), torch.empty((), dtype=torch.float64)


@_operator("mean_assignment_over_ranks", _mean_fake)
def mean_assignment_over_ranks(
    h: Tensor, weight: Optional[Tensor], signs: Optional[Tensor], kind: str, num_features: int, num_codes: int,
    seed: int, temperature: float, backend: str, group: str, rows: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(p̄ of all ranks' rows, what the gradient of p̄ of this rank's rows alone must be multiplied with)."""
    dictionary = rebuild(kind, num_features, num_codes, seed, weight, signs)
    with _over_ranks(group, h) as others:
        module = _select(backend, "mean_assignment", dictionary, h, others)
        if others is None:
            return module.mean_assignment(h, dictionary, temperature), torch.ones((), dtype=torch.float64)
        return distributed.mean_assignment(others, module, h, dictionary, temperature, rows)


def _mean_setup(ctx, inputs, output):
    h, weight, signs, *ctx.settings = inputs
    ctx.save_for_backward(h, weight, signs, output[1])


def _mean_autograd(ctx, upstream, _):
    h, weight, signs, factor = ctx.saved_tensors
    *settings, _, _ = ctx.settings
    return mean_assignment_backward(upstream * factor, h, None, weight, signs, *settings), *[None] * 10


_register_autograd(mean_assignment_over_ranks, _mean_autograd, _mean_setup)


# --- assign: no gradient ---------------------------------------------------------------------------------------------


def _assign_fake(h, weight, signs, kind, num_features, num_codes, seed, top_k, backend, group="", rows="sharded"):
    shape = (h.shape[0], top_k)
    return h.new_empty(shape, dtype=result_dtype(h)), h.new_empty(shape, dtype=torch.int64)


@_operator("assign", _assign_fake)
def assign(
    h: Tensor, weight: Optional[Tensor], signs: Optional[Tensor], kind: str, num_features: int, num_codes: int,
    seed: int, top_k: int, backend: str, group: str = "", rows: str = "sharded",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(scores, codes), each `(n, top_k)`."""
    dictionary = rebuild(kind, num_features, num_codes, seed, weight, signs)
    with _over_ranks(group, h) as others:
        module = _select(backend, "assign", dictionary, h, others)
        if others is None:
            return module.assign(h, dictionary, top_k)
        return distributed.assign(others, module, h, dictionary, top_k, rows)


# --- second derivatives ----------------------------------------------------------------------------------------------


def _refuse_double_backward(operator) -> None:
    name = operator._schema.name

    def refuse(ctx, *_):
        raise NotImplementedError(
            f"{name}: second derivatives are not implemented by the fused backends; "
            'backend="reference" is differentiable any number of times'
        )

    _register_autograd(operator, refuse, lambda ctx, inputs, output: None)


for _backward in (loss_backward, projector_softmax_backward, projector_logsumexp_backward, expected_code_backward,
                  mean_assignment_backward):  # fmt: skip
    _refuse_double_backward(_backward)
