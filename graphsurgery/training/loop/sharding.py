"""A network of which each process holds a part of every parameter, of its gradient and of the optimizer's state (FSDP).

`accelerate launch --use_fsdp --fsdp_version 2` asks for it. Every large layer is a unit: its parameters are whole while
it runs, forward or backward, and lie spread over the processes else. What is left of the network is one unit more.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from graphsurgery.errors import SurgeryError
from graphsurgery.network.paths import modules_of

if TYPE_CHECKING:
    from accelerate import Accelerator


def shards(accelerator: Accelerator) -> bool:
    """Whether the processes were launched so."""
    return str(accelerator.distributed_type).rpartition(".")[2] == "FSDP"


def own_copy(module: nn.Module, accelerator: Accelerator, *, possible: bool) -> nn.Module:
    """What is trained in the place of a module that stays whole.

    Args:
        module: stays as it is.
        accelerator: shards.
        possible: whether what is learnt takes a module whose parameters are spread.

    Raises:
        SurgeryError: it does not, or the launcher asks for the older kind.
    """
    if not accelerator.is_fsdp2:
        raise SurgeryError("training under FSDP: takes its second version; give accelerate launch --fsdp_version 2")
    if not possible:
        raise SurgeryError(
            "training under FSDP: gates, masks and widths hold parameters of their own, which cannot lie spread over"
            " processes; leave out --use_fsdp"
        )
    return copy.deepcopy(module).to(accelerator.device)


def prepared(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Callable[[nn.Module], nn.Module],
) -> tuple[nn.Module, nn.Module, Any]:
    """What is called for a step, what synchronizes gradients, and the optimizer as Accelerate wraps it.

    Args:
        accelerator: of this process.
        module: what is trained; its parameters are spread in place where the processes were launched so.
        optimizer: over its parameters.
        step: puts the step of an objective around it.
    """
    if not shards(accelerator):
        called = accelerator.prepare_model(step(module))
        return called, called, accelerator.prepare_optimizer(optimizer)
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy  # here, as it loads torch's compiler

    plugin = accelerator.state.fsdp_plugin
    plugin.transformer_cls_names_to_wrap = _mark(units_of(module))
    policy = transformer_auto_wrap_policy if plugin.transformer_cls_names_to_wrap else None
    plugin.auto_wrap_policy, plugin.cpu_ram_efficient_loading = policy, False
    module, wrapped = accelerator.prepare(module, optimizer)
    return step(module), module, wrapped


_LAYERS = (nn.Linear, nn.Bilinear, nn.Embedding, nn.modules.conv._ConvNd)
"""What has all its parameters for its forward alone; a recurrent layer holds them twice."""
_LARGE = 2**16
"""Numbers from which on a layer is a unit: for fewer it does not pay to ask all processes."""


def units_of(module: nn.Module) -> list[nn.Module]:
    """The layers of a traced network that can be whole by themselves: large, called once, with tensors of their own.

    Args:
        module: a network; one that is no graph has none.
    """
    if not isinstance(module, fx.GraphModule):
        return []
    called = Counter(str(node.target) for node in module.graph.nodes if node.op in ("call_module", "get_attr"))
    layers = [module.get_submodule(path) for path, count in called.items() if count == 1 and _is_layer(module, path)]
    owners = Counter(id(p) for part in modules_of(module).values() for p in part._parameters.values() if p is not None)
    read = {path.rpartition(".")[0] for path in called}
    inside = {id(module.get_submodule(path)) for path in read if _is_layer(module, path)}
    return [
        layer
        for layer in layers
        if id(layer) not in inside
        and sum(p.numel() for p in layer.parameters()) >= _LARGE
        and all(owners[id(p)] == 1 for p in layer.parameters())
    ]


def _is_layer(module: nn.Module, path: str) -> bool:
    try:
        return isinstance(module.get_submodule(path), _LAYERS)
    except AttributeError:
        return False  # a parameter


def _mark(layers: Sequence[nn.Module]) -> list[str]:
    """Give layers classes of their own, by whose names Accelerate knows what is a unit; these names."""
    marked: dict[type, type] = {}
    for layer in layers:
        kind = type(layer)
        layer.__class__ = marked.setdefault(kind, type(f"Unit{kind.__name__}", (kind,), {}))
    return [kind.__name__ for kind in marked.values()]


def is_spread(module: nn.Module) -> bool:
    """Whether its parameters lie spread over the processes."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def _unstored(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that `state_dict` leaves out; what training writes into them is a part of where it is."""
    stored = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers(remove_duplicate=False) if name not in stored}


def whole(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module with whole tensors and with all buffers, on the CPU; every process has to ask."""
    found = {**module.state_dict(), **_unstored(module)}
    full = {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in found.items()}
    return {name: tensor.detach().cpu().clone() for name, tensor in full.items()}


def give(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Take back what `whole` has given, in place; or of the buffers that are not stored what is there."""
    others = _unstored(module)
    stored = {name: tensor for name, tensor in tensors.items() if name not in others}
    if stored:
        module.load_state_dict(stored)
    for name, buffer in others.items():
        if name not in tensors or torch.equal(tensors[name].to(buffer), buffer):
            continue  # most are never written, and some lie in memory that cannot be
        if buffer.shape == tensors[name].shape:
            buffer.copy_(tensors[name])
        else:  # a table that has grown
            path, _, own = name.rpartition(".")
            module.get_submodule(path)._buffers[own] = tensors[name].to(buffer)


def states(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The states of a module and its optimizer, whole in the first process; every process has to ask."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    buffers = _unstored(module)
    if not is_spread(module):
        found = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "sharded": False}
        return {**found, "buffers": buffers}
    model = {name: tensor for name, tensor in whole(module).items() if name not in buffers}
    own = get_optimizer_state_dict(module, optimizer, options=_options())
    return {"model": model, "optimizer": own, "sharded": True, "buffers": buffers}


def give_states(module: nn.Module, optimizer: torch.optim.Optimizer, found: Mapping[str, Any]) -> None:
    """Take back what `states` has given, in place."""
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

    give(module, found.get("buffers", {}))
    if not is_spread(module):
        module.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        return
    set_model_state_dict(module, found["model"], options=_options())
    set_optimizer_state_dict(module, optimizer, found["optimizer"], options=_options())


def _options() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)
