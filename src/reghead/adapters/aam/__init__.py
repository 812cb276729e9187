"""Heads, losses and normalizers of reghead in AAM's SequencePredictor, without a change to AAM.

AAM (Attention All Microbes) is a model of microbial sequences. :func:`attach` gives an existing SequencePredictor a
head of reghead, :func:`loss` gives its MultiTaskLoss any loss, :func:`prepare_trainer` lets its Trainer score in the
target's own units, and :func:`load_predictor` rebuilds any checkpoint from itself. The command ``reghead-aam`` is AAM's
own ``aam train`` and ``aam predict`` with all of this.

Importing it does not import AAM.
"""

from reghead.adapters.aam._attach import attach, detach
from reghead.adapters.aam._command import main
from reghead.adapters.aam._head import TargetHead
from reghead.adapters.aam._labels import encoder_from_aam
from reghead.adapters.aam._load import load_predictor
from reghead.adapters.aam._loss import loss
from reghead.adapters.aam._trainer import prepare_trainer

__all__ = [
    "TargetHead",
    "attach",
    "detach",
    "encoder_from_aam",
    "load_predictor",
    "loss",
    "main",
    "prepare_trainer",
]
