"""What a model decides by a size is right for that size alone: a tracer that holds it (`layers.hold`).

A size that becomes a Python integer is a decision, unless a function of torch asked for it. Texts count as messages.
"""

from __future__ import annotations

import inspect
import linecache
import operator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx

from graphsurgery.errors import TraceError
from graphsurgery.network.layers import hold
from graphsurgery.tracing.following.proxies import DEVICE, DecidingTracer, value_of

_COMPARISONS: tuple[Any, ...] = (operator.eq, operator.ne)


class HoldingTracer(DecidingTracer):
    """Puts a check into the graph wherever the model decides by a number.

    Args:
        strict: whether a size that the model writes into a text is a decision too.

    Attributes:
        spelled_out: the lines that wrote sizes into texts, where that is none.
        conversions: the files of the model, by their modules, that asked for sizes by `int`, `float` or `len`.
    """

    def __init__(self, *, strict: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.strict = strict
        self.spelled_out: list[str] = []
        self.conversions: set[tuple[str, str]] = set()
        self._decisions: set[fx.Node] = set()
        self._indices: list[tuple[fx.Proxy, int, int, str]] = []

    def converted(self, name: str, frame: FrameType) -> None:
        """A file of the model asked for a number of Python."""
        self.conversions.add((str(frame.f_globals.get("__name__")), name))

    def spelled(self, proxy: fx.Proxy) -> None:
        """The model wrote a size into a text."""
        if self.strict:
            self.decided(proxy)
        else:
            self.spelled_out.append(asking_line())

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer a condition from the value; conditions on data cannot be answered."""
        value = value_of(obj)
        if isinstance(value, Tensor):
            raise TraceError("control flow depends on the values of a tensor")
        if _compares_devices(obj.node):
            assert callable(obj.node.target)
            return bool(obj.node.target(*(_on_cpu(operand) for operand in obj.node.args)))
        self.decided(obj)
        return bool(value)

    def decided(self, proxy: fx.Proxy, line: str | None = None) -> None:
        """The model decided by this number, so the graph is right only where it is the same.

        A network may be cast and moved: what was decided by a precision or a device stands, and of a dtype it is
        checked whether it holds numbers or indices.
        """
        value = value_of(proxy)
        if proxy.node in self._decisions or not isinstance(value, (bool, int, float)):
            return
        self._decisions.add(proxy.node)
        dtypes = [source for source in proxy.node.all_input_nodes if isinstance(source.meta["value"], torch.dtype)]
        for source in dtypes:
            floating = self.create_proxy("call_function", getattr, (self.proxy(source), "is_floating_point"), {})
            self._hold(floating, line or asking_line())
        if not dtypes and not _compares_devices(proxy.node):
            self._hold(proxy, line or asking_line())

    def _hold(self, proxy: fx.Proxy, line: str) -> None:
        self.create_proxy("call_function", hold, (proxy, value_of(proxy), line), {})

    def indexed(self, proxy: fx.Proxy, frame: FrameType) -> None:
        """A number was asked for as a Python integer, by Python (`range(n)`) or by a function of torch."""
        self._indices.append((proxy, id(frame), frame.f_lasti, asking_line()))

    def settle(self, frame: FrameType) -> None:
        """A function of torch hands over; the numbers that the same call has asked for decided nothing."""
        call = (id(frame), frame.f_lasti)
        while self._indices and self._indices[-1][1:3] == call:
            self._indices.pop()

    def decide_indices(self, graph: fx.Graph) -> None:
        """Hold what Python has asked for."""
        for proxy, _, _, line in self._indices:
            with graph.inserting_before(proxy.node.next):
                self.decided(proxy, line)
        self._indices.clear()


def _compares_devices(node: fx.Node) -> bool:
    """Whether a node says if two devices are one."""
    return node.target in _COMPARISONS and any(isinstance(_on_cpu(operand), torch.device) for operand in node.args)


def _on_cpu(operand: Any) -> Any:
    """The value of an operand as it is where the tensors of the trace are on the CPU; what is written down stays."""
    if not isinstance(operand, fx.Node):
        return operand
    value = operand.meta["value"]
    return DEVICE if isinstance(value, torch.device) and value.type == "meta" else value


def asking_line() -> str:
    """The line of the model that asks for something."""
    frame = inspect.currentframe()
    own = (str(Path(__file__).parent), fx.proxy.__file__)
    while frame is not None and frame.f_code.co_filename.startswith(own):
        frame = frame.f_back
    if frame is None:
        return "an unknown line"
    path, line = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(path).name}:{line}: `{linecache.getline(path, line).strip()}`"
