"""pytest plugin: lets joblib's own tests run over the azure backend, in one of three modes.

alias
    The name "loky" means the azure backend, so what joblib demands of its default backend is demanded of it.
default
    "azure" is joblib's default backend, and the one for ``prefer="processes"``.
name
    "azure" is registered and nothing more; joblib's parametrisations over all backends include it.

It is active before `joblib.test.test_parallel` is imported, which reads the registered backends then.
"""

from __future__ import annotations

import ast
import inspect
import os
import sys
import textwrap
from collections.abc import Sequence
from types import FunctionType

import joblib
import pytest
from joblib import parallel, register_parallel_backend
from upstream import Recorder, leave_out, skip

from joblib_azure import AzureBackend

MODE = os.environ["UPSTREAM_MODE"]

_NESTED = "asserts that nested Parallels are loky's, threads and then sequential; ours get the cores that the call has"
_STATISTICS = "white-box: reads the attributes of AutoBatchingMixin, whose measure includes the queue and is not used"
_STRAGGLER = "a known limit: calls that share a Batch task with a long one wait for it, until tasks can hand calls back"
_UNREGISTERED = "names azure inside a loky worker of the client, which has not imported joblib_azure"
_DEFAULT = "asserts that the default backend of processes is loky's, by its type; here it is this one"
_MANAGER = "shares a multiprocessing manager, whose key only its process's own children have; see test_habits.py"

#: Why a test, or all tests of a function, do not apply. They are expected to fail: one that passes is an error.
LEFT_OUT: dict[str, dict[str, str]] = {
    "alias": {
        "test_nested_backend_context_manager[parallel_config-loky]": _NESTED,
        "test_nested_backend_context_manager[parallel_backend-loky]": _NESTED,
        "test_nested_parallelism_limit[parallel_config-loky]": _NESTED,
        "test_nested_parallelism_limit[parallel_backend-loky]": _NESTED,
        "test_backend_batch_statistics_reset": _STATISTICS,
        "test_parallel_unordered_generator_returns_fastest_first": _STRAGGLER,
        "test_initializer_context": _MANAGER,
        "test_initializer_parallel": _MANAGER,
        "test_initializer_reused": _MANAGER,
        "test_initializer_not_reused": _MANAGER,
    },
    "default": {
        "test_nested_loop[back_compat_backend-azure]": _UNREGISTERED,
        "test_parallel_unordered_generator_returns_fastest_first": _STRAGGLER,
        "test_backend_hinting_and_constraints": _DEFAULT,
        "test_parallel_config_no_backend": _DEFAULT,
        "test_parallel_config_params_explicit_set": _DEFAULT,
    },
    "name": {
        "test_nested_loop[loky-azure]": _UNREGISTERED,
        "test_nested_loop[back_compat_backend-azure]": _UNREGISTERED,
        "test_parallel_unordered_generator_returns_fastest_first": _STRAGGLER,
    },
}

#: Tests that do not look at this backend even though they use the name, and would only take time.
ELSEWHERE: dict[str, dict[str, str]] = {
    "alias": {
        **dict.fromkeys(
            (
                "test_parallel_with_interactively_defined_functions",
                "test_parallel_with_interactively_defined_functions_loky",
                "test_parallel_with_interactively_defined_bound_method_loky",
                "test_parallel_with_unpicklable_functions_in_args",
            ),
            "runs a script in an interpreter of its own, where loky is loky",
        ),
        "test_loky_reuse_workers": "compares loky's own executors",
    },
    "default": {},
    "name": {},
}

#: Tests of which the assertions that look into the backend's own workings are taken out, by a name in them; the
#: rest of the test runs.
WHITE_BOX = {
    "test_error_capture": "get_workers",  # of loky and multiprocessing: their pools
    "test_memmapping_leaks": "listdir",  # maps lie on the nodes, the client's temp_folder stays empty
    "test_parallel_config_no_backend": "listdir",
}

if MODE == "alias":
    del parallel.BACKENDS["azure"]
    parallel.BACKENDS["loky"] = AzureBackend
elif MODE == "default":
    register_parallel_backend("azure", AzureBackend, make_default=True)
    parallel.DEFAULT_PROCESS_BACKEND = "azure"


class _Without(ast.NodeTransformer):
    """Takes out assertions that mention a name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        names = {getattr(inner, "id", getattr(inner, "attr", None)) for inner in ast.walk(node)}
        return ast.copy_location(ast.Pass(), node) if self._name in names else node


def _without(function: FunctionType, name: str) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    before = ast.dump(tree)
    tree = ast.fix_missing_locations(_Without(name).visit(tree))
    if ast.dump(tree) == before:
        raise pytest.UsageError(f"{function.__name__} has no assertion with {name!r} any more")
    namespace: dict[str, FunctionType] = {}
    exec(compile(tree, function.__code__.co_filename, "exec"), function.__globals__, namespace)
    function.__code__ = namespace[function.__name__].__code__


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Function]) -> None:
    leave_out(items, LEFT_OUT[MODE])
    skip(items, ELSEWHERE[MODE])
    if MODE != "alias":
        return
    # `type(backend) is LokyBackend` asks whether it is the one called loky.
    for name in ("joblib.test.test_parallel", "joblib.test.test_config"):
        vars(sys.modules[name])["LokyBackend"] = AzureBackend
    for item in items:
        function = inspect.unwrap(item.function)
        if (name := WHITE_BOX.get(item.originalname)) and not hasattr(function, "without"):
            _without(function, name)
            function.without = name
        if item.originalname == "test_multiple_generator_call_separated_gc":
            # loky's calls share an executor, which the first one's end breaks; ours share nothing, as threads do.
            item.callspec.params["error"] = False


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder())


def pytest_report_header() -> str:
    return f"joblib {joblib.__version__} over joblib_azure, {MODE}"
