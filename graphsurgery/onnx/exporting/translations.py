"""What torch's exporter finds out about operators, found out once."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from functools import cache
from types import FunctionType
from typing import Any

from graphsurgery.onnx.exporting.decomposing import with_few_decomposed, with_few_promoted
from graphsurgery.onnx.exporting.quick_shapes import with_quick_shapes

_TRANSLATIONS = ("torch.onnx._internal.exporter._registration", "ONNXRegistry", "from_torchlib")
_COMPOSED = ("torch._export.utils", "", "_materialize_cpp_cia_ops")
_PIECES = ("torch.onnx._internal.exporter._fx_passes", "", "decompose_with_registry")
_PROMOTED = ("torch.onnx._internal.exporter._fx_passes", "", "insert_type_promotion_nodes")
_RESULTS = ("torch._dynamo.config", "", "fake_tensor_cache_enabled")
_CODE = ("torch.fx._lazy_graph_module", "", "_use_lazy_graph_module_flag")
_TRACES = ("torch.fx.config", "", "do_not_emit_stack_traces")
_SHAPES = ("torch._subclasses.fake_tensor", "", "get_fast_op_impls")
_MATCHES = ("onnxscript.rewriter._rewrite_rule", "RewriteRule", "try_rewrite")


@contextlib.contextmanager
def known_operators() -> Iterator[None]:
    """A file that is exported meanwhile takes what the exporter knows of operators from the files before.

    The exporter makes its table of translations anew for every file, for which it reads and parses the source of some
    500 functions: half a second, more than a small network takes. It writes into the table only what its caller brings,
    and we bring nothing: so there is one for each opset. It also looks up all composed operators sixty times for a
    file; once is enough, and not once for all, as custom operators may be registered in between. And it runs reference
    code to find out the shapes that common operators give, see `quick_shapes`, and takes programs to pieces that need
    it not, see `decomposing`. Its optimiser tries each of a hundred patterns at every node, step by step; here only
    those that end in such an operator. It does not note where in Python every operator was called, which no file says,
    nor keep the results of operators, of which it finds few again, nor write Python code for graphs that nobody runs:
    two fifths of the time together.

    Where a version of torch works in another way, nothing is kept.
    """
    with (
        _replaced(*_TRANSLATIONS, by=_kept),
        _replaced(*_COMPOSED, by=cache),
        _replaced(*_SHAPES, by=with_quick_shapes),
        _replaced(*_PIECES, by=with_few_decomposed),
        _replaced(*_PROMOTED, by=with_few_promoted),
        _replaced(*_MATCHES, by=_of_its_operator),
        _replaced(*_RESULTS, by=lambda _: False),
        _replaced(*_TRACES, by=lambda _: True),
        _replaced(*_CODE, by=lambda _: True),
    ):
        yield


@cache
def _kept(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which makes a table once for each opset."""
    return cache(make)


def _of_its_operator(usual: Callable[..., Any]) -> Callable[..., Any]:
    """Nothing, without a look at the operands, of a rule for what another operator gives."""
    ends: dict[Any, str | None] = {}

    def try_rewrite(rule: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if rule not in ends:
            ends[rule] = _last_operator(rule)
        if ends[rule] is not None and ends[rule] != node.op_type:
            return None
        return usual(rule, model, graph, node, **options)

    return try_rewrite


def _last_operator(rule: Any) -> str | None:
    """The operator that gives the first output of what a rule replaces; None where it may be any."""
    try:
        identifier = rule._target_pattern.output_nodes[0].op_identifier()
    except (AttributeError, IndexError):  # another version of onnxscript
        return None
    return identifier and identifier[1]


@contextlib.contextmanager
def _replaced(module: str, owner: str, name: str, by: Callable[[Any], Any]) -> Iterator[None]:
    """What is made of a function or setting stands in its place; nothing happens where it is not found."""
    try:
        place = importlib.import_module(module)
        place = getattr(place, owner) if owner else place
        found = getattr(place, name)
        own = vars(place).get(name, found)
    except (ImportError, AttributeError):
        yield
        return
    made = by(found)
    is_bound = owner and not isinstance(own, FunctionType)
    setattr(place, name, staticmethod(made) if is_bound else made)
    try:
        yield
    finally:
        setattr(place, name, own)
