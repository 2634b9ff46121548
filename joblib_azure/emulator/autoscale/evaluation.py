"""Evaluating a formula: statement by statement, into targets and a deallocation option, or into a problem.

Names are checked before anything is evaluated: a function, a service variable or a method that there is not, a variable
that is read before it is set, and a read-only one that is set are errors of the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

from . import functions, syntax, values
from .problems import EvaluationProblem, FormulaProblem, SyntaxProblem
from .samples import ALIASES, METRICS, RETIRED, Samples
from .values import Value

_DEDICATED, _SPOT, _OPTION = "$TargetDedicatedNodes", "$TargetLowPriorityNodes", "$NodeDeallocationOption"
#: A target by its full name wins over its alias, whichever is set last.
_TARGET_ALIASES = {"$TargetDedicated": _DEDICATED, "$TargetLowPriority": _SPOT}
#: The service counts nodes in 32 bits.
_MOST_NODES = float(2**31)
_READ_WRITE = frozenset({_DEDICATED, _SPOT, _OPTION, *_TARGET_ALIASES})
_READ_ONLY = frozenset({*METRICS, *RETIRED, *ALIASES})
_METHODS = frozenset({"GetSample", "GetSamplePercent", "GetSamplePeriod", "Count", "HistoryBeginTime"})
_CONSTANTS: Mapping[str, Value] = {**values.INTERVALS, **{option: option for option in values.OPTIONS}}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a formula came to."""

    dedicated: int
    spot: int
    option: str
    #: All variables that were set, as they ended.
    variables: Mapping[str, Value] = field(default_factory=dict)
    #: What kept the formula from its end; the targets are those from before then.
    problem: FormulaProblem | None = None

    @property
    def results(self) -> str:
        """The `results` of an `autoScaleRun`."""
        first: dict[str, Value] = {_DEDICATED: float(self.dedicated), _SPOT: float(self.spot), _OPTION: self.option}
        others = {name: self.variables[name] for name in sorted(self.variables) if name not in _READ_WRITE}
        return ";".join(f"{name}={values.written(value)}" for name, value in {**first, **others}.items())


def check(formula: syntax.Formula) -> None:
    """Check the names in a formula.

    Raises
    ------
    SyntaxProblem
    """
    known = {*_READ_WRITE, *_READ_ONLY, *_CONSTANTS}
    for statement in formula.statements:
        _check(statement.expression, known)
        if statement.name is not None:
            if statement.name in _READ_ONLY or statement.name in _CONSTANTS:
                raise SyntaxProblem(f"'{statement.name}' cannot be assigned", statement.at)
            known.add(statement.name)


def _check(expression: syntax.Expression, known: set[str]) -> None:
    if isinstance(expression, syntax.Name):
        if expression.name not in known:
            raise SyntaxProblem(f"'{expression.name}' is not defined", expression.at)
    elif isinstance(expression, syntax.Function):
        if expression.name not in functions.FUNCTIONS:
            raise SyntaxProblem(f"There is no function '{expression.name}'", expression.at)
        for argument in expression.arguments:
            _check(argument, known)
    elif isinstance(expression, syntax.Member):
        allowed = values.MEMBERS if expression.arguments is None else _METHODS
        if expression.name not in allowed:
            raise SyntaxProblem(f"There is no member '{expression.name}'", expression.at)
        _check(expression.owner, known)
        for argument in expression.arguments or ():
            _check(argument, known)
    elif isinstance(expression, syntax.Unary):
        _check(expression.operand, known)
    elif isinstance(expression, syntax.Binary):
        first, operations = expression.chain()
        _check(first, known)
        for operation in operations:
            _check(operation.right, known)
    elif isinstance(expression, syntax.Ternary):
        for part in (expression.condition, expression.positive, expression.negative):
            _check(part, known)


def evaluate(
    formula: syntax.Formula,
    samples: Samples,
    *,
    dedicated: int,
    spot: int,
    option: str = "requeue",
    current: Mapping[str, float] | None = None,
) -> Outcome:
    """Evaluate a formula whose names are known to be right (`check`).

    Parameters
    ----------
    formula : Formula
    samples : Samples
        With the moment that `time()` gives.
    dedicated, spot : int
        The pool's targets as they are.
    option : str
        The deallocation option that holds where the formula sets none.
    current : mapping, optional
        What a read-only variable is without a method: `$TaskSlotsPerNode` and the like. Others are their latest sample.
    """
    run = _Run(samples, dict(current or {}))
    run.variables = {_DEDICATED: float(dedicated), _SPOT: float(spot), _OPTION: option}
    before = Outcome(dedicated=dedicated, spot=spot, option=option)
    try:
        run.run(formula)
        return run.outcome(before)
    except FormulaProblem as exc:
        kept = {name: value for name, value in run.variables.items() if name not in _READ_WRITE}
        return Outcome(dedicated=dedicated, spot=spot, option=option, variables=kept, problem=exc)


