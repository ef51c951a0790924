"""SwAV: each view predicts the other's soft assignment to prototypes, evened by Sinkhorn (Caron et al., 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from train.config import Config
from train.distributed.gather import average, gather_rows
from train.methods.projector import projector


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int = 3) -> Tensor:
    """Soft assignments (n, K) of n samples to K prototypes in which each prototype gets about n/K of the samples.

    `scores` (n, K) are cosines; exp(scores/epsilon) is scaled to equal columns and then to rows that sum to 1, a fixed
    number of times. In logarithms, so that no epsilon overflows.
    """
    logits = scores.float() / epsilon
    for _ in range(iterations):
        logits = logits - logits.logsumexp(dim=0, keepdim=True)
        logits = logits - logits.logsumexp(dim=1, keepdim=True)
    return logits.exp()


def cosines(h: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines (n, K) of unit embeddings (n, f) and prototypes (K, f) of any length."""
    return h @ nn.functional.normalize(prototypes, dim=1).T


class SwAV(nn.Module):
    """Backbone, two-layer projector, prototypes and loss of SwAV, with an optional queue of earlier embeddings.

    The queue adds the last `queue_length` embeddings of each view to Sinkhorn's samples, which a batch smaller than the
    number of prototypes needs; it is used once it is full. Prototypes stand still for the first `freeze_prototypes`
    steps, as they do in the paper for an epoch.
    """

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        self.temperature, self.epsilon = config.swav_temperature, config.sinkhorn_epsilon
        self.frozen_steps, self.num_clusters = config.freeze_prototypes, config.num_prototypes
        self.backbone = backbone
        self.head = nn.Sequential(
            projector(backbone.out_features, config.projector_hidden, 1, config.num_features), UnitRows()
        )
        # Of unit length: gradients are divided by the length, and longer prototypes would hardly turn.
        rows = torch.randn(config.num_prototypes, config.num_features)
        self.prototypes = nn.Parameter(nn.functional.normalize(rows, dim=1))
        self.prototypes.register_hook(average)
        # Buffers, so that a checkpoint has them and a resumed run goes on exactly.
        self.register_buffer("queue", torch.zeros(2, config.queue_length, config.num_features))
        self.register_buffer("queued", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def loss(self, h1: Tensor, h2: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy, over both orders, of one view's predictions against the other view's assignments.

        Embeddings are (n, f) unit rows. In training mode a call also counts a step and moves the queue. With many
        processes each hands in its rows; assignments, loss and queue are those of all of them.

        Returns:
            The 0-d loss and `assignment_entropy`, the mean entropy in nats of the assignments, detached.
        """
        h1, h2 = gather_rows(h1), gather_rows(h2)
        # With frozen prototypes the gradient reaches the encoder alone.
        frozen = self.training and int(self.steps) < self.frozen_steps
        prototypes = self.prototypes.detach() if frozen else self.prototypes
        scores = [cosines(h, prototypes) for h in (h1, h2)]
        targets = [self._assignments(view, s.detach()) for view, s in enumerate(scores)]
        log_p = [torch.log_softmax(s.float() / self.temperature, dim=1) for s in scores]
        loss = -0.5 * ((targets[0] * log_p[1]).sum(1).mean() + (targets[1] * log_p[0]).sum(1).mean())
        entropy = -0.5 * sum(torch.xlogy(q, q).sum(1).mean() for q in targets)
        if self.training:
            self._advance(h1.detach(), h2.detach())
        return loss, {"assignment_entropy": entropy}

    def assign(self, h: Tensor) -> Tensor:
        """The nearest prototype of each embedding (n, f), int64 (n,)."""
        return cosines(h, self.prototypes).argmax(dim=1)

    def lines(self) -> dict[str, float]:
        """The loss of predictions that tell nothing."""
        return {"log K (uniform predictions)": math.log(self.num_clusters)}

    @torch.no_grad()
    def _assignments(self, view: int, scores: Tensor) -> Tensor:
        length = self.queue.shape[1]
        if length == 0 or int(self.queued) < length:
            return sinkhorn(scores, self.epsilon)
        everything = torch.cat([cosines(self.queue[view], self.prototypes), scores])
        return sinkhorn(everything, self.epsilon)[length:]

    @torch.no_grad()
    def _advance(self, h1: Tensor, h2: Tensor) -> None:
        self.steps += 1
        if length := self.queue.shape[1]:
            for view, h in enumerate((h1, h2)):
                self.queue[view] = torch.cat([h, self.queue[view]])[:length]
            self.queued.copy_((self.queued + len(h1)).clamp(max=length))


class UnitRows(nn.Module):
    """Rows (n, f) scaled to unit length."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x.float(), dim=1)
