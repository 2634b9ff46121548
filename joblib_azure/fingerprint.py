"""By what a call is recognised when its script runs again, in another process.

The bytes of a pickled function differ from process to process where it comes from ``__main__``, so a function is
described by what it is: its name, its code, its defaults, what it closes over, and the globals that its code names,
with their own in turn where they are the user's. What comes from an installed package is its name and that package's
version. Arguments are hashed by `joblib.hash`.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import joblib

from .environment.usercode import is_own_file

_BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
#: Attributes of a class that say nothing of what it does.
_SILENT = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__"})


def fingerprints(items: Iterable[tuple[Any, Sequence[Any], Mapping[str, Any]]]) -> list[str]:
    """Return the fingerprints of some calls; empty for one whose arguments cannot be hashed, which equals no other.

    Parameters
    ----------
    items : iterable of (callable, sequence, mapping)
        As ``joblib.parallel.BatchedCalls.items`` has them. No code of the user's may run meanwhile: what several have
        in common is looked at once.
    """
    look = _Look()
    return [look.call(*item) for item in items]


class _Look:
    """One look at some objects; what was seen is remembered by its identity, which lasts as long as the look."""

    def __init__(self) -> None:
        self._seen: dict[int, str] = {}
        self._alive: list[Any] = []

    def call(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        try:
            parts = [self.described(function), *map(self.described, args)]
            parts += [f"{name}={self.described(kwargs[name])}" for name in sorted(kwargs)]
        except Exception:  # whatever a user's __reduce__ raises: such a call runs again
            return ""
        return _digest(parts)

    def described(self, value: Any) -> str:
        """Return a digest of a function, a class or an argument."""
        if value is None or isinstance(value, bool | int | float | str):
            return f"{type(value).__name__}:{value!r}"
        known = self._seen.get(id(value))
        if known is None:
            # What refers to itself is described by its place from there on.
            self._seen[id(value)] = f"again:{len(self._seen)}"
            self._alive.append(value)
            known = self._seen[id(value)] = _digest(self._parts(value))
        return known

    def _parts(self, value: Any) -> Iterator[str]:
        if isinstance(value, functools.partial):
            yield "partial"
            yield self.described(value.func)
            yield from map(self.described, value.args)
            yield from (f"{name}={self.described(value.keywords[name])}" for name in sorted(value.keywords))
        elif isinstance(value, types.MethodType):
            yield "method"
            yield self.described(value.__func__)
            yield self.described(value.__self__)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, _BUILTIN):
            yield f"builtin {getattr(value, '__module__', '')}.{value.__qualname__}"
        elif isinstance(value, types.ModuleType):
            yield f"module {value.__name__} {getattr(value, '__version__', '')}"
        else:
            yield f"value {joblib.hash(value)}"
            if _is_own(type(value)):
                yield self.described(type(value))

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        yield f"function {function.__module__}.{function.__qualname__}"
        if not _is_own(function):
            yield _version(function.__globals__.get("__name__", ""))
            return
        yield from self._code(function.__code__)
        yield from map(self.described, function.__defaults__ or ())
        defaults = function.__kwdefaults__ or {}
        yield from (f"{name}={self.described(defaults[name])}" for name in sorted(defaults))
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:
                yield "empty"
            else:
                yield self.described(content)
        names = sorted(set(_names(function.__code__)))
        for name in names:
            if name in function.__globals__:
                found = function.__globals__[name]
                yield f"{name}={self._global(found)}"
                if isinstance(found, types.ModuleType) and is_own_file(getattr(found, "__file__", None) or ""):
                    # A module of the user's: what of it the code names.
                    yield from (f".{each}={self._global(vars(found)[each])}" for each in names if each in vars(found))

    def _global(self, value: Any) -> str:
        try:
            return self.described(value)
        except Exception:  # a lock, a connection: no data that a result could depend on and be repeated
            return f"a {type(value).__module__}.{type(value).__qualname__}"

    def _code(self, code: types.CodeType) -> Iterator[str]:
        yield code.co_code.hex()
        yield " ".join((*code.co_names, "|", *code.co_varnames, "|", *code.co_freevars))
        yield f"{code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount} {code.co_flags}"
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from self._code(constant)
            elif isinstance(constant, frozenset):  # whose order differs from process to process
                yield f"frozenset {sorted(map(repr, constant))}"
            else:
                yield f"{type(constant).__name__}:{constant!r}"

    def _class(self, cls: type) -> Iterator[str]:
        yield f"class {cls.__module__}.{cls.__qualname__}"
        if not _is_own(cls):
            yield _version(cls.__module__)
            return
        yield from map(self.described, cls.__bases__)
        for name in sorted(vars(cls).keys() - _SILENT):
            value = vars(cls)[name]
            if isinstance(value, staticmethod | classmethod):
                value = value.__func__
            if isinstance(value, property):
                yield from (f"{name}={self._global(each)}" for each in (value.fget, value.fset) if each is not None)
            else:
                yield f"{name}={self._global(value)}"


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names that a code and those within it look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_own(thing: Any) -> bool:
    """Whether a function or a class is the user's: its module is ``__main__``, or lies in no ``site-packages``."""
    name = getattr(thing, "__module__", None) or ""
    if name == "__main__":
        return True
    if name.partition(".")[0] in sys.stdlib_module_names:
        return False
    if isinstance(thing, types.FunctionType) and thing.__code__.co_filename.startswith("<"):
        return True
    return is_own_file(getattr(sys.modules.get(name), "__file__", None) or "")


def _version(module: str) -> str:
    return str(getattr(sys.modules.get(module.partition(".")[0]), "__version__", ""))


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass")
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()[:32]
