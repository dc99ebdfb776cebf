"""Operators that torch does not have, as modules that ONNX Runtime runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, fx, nn

from graphsurgery.errors import SurgeryError, TraceError, UnsupportedError, one_line
from graphsurgery.onnx.files.macs import macs
from graphsurgery.onnx.files.parameters import learnt_in, learnt_inside
from graphsurgery.onnx.files.storage import bytes_of
from graphsurgery.onnx.runtime.asked_sizes import asked_sizes, known
from graphsurgery.onnx.runtime.sessions import open_session


class OnnxOperator(nn.Module):
    """One operator, run by ONNX Runtime on the CPU. It gives no gradients, and the axes around it are frozen.

    Args:
        model: a model of this operator alone.
        reason: why it is not a torch expression.

    Attributes:
        held_parameters: how many numbers its weights have.
        held_bytes: the size of all its constants.
        multiplies: whether it has multiply-accumulates, which are not counted.
    """

    def __init__(self, model: onnx.ModelProto, reason: str) -> None:
        super().__init__()
        self.content = model.SerializeToString()
        constants = model.graph.initializer
        self.held_parameters = sum(map(learnt_in, constants)) + sum(map(learnt_inside, model.graph.node))
        self.held_bytes = sum(map(bytes_of, constants))
        self.multiplies = any(macs(node, {}) is None for node in model.graph.node)
        self.reason = reason
        self._session: onnxruntime.InferenceSession | None = None

    @cached_property
    def sized_by(self) -> tuple[int, ...]:
        """Which of its inputs say how large its results become."""
        model = onnx.ModelProto.FromString(self.content)
        found = asked_sizes(model.graph)
        return tuple(at for at, value in enumerate(model.graph.input) if value.name in found)

    @cached_property
    def is_known(self) -> bool:
        """Whether `sized_by` are all of them."""
        return all(map(known, onnx.ModelProto.FromString(self.content).graph.node))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def forward(self, *given: Tensor | int) -> Tensor | tuple[Tensor, ...]:
        if any(isinstance(value, fx.Proxy) for value in given):
            raise TraceError(self.reason)
        values = tuple(value if isinstance(value, Tensor) else torch.tensor(int(value)) for value in given)
        if self._session is None:
            self._session = _session(self.content, self.reason)
        found = self._run(values)
        floating = next((v.dtype for v in values if v.is_floating_point()), torch.float32)
        outputs = tuple(_like(array, floating, values) for array in found)
        return outputs if len(outputs) > 1 else outputs[0]

    def _run(self, values: Sequence[Tensor]) -> Any:
        """The outputs as arrays; of tensors without values some of their shape."""
        assert self._session is not None
        tried = self._fills(values)
        for number, (flag, size) in enumerate(tried, 1):
            fills = [size if at in self.sized_by else None for at in range(len(values))]
            pairs = zip(values, fills, strict=True)
            real = [_any(v, flag, fill) if v.is_meta else v.detach().cpu() for v, fill in pairs]
            arrays = [v.float().numpy() if v.is_floating_point() else v.numpy() for v in real]
            named = zip(self._session.get_inputs(), arrays, strict=True)
            # Sizes are of 64 bits here, whatever the file has.
            feed = {to.name: x.astype(np.int32) if to.type == "tensor(int32)" else x for to, x in named}
            try:
                return self._session.run(None, feed)
            except Exception:  # ONNX Runtime's errors have no public base class
                if number == len(tried):
                    raise
        return None

    def _fills(self, values: Sequence[Tensor]) -> list[tuple[bool, int]]:
        """Which flags and which sizes are tried of tensors without values: of two branches one may not take them."""
        flags = (False, True) if any(v.is_meta and v.dtype == torch.bool for v in values) else (False,)
        sizes = (1, 0) if any(values[at].is_meta for at in self.sized_by) else (0,)
        return [(flag, size) for size in sizes for flag in flags]


def _any(value: Tensor, flag: bool, size: int | None) -> Tensor:
    """Numbers for a tensor without values: indices are valid ones; sizes are this one, where it holds sizes."""
    number = int(value.is_floating_point()) if size is None else size
    fill = int(flag) if value.dtype == torch.bool else number
    return torch.full(value.shape, fill, dtype=value.dtype, device="cpu")


def _like(array: np.ndarray[Any, Any], floating: torch.dtype, values: tuple[Tensor, ...]) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    tensor = tensor.to(floating) if tensor.is_floating_point() else tensor
    return tensor.to(values[0].device) if values else tensor


_KNOWN = frozenset(
    f"tensor({kind})" for kind in ("float", "double", "float16", "bool", "uint8", "int8", "int16", "int32", "int64")
)
"""What ONNX Runtime calls the types that torch computes with."""


def _session(content: bytes, reason: str) -> onnxruntime.InferenceSession:
    try:
        session = open_session("operator", threads=1, content=content)
    except SurgeryError as cause:
        why = one_line(cause.__cause__ or cause)
        raise UnsupportedError(f"{reason}, and ONNX Runtime cannot run it: {why}") from cause
    for value in session.get_outputs():
        if value.type not in _KNOWN:
            raise UnsupportedError(f"{reason}, and gives a {value.type}, which torch does not compute with")
    return session
