"""CPLearn: embeddings of two views are assigned to a fixed dictionary of codes, evenly and alike."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import cplearn_kernels as cpk
from train.config import Config
from train.errors import InputError

SEEDED = {"hadamard": cpk.HadamardDictionary, "rademacher": cpk.RademacherDictionary}


def build_dictionary(config: Config) -> cpk.HadamardDictionary | cpk.RademacherDictionary | cpk.DenseDictionary:
    """The dictionary of f = `num_features` by c = `num_codes` that the configuration names.

    Raises InputError if the file of a dense dictionary is missing, no array or of another shape.
    """
    if config.dictionary != "dense":
        return SEEDED[config.dictionary](config.num_features, config.num_codes, seed=config.seed)
    path, expected = config.dictionary_file, (config.num_features, config.num_codes)
    try:
        weight = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--dictionary-file was {path}, expected an .npy file with the codes ({error}).") from None
    if not isinstance(weight, np.ndarray) or weight.shape != expected or weight.dtype.kind not in "fiu":
        found = f"{weight.dtype} of shape {weight.shape}" if isinstance(weight, np.ndarray) else "an archive"
        raise InputError(
            f"--dictionary-file {path} was {found}, expected numbers of shape {expected}, that is "
            f"(--num-features, --num-codes)."
        )
    return cpk.DenseDictionary(torch.from_numpy(weight.astype(np.float32)))


class CPLearn(nn.Module):
    """Backbone, head and loss of CPLearn.

    With many processes each hands in its rows and computes with its share of the codes; the loss is that of all rows.
    Raises InputError, before any training, if the library rejects the dictionary, the temperature or the backend.
    """

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        self.batch_size, self.num_clusters = config.batch_size, config.num_codes
        self.backbone = backbone
        try:
            dictionary = build_dictionary(config)
            self.head = cpk.CPLearnHead(backbone.out_features, config.num_features, embedding=config.embedding)
            self.criterion = cpk.CPLearnLoss(
                dictionary,
                beta=config.beta,
                prior=config.prior,
                embedding=config.embedding,
                batch_size=config.batch_size,
                eps=config.eps,
                backend=config.backend,
                process_group="world" if dist.is_initialized() else None,
            )
            # Two rows are enough to learn whether the backend runs here at all.
            rows = torch.eye(2, config.num_features, device=config.device)
            self.criterion(rows, rows)
            self.criterion.assign(rows)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise InputError(f"The loss cannot be set up with these options: {str(error).rstrip('.')}.") from error

    def loss(self, h1: Tensor, h2: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of two views' embeddings (n, f), and its `prior` and `invariance` terms, detached."""
        return self.criterion(h1, h2, return_terms=True)

    def assign(self, h: Tensor) -> Tensor:
        """The nearest code of each embedding (n, f), int64 (n,)."""
        return self.criterion.assign(h)[1].flatten()

    def lines(self) -> dict[str, float]:
        """Levels of the loss with the reverse_kl prior, for c codes and batches of n samples.

        log c is the loss when all samples share one code, log(c / min(n, c)) when each has one of its own. The latter
        is the least possible for beta >= 1; for a smaller beta, undecided assignments can go down to beta times that.
        """
        c, beta = self.criterion.dictionary.num_codes, self.criterion.beta
        own = math.log(c / min(self.batch_size, c))
        levels = {"log c (all on one code)": math.log(c), "log(c / min(n, c)) (each on its own)": own}
        return levels if beta >= 1 else levels | {"beta log(c / min(n, c)) (floor)": beta * own}
