"""Functions with a backward of their own (`torch.autograd.Function`): followed where that is autograd's, else kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils import _pytree

_SCALES = (1.0, 4.0)
"""Standard deviations of the numbers that a backward is tried on; clamps and steps act on some of them."""
_ALLOWED = 1e-9


class KeptFunction(nn.Module):
    """A function with a gradient of its own, as a module that a trace keeps whole."""

    def __init__(self, function: type[Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives; its own backward is used."""
        return self.function.apply(*args, **kwargs)

    def extra_repr(self) -> str:
        return self.function.__name__


class _Context:
    """What a forward is given in place of autograd's context when it is followed."""

    needs_input_grad: Sequence[bool] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """Nothing is saved: autograd finds the gradient of what was followed."""

    mark_dirty = mark_non_differentiable = set_materialize_grads = save_for_forward = save_for_backward


def call_inline(function: type[Function], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The forward of a function without its backward."""
    if function.setup_context is not Function.setup_context:
        return function.forward(*args, **kwargs)
    return function.forward(_Context(), *args, **kwargs)


def has_own_gradient(function: type[Function], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the backward of a function is another than that of its forward, or cannot be seen to be the same.

    Both are run on random numbers of the shapes that the arguments have.

    Args:
        function: the function.
        args: what it is called with; meta tensors stand for tensors.
        kwargs: the same by name.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        return any(_differs(function, args, kwargs, scale, generator) for scale in _SCALES)
    except Exception:  # a forward may need what random numbers are not; then it is not known
        return True


def _differs(
    function: type[Function], args: Sequence[Any], kwargs: Mapping[str, Any], scale: float, generator: torch.Generator
) -> bool:
    """Whether the two gradients differ on one draw."""

    def drawn(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point():
            return torch.zeros(value.shape, dtype=value.dtype)
        return scale * torch.randn(value.shape, generator=generator, dtype=torch.float64)

    real = _pytree.tree_map(drawn, (tuple(args), dict(kwargs)))
    own = _gradients(lambda *a, **k: function.apply(*a, **k), real)
    plain = _gradients(lambda *a, **k: call_inline(function, a, k), real)
    return any(not torch.allclose(a, b, rtol=_ALLOWED, atol=_ALLOWED) for a, b in zip(own, plain, strict=True))


def _gradients(function: Callable[..., Any], arguments: Any) -> list[Tensor]:
    """The outputs of a function, and the gradients of a fixed combination of them by every input."""

    def fresh(value: Any) -> Any:
        is_real = isinstance(value, Tensor) and value.is_floating_point()
        return value.clone().requires_grad_() if is_real else value

    args, kwargs = _pytree.tree_map(fresh, arguments)
    inputs = [t for t in _pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.requires_grad]
    with torch.enable_grad():
        # Views, so that a function that writes into what it is given can.
        views = _pytree.tree_map(lambda t: t * 1 if isinstance(t, Tensor) and t.requires_grad else t, (args, kwargs))
        outputs = [t for t in _pytree.tree_leaves(function(*views[0], **views[1])) if isinstance(t, Tensor)]
        real = [t for t in outputs if t.is_floating_point()]
        weights = torch.Generator().manual_seed(1)
        total: Any = sum((t * torch.randn(t.shape, generator=weights, dtype=t.dtype)).sum() for t in real)
        if not isinstance(total, Tensor) or not total.requires_grad:
            return [*real, *(torch.zeros_like(t) for t in inputs)]
        found = torch.autograd.grad(total, inputs, allow_unused=True)
    return [*real, *(torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True))]
