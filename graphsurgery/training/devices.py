"""Where training runs: the Accelerator of a plan, and modules moved for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from graphsurgery.errors import SurgeryError, one_line

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator


def choose_device(name: str) -> torch.device:
    """The torch device of "auto" (an accelerator where there is one), "cpu", "cuda", "cuda:1", and so on.

    Raises:
        SurgeryError: this machine has no such device.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SurgeryError(f"device {name!r}: is unknown; use auto, cpu or cuda") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SurgeryError(f"device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    return device


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's first parameter or buffer; the CPU when it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextlib.contextmanager
def placed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module is on `device` inside the block, and back where it was after it."""
    home = device_of(module)
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


def process_rank() -> tuple[int, int]:
    """This process's number and how many processes train together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def make_accelerator(
    device: str, mixed_precision: str, tracker: str = "none", folder: Path | None = None
) -> Accelerator:
    """An Accelerator on `device`; under `accelerate launch` or `torchrun` each process gets its own device.

    Args:
        device: as for `choose_device`.
        mixed_precision: no, bf16 or fp16.
        tracker: tensorboard, wandb or none.
        folder: where that writes.

    Raises:
        SurgeryError: this machine has no such device, or the device not this precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    chosen = choose_device(device)
    # Accelerate keeps device and precision for the life of the process; each stage chooses anew.
    AcceleratorState._reset_state(reset_partial_state=process_rank()[1] == 1)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    # The loop accumulates by itself; the plugin keeps a launcher's setting from dividing the loss once more.
    accumulation = GradientAccumulationPlugin(num_steps=1)
    try:
        found = Accelerator(
            cpu=chosen.type == "cpu",
            mixed_precision=mixed_precision,
            gradient_accumulation_plugin=accumulation,
            log_with=None if tracker == "none" else tracker,
            project_dir=folder,
        )
    except ValueError as error:
        raise SurgeryError(
            f"mixed precision {mixed_precision}: not on this {chosen} ({one_line(error)}); use no"
        ) from error
    if mixed_precision != "no" and not found.native_amp:  # Accelerate would go on in full precision
        raise SurgeryError(f"mixed precision {mixed_precision}: a {chosen} has none; use bf16 or no")
    return found


def end_processes() -> None:
    """End the group of processes of a training that had several."""
    if process_rank()[1] > 1:
        torch.distributed.destroy_process_group()
