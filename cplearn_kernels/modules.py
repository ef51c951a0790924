"""`CPLearnHead` and `CPLearnLoss`: the library as nn.Modules, for `loss = criterion(head(f1), head(f2))`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import nn

from . import validation
from .dictionary import Dictionary, describe_identity
from .distributed import groups
from .functional import assign, cplearn_loss
from .options import BackendName, Embedding, Group, Prior, Rows
from .reference import LossAndTerms
from .temperature import default_temperature


class CPLearnHead(nn.Module):
    """Features to embeddings: `Linear -> BatchNorm1d -> L2-normalise` ("l2") or `... -> tanh` ("tanh").

    Args:
        in_features: width of the backbone's features.
        num_features: f, the width of the embedding and of the dictionary.
        embedding: "l2" (the paper: unit rows) or "tanh" (the authors' code).

    Raises:
        ValueError: a size below 1, or an unknown embedding.

    Example:
        >>> CPLearnHead(512, 2048)(torch.randn(64, 512)).norm(dim=1)     # ones
    """

    def __init__(self, in_features: int, num_features: int = 2048, *, embedding: Embedding = "l2") -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("num_features", num_features)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        validation.check_embedding(embedding)
        self.embedding = embedding
        # The normalisation's shift takes the place of a bias.
        self.linear = nn.Linear(in_features, num_features, bias=False)
        self.norm = nn.BatchNorm1d(num_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`(n, in_features)` to `(n, num_features)`."""
        h = self.norm(self.linear(features))
        return nn.functional.normalize(h, dim=1) if self.embedding == "l2" else torch.tanh(h)

    def extra_repr(self) -> str:
        return f"embedding={self.embedding!r}"


class CPLearnLoss(nn.Module):
    """`cplearn_loss` with its dictionary and settings; `(h1, h2)` to a scalar.

    The state dict holds one uint8 tensor, the identity of the dictionary (kind, sizes, seed, bit-layout version; for a
    dense one the SHA-256 of its matrix too). Loading the state of another dictionary is an error.

    Args:
        dictionary: the codes.
        temperature: a positive number; None means `default_temperature` for `embedding`.
        beta, prior, prior_probs, process_group, rows, backend: as for `cplearn_loss`. A module that is copied or
            pickled wants process_group="world": a ProcessGroup can be neither.
        embedding: "l2" or "tanh": what the default temperature assumes of the inputs.
        batch_size: the global batch size; needed for the default temperature of "tanh".
        eps: see `default_temperature`.

    Raises:
        TypeError, ValueError: bad arguments, here and not in the first forward.

    Example:
        >>> criterion = CPLearnLoss(HadamardDictionary(2048, 1 << 20))
        >>> criterion(head(f1), head(f2)).backward()
    """

    def __init__(
        self,
        dictionary: Dictionary,
        *,
        temperature: float | None = None,
        beta: float = 1.0,
        prior: Prior = "reverse_kl",
        prior_probs: torch.Tensor | None = None,
        embedding: Embedding = "l2",
        batch_size: int | None = None,
        eps: float | None = None,
        process_group: Group = None,
        rows: Rows = "sharded",
        backend: BackendName | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(dictionary, Dictionary):
            raise TypeError(f"dictionary: expected a Dictionary of this library, got {type(dictionary).__name__}")
        validation.check_embedding(embedding)
        validation.check_prior(prior, prior_probs, dictionary.num_codes)
        if prior_probs is not None:
            validation.check_prior_values(prior, prior_probs)
            prior_probs = prior_probs.detach().clone()
        groups.check_kind(process_group)
        validation.check_rows(rows)
        validation.check_backend(backend)
        if temperature is None:
            temperature = default_temperature(
                dictionary.num_features, dictionary.num_codes, embedding=embedding, batch_size=batch_size, eps=eps
            )
        self.dictionary = dictionary
        self.prior_probs: torch.Tensor | None
        self.dictionary_identity: torch.Tensor
        self.temperature = validation.check_temperature(temperature)
        self.beta = validation.check_beta(beta)
        self.prior = prior
        self.embedding = embedding
        self.process_group = process_group
        self.rows = rows
        self.backend = backend
        self.register_buffer("prior_probs", prior_probs, persistent=False)
        identity = torch.tensor(list(dictionary.identity()), dtype=torch.uint8)
        self.register_buffer("dictionary_identity", identity)

    @overload
    def forward(self, h1: torch.Tensor, h2: torch.Tensor, *, return_terms: Literal[False] = False) -> torch.Tensor: ...

    @overload
    def forward(self, h1: torch.Tensor, h2: torch.Tensor, *, return_terms: Literal[True]) -> LossAndTerms: ...

    @overload
    def forward(self, h1: torch.Tensor, h2: torch.Tensor, *, return_terms: bool) -> torch.Tensor | LossAndTerms: ...

    def forward(self, h1: torch.Tensor, h2: torch.Tensor, *, return_terms: bool = False) -> torch.Tensor | LossAndTerms:
        """Embeddings `(n, num_features)` of two views to the loss, or to `(loss, terms)`; see `cplearn_loss`."""
        return cplearn_loss(
            h1, h2, self.dictionary, temperature=self.temperature, beta=self.beta, prior=self.prior,
            prior_probs=self.prior_probs, return_terms=return_terms, process_group=self.process_group, rows=self.rows,
            backend=self.backend,
        )  # fmt: skip

    def assign(self, h: torch.Tensor, top_k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """The best codes of each row: (scores, codes), each `(n, top_k)`; see `cplearn_kernels.assign`.

        Of this process's rows alone, without the process group: one rank may call it when the others do not.
        """
        return assign(h, self.dictionary, top_k=top_k, backend=self.backend)

    def extra_repr(self) -> str:
        return (
            f"{self.dictionary!r}, temperature={self.temperature:.6g}, beta={self.beta}, prior={self.prior!r}, "
            f"backend={self.backend!r}{self._group_repr()}"
        )

    def _group_repr(self) -> str:
        if self.process_group is None:
            return ""
        return f", process_group={groups.name_of(self.process_group)!r}, rows={self.rows!r}"

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> CPLearnLoss:
        prior_probs = self.prior_probs
        super()._apply(fn, *args, **kwargs)
        device = self.dictionary_identity.device
        self.dictionary = self.dictionary.to(device)
        if prior_probs is not None:
            # `.half()` on a whole model must not round the prior.
            self.prior_probs = prior_probs.to(device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, torch.Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        errors: list[str],
    ) -> None:
        key = prefix + "dictionary_identity"
        if key in state_dict:
            # A state dict that was cast as a whole holds the bytes as floats, exactly.
            stored = bytes(state_dict[key].flatten().to(torch.uint8).tolist())
            if stored != self.dictionary.identity():
                errors.append(
                    f"{key}: the state was saved with a {describe_identity(stored)}, "
                    f"but this module has a {describe_identity(self.dictionary.identity())}"
                )
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors
        )  # fmt: skip