class _Run:
    def __init__(self, samples: Samples, current: dict[str, float]) -> None:
        self._samples = samples
        self._current = current
        self._now = samples.now.astimezone(timezone.utc)
        self._set: set[str] = set()
        self.variables: dict[str, Value] = {}

    def run(self, formula: syntax.Formula) -> None:
        for statement in formula.statements:
            try:
                value = self._value(statement.expression)
            except functions.Stop:
                return
            if statement.name is not None:
                self._assign(statement.name, value)

    def _assign(self, name: str, value: Value) -> None:
        full = _TARGET_ALIASES.get(name)
        if full is not None:
            if full in self._set:
                return
            self.variables[full] = value
            return
        if name == _OPTION and value not in values.OPTIONS:
            raise EvaluationProblem(f"{_OPTION} is {values.written(value)}; one of {', '.join(values.OPTIONS)} is")
        self._set.add(name)
        self.variables[name] = value

    def outcome(self, before: Outcome) -> Outcome:
        return Outcome(
            dedicated=self._target(_DEDICATED),
            spot=self._target(_SPOT),
            option=str(self.variables.get(_OPTION, before.option)),
            variables=dict(self.variables),
        )

    def _target(self, name: str) -> int:
        value = self.variables[name]
        if isinstance(value, tuple) and len(value) == 1:
            value = value[0]  # as the page's own example of preempted nodes has it: min(25, v.GetSample(…))
        if not isinstance(value, float) or not 0 <= value < _MOST_NODES:
            raise EvaluationProblem(f"{name} is {values.written(value)}, which is no number of nodes")
        return int(value)

    # -- expressions --------------------------------------------------------------------------------------------------

    def _value(self, expression: syntax.Expression) -> Value:
        try:
            return self._value_of(expression)
        except FormulaProblem as exc:
            if exc.position is not None:
                raise
            raise type(exc)(exc.detail, expression.at) from None

    def _value_of(self, expression: syntax.Expression) -> Value:
        if isinstance(expression, (syntax.Number, syntax.Text)):
            return expression.value
        if isinstance(expression, syntax.Name):
            return self._named(expression.name)
        if isinstance(expression, syntax.Unary):
            return values.unary(expression.operator, self._value(expression.operand))
        if isinstance(expression, syntax.Binary):
            return self._chain(expression)
        if isinstance(expression, syntax.Ternary):
            condition = self._value(expression.condition)
            if not isinstance(condition, float):
                raise EvaluationProblem(f"A condition is a double, not a {values.type_of(condition)}")
            return self._value(expression.positive if condition else expression.negative)
        if isinstance(expression, syntax.Function):
            arguments = [self._value(each) for each in expression.arguments]
            return functions.call(expression.name, arguments, self._now)
        return self._member(expression)

    def _chain(self, expression: syntax.Binary) -> Value:
        first, operations = expression.chain()
        found = self._value(first)
        for operation in operations:
            right = self._value(operation.right)
            try:
                found = values.binary(operation.operator, found, right)
            except EvaluationProblem as exc:
                raise type(exc)(exc.detail, operation.at) from None
        return found

    def _named(self, name: str) -> Value:
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name in _READ_ONLY:
            plain = ALIASES.get(name, name)
            if plain in self._current:
                return float(self._current[plain])
            latest = self._samples.read(name).call("GetSample", [1.0])
            if not latest:
                raise EvaluationProblem(f"No data in data set: {name}")
            return latest[0] if isinstance(latest, tuple) else latest
        name = _TARGET_ALIASES.get(name, name)
        if name not in self.variables:  # set only behind a `stop()`, or not by the branch that was taken
            raise EvaluationProblem(f"'{name}' is not defined")
        return self.variables[name]

    def _member(self, expression: syntax.Member) -> Value:
        if expression.arguments is not None:
            owner = expression.owner
            if not isinstance(owner, syntax.Name) or owner.name not in _READ_ONLY:
                raise EvaluationProblem(f"'{expression.name}' is a method of the service's variables only")
            arguments = [self._value(each) for each in expression.arguments]
            return self._samples.read(owner.name).call(expression.name, arguments)
        moment = self._value(expression.owner)
        if not isinstance(moment, datetime):
            raise EvaluationProblem(f"A {values.type_of(moment)} has no member '{expression.name}'")
        return float(values.MEMBERS[expression.name](moment))
