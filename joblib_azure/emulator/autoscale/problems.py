"""What can be wrong with a formula: as text, or when it is evaluated.

FormulaProblem
├── SyntaxProblem        the text: 400 when a pool is to have it
│   └── FormulaTooLong
└── EvaluationProblem    the evaluation: the pool's autoScaleRun says so, and its targets stay
"""

from __future__ import annotations

from typing import Any


class FormulaProblem(Exception):
    """A code of the service, and where in the text the problem is."""

    code = "AutoScalingFormulaEvaluationError"
    text = "The autoscaling formula cannot be evaluated."

    def __init__(self, detail: str, position: tuple[int, int] | None = None) -> None:
        place = f"Line {position[0]}, Col {position[1]}: " if position else ""
        super().__init__(place + detail)
        self.detail = detail
        self.position = position

    def shape(self) -> dict[str, Any]:
        """The error of an `autoScaleRun`."""
        return {
            "code": self.code,
            "message": self.text,
            "values": [{"name": "Message", "value": str(self)}],
        }


class SyntaxProblem(FormulaProblem):
    """The text is no formula."""

    code = "AutoScalingFormulaSyntaxError"
    text = "The specified autoscaling formula has a syntax error."


class FormulaTooLong(SyntaxProblem):
    """More bytes than the service takes."""

    code = "AutoScalingFormulaTooLong"
    text = "The specified autoscaling formula exceeds the maximum length."


class EvaluationProblem(FormulaProblem):
    """An operation that its operands do not have, an index that is not there, a target that is no number of nodes."""


class InsufficientSamples(EvaluationProblem):
    """`GetSample` demanded more samples than there are."""

    code = "InsufficientSampleData"
    text = "Autoscale evaluation failed due to insufficient sample data"
