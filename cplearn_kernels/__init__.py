"""cplearn-kernels: fused projector-softmax and CPLearn loss for dictionaries far larger than memory."""

import torch  # noqa: F401  first: it brings the OpenMP runtime that the compiled core then shares

from . import errors, reference
from .backends import backends
from .dictionary import DenseDictionary, Dictionary, HadamardDictionary, RademacherDictionary
from .functional import (
    assign,
    cplearn_loss,
    expected_code,
    mean_assignment,
    projector_logsumexp,
    projector_softmax,
)
from .modules import CPLearnHead, CPLearnLoss
from .temperature import default_temperature
from .version import __version__ as __version__

__all__ = [
    "CPLearnHead",
    "CPLearnLoss",
    "DenseDictionary",
    "Dictionary",
    "HadamardDictionary",
    "RademacherDictionary",
    "assign",
    "backends",
    "cplearn_loss",
    "default_temperature",
    "errors",
    "expected_code",
    "mean_assignment",
    "projector_logsumexp",
    "projector_softmax",
    "reference",
]
