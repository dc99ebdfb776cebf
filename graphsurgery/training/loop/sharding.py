"""A network of which each process holds a part of every parameter, of its gradient and of the optimizer's state (FSDP).

`accelerate launch --use_fsdp --fsdp_version 2` asks for it. A traced network is one unit: its parameters are whole
while it runs, and lie spread over the processes between the steps.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphsurgery.errors import SurgeryError

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


def spread(accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
    """The module with its parameters spread over the processes, in place, and its optimizer as Accelerate wraps it."""
    plugin = accelerator.state.fsdp_plugin
    # The layers of a traced network have no modules of their own around them that could be units.
    plugin.auto_wrap_policy, plugin.cpu_ram_efficient_loading = None, False
    found: tuple[nn.Module, Any] = accelerator.prepare(module, optimizer)
    return found


def is_spread(module: nn.Module) -> bool:
    """Whether its parameters lie spread over the processes."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def whole(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module with whole tensors, on the CPU; every process has to ask."""
    found = module.state_dict()
    full = {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in found.items()}
    return {name: tensor.detach().cpu().clone() for name, tensor in full.items()}


def put(module: nn.Module, state: dict[str, Any]) -> None:
    """Give a spread module the state that `whole` has given."""
    from torch.distributed.checkpoint.state_dict import set_model_state_dict

    set_model_state_dict(module, state, options=_options())


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer with whole tensors, in the first process; every process has to ask."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return get_optimizer_state_dict(module, optimizer, options=_options())


def put_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimizer the state that `optimizer_state` has given."""
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    set_optimizer_state_dict(module, optimizer, state, options=_options())


def _options() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)
