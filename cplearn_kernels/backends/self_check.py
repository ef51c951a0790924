"""A small case against the oracle, once per process, backend and GPU, before a GPU backend's first result is used.

A GPU runs machine code that was made elsewhere, by a compiler and for an architecture that may be newer than anything
these kernels have been tested on. The check costs a few launches and one wait for the device; a graph capture cannot
wait, so the first call outside of one does it.
"""

from __future__ import annotations

import torch

from .. import philox, reference
from ..dictionary import HadamardDictionary, RademacherDictionary
from .interface import Backend

# |difference| / |expected|, of the loss and of the gradient: ten times what the conformance suite allows.
_TOLERANCE = 1e-4
_ROWS = 3

_checked: set[tuple[str, str]] = set()


def ensure(backend: Backend, device: torch.device) -> None:
    """Check `backend` on a GPU if that has not been done yet; nothing on other devices.

    Raises:
        RuntimeError: the kernels' result is wrong; no result of theirs on this device is to be trusted.
    """
    key = (backend.NAME, str(device))
    if device.type != "cuda" or key in _checked or torch.cuda.is_current_stream_capturing():
        return
    error = largest_error(backend, device)
    if not error <= _TOLERANCE:
        raise RuntimeError(
            f"backend {backend.NAME!r} gives wrong results on {device} ({torch.cuda.get_device_name(device)}): a small "
            f"loss and its gradient differ from the oracle by {error:.1e}, {_TOLERANCE:.0e} is allowed; use another "
            "backend"
        )
    _checked.add(key)


def largest_error(backend: Backend, device: torch.device) -> float:
    """The largest relative error of loss and gradient over one dictionary of each kind; NaN if a result is."""
    errors = []
    for dictionary in (HadamardDictionary(100, 300, seed=1), RademacherDictionary(40, 200, seed=1)):
        # Logits of size 1, whose rounding moves a probability by 1e-7; it grows with them.
        f, temperature = dictionary.num_features, 1.0
        h1, h2 = _rows(1, f), _rows(2, f)
        exact1, exact2 = h1.double().requires_grad_(), h2.double().requires_grad_()
        with torch.enable_grad():
            loss = reference.cplearn_loss(exact1, exact2, dictionary, temperature=temperature)
            gradients = torch.autograd.grad(loss, [exact1, exact2])
            expected = torch.cat([loss.detach().view(1), *(g.flatten() for g in gradients)])
        h1, h2 = h1.to(device), h2.to(device)
        result = backend.cplearn_loss(h1, h2, dictionary.to(device), temperature, 1.0, "reverse_kl", None, True)
        found = torch.cat([result[0].view(1), *(g.flatten() for g in result[3:])]).cpu().double()
        errors += [
            (part_found - part).norm() / part.norm()
            for part_found, part in ((found[:1], expected[:1]), (found[1:], expected[1:]))
        ]
    return float(torch.stack(errors).max())


def _rows(stream: int, f: int) -> torch.Tensor:
    """Unit rows that are the same everywhere, made without touching PyTorch's generators: two related views."""
    bits = [philox.sign_bits(7, philox.STREAM_RADEMACHER, first, first + _ROWS, 16 * f) for first in (0, 100 * stream)]
    common, noise = (part.float().view(_ROWS, f, 16).sum(2) - 8 for part in bits)
    return torch.nn.functional.normalize(common + 0.5 * noise, dim=1)
