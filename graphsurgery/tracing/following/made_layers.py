"""Layers that a forward makes each time that it runs, such as `nn.ReLU()(x)`: followed, or refused by name.

Their weights are fresh at every call and never trained. Where they are those that change nothing, as of a norm, the
layer is followed without them; weights that are drawn anew at every call are no weights of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from graphsurgery.errors import TraceError
from graphsurgery.network.copying import copy_module

_NEUTRAL: Mapping[str, Callable[[Tensor], Tensor]] = {"weight": torch.ones_like, "bias": torch.zeros_like}
"""The values of a norm's weights that change nothing."""
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def without_fresh_weights(layer: nn.Module) -> nn.Module:
    """The same layer without weights that change nothing; it is followed by its forward.

    Args:
        layer: that is no part of the module that is traced; it is not modified.

    Raises:
        TraceError: it has weights that are not such.
    """
    for path, part in layer.named_modules():
        tensors = {**part._parameters, **part._buffers}
        if any(tensor is not None and not _is_neutral(part, name, tensor) for name, tensor in tensors.items()):
            kind = f"{type(layer).__name__}.{path} ({type(part).__name__})" if path else type(layer).__name__
            raise TraceError(
                f"{kind} is made in forward, with weights that are new at every call, or is kept where torch does not "
                "find it; make it in __init__, as an attribute or in an nn.ModuleList"
            )
    plain = copy_module(layer, lambda tensor: tensor)
    for part in plain.modules():
        for slots in (part._parameters, part._buffers):
            slots.update(dict.fromkeys(slots))
    return plain


def _is_neutral(part: nn.Module, name: str, tensor: Tensor) -> bool:
    """Whether a norm computes the same without this tensor."""
    if not isinstance(part, _NORMS) or not isinstance(tensor, Tensor):
        return False
    if name in _NEUTRAL:
        return tensor.is_meta or bool(torch.equal(tensor, _NEUTRAL[name](tensor)))
    # In training a norm only writes its statistics, and a new one is in training.
    return part.training
