"""Barlow Twins: the cross-correlation of two views' embeddings is driven to the identity (Zbontar et al., 2021)."""

from __future__ import annotations

from torch import Tensor, nn

from train.config import Config
from train.distributed.gather import gather_rows
from train.methods.projector import projector


class BarlowTwins(nn.Module):
    """Backbone, three-layer projector and loss of Barlow Twins.

    The head ends in a batch norm without weights, so embeddings are standardised over the batch in training and by the
    running statistics in evaluation.
    """

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        self.off_diagonal, self.num_clusters = config.barlow_lambda, config.num_features
        self.backbone = backbone
        self.head = nn.Sequential(
            projector(backbone.out_features, config.projector_hidden, 2, config.num_features),
            nn.BatchNorm1d(config.num_features, affine=False),
        )

    def loss(self, h1: Tensor, h2: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of two views' standardised embeddings (n, f): Σ_k (1 − C_kk)² + λ Σ_{k≠l} C_kl², C = h1ᵀ h2 / n.

        With many processes each hands in its rows and n is the number of all of them.

        Returns:
            The 0-d loss and its two sums, `invariance` and `redundancy` (without λ), detached.
        """
        h1, h2 = gather_rows(h1), gather_rows(h2)
        correlation = h1.T @ h2 / len(h1)
        diagonal = correlation.diagonal()
        invariance = (1 - diagonal).square().sum()
        redundancy = correlation.square().sum() - diagonal.square().sum()
        loss = invariance + self.off_diagonal * redundancy
        return loss, {"invariance": invariance.detach(), "redundancy": redundancy.detach()}

    def assign(self, h: Tensor) -> Tensor:
        """The coordinate that is largest, int64 (n,): as the paper's authors cluster methods without prototypes."""
        return h.argmax(dim=1)

    def lines(self) -> dict[str, float]:
        """The loss of two views that have nothing in common: every coordinate misses its 1, no others correlate."""
        return {"f (unrelated views)": float(self.num_clusters)}
