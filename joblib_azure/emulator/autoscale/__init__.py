"""The autoscale language of Batch: what a formula says, for a pool with such samples, at such a time.

    text ─► syntax (tokens, statements) ─► evaluation (values, functions, samples) ─► Outcome: targets and option

After https://learn.microsoft.com/azure/batch/batch-automatic-scaling: its grammar, types, operators, functions,
variables and rules for samples. Nothing here reads a clock or knows a pool, so that formulas can be run over recorded
demand; `joblib_azure.emulator.autoscaler` does both for the emulated service.
"""

from __future__ import annotations

from .evaluation import Outcome, check, evaluate
from .problems import EvaluationProblem, FormulaProblem, FormulaTooLong, SyntaxProblem
from .samples import METRICS, History, Samples
from .syntax import MAX_BYTES, MAX_STATEMENTS, Formula, parse

__all__ = [
    "MAX_BYTES",
    "MAX_STATEMENTS",
    "METRICS",
    "EvaluationProblem",
    "Formula",
    "FormulaProblem",
    "FormulaTooLong",
    "History",
    "Outcome",
    "Samples",
    "SyntaxProblem",
    "check",
    "evaluate",
    "parse",
]
