"""Measuring a module on data, and re-estimating its BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.progress import phase
from graphsurgery.training.data.batches import Examples, evenly, in_order
from graphsurgery.training.devices import choose_device, device_of, placed, process_rank
from graphsurgery.training.loop.sharding import is_spread
from graphsurgery.training.objectives.tasks import Objective

RECALIBRATING = 1000
"""How many examples statistics are taken from, where there are so many."""


@phase("measuring on data")
def evaluate(
    module: nn.Module,
    dataset: Dataset[Any],
    objective: Objective,
    *,
    batch_size: int = 256,
    device: str | None = None,
    workers: int = 0,
) -> dict[str, float]:
    """The objective's metrics and its task loss, as means over all examples; the module is left as it was.

    Args:
        module: run in eval mode without gradients.
        dataset: examples `(input, target)`.
        objective: says what is measured, such as `objective_for(data)`.
        batch_size: examples per forward pass.
        device: where to run; None means where the module is. The module comes back after it.
        workers: loading processes, for data sets that are not in memory.

    Returns:
        `loss` and the objective's metrics by name: `accuracy` between 0 and 1, or `mse`.

    Under data parallel each process measures its share, and every process must call this.
    """
    chosen = device_of(module) if device is None else choose_device(device)
    examples = Examples(dataset, chosen, workers=workers)
    rank, processes = process_rank()
    indices = in_order(len(examples), batch_size, rank=rank, processes=processes)
    metrics = {name: metric.to(chosen) for name, metric in objective.metrics().items()}
    total = torch.zeros(2, dtype=torch.float32 if chosen.type == "mps" else torch.float64, device=chosen)
    with placed(module, chosen), evaluating(module), torch.no_grad():
        objective.to(chosen)
        for batch in examples.batches(indices):
            output, target = objective.predict(module, batch)
            for metric in metrics.values():
                metric.update(output, target)
            loss = objective.validation_loss(output, target)
            if loss is not None:
                total += torch.stack([loss.to(total.dtype) * len(target), total.new_tensor(len(target))])
        most = len(in_order(len(examples), batch_size, processes=processes))
        if len(indices) < most and is_spread(module):  # it runs as often in every process
            objective.predict(module, next(iter(examples.batches([torch.zeros(1, dtype=torch.int64)]))))
    if processes > 1:
        torch.distributed.all_reduce(total)
    found = {"loss": (total[0] / total[1]).item()} if total[1] > 0 else {}
    return found | {name: float(metric.compute()) for name, metric in metrics.items()}


@phase("finding the statistics of BatchNorms")
def recalibrate(
    module: nn.Module,
    dataset: Dataset[Any],
    *,
    images: int = RECALIBRATING,
    batch_size: int = 128,
    device: str | None = None,
    seed: int = 0,
    run: Callable[[nn.Module, Tensor], Any] | None = None,
) -> int:
    """Re-estimate every BatchNorm's running statistics on training examples; returns how many norms there are.

    The statistics become the cumulative mean over the batches (momentum None), with all other layers in eval mode and
    without gradients. Modes and momenta are what they were before.

    Args:
        module: changed in place.
        dataset: training examples; those used are drawn by `seed`.
        images: examples to use, at most all of them.
        batch_size: examples per forward pass, at most; the statistics are those of batches of nearly this size.
        device: where to run; None means where the module is. The module comes back after it.
        seed: draws the examples.
        run: runs the module on the inputs of a batch, where these are not its only input.

    Source: Yu & Huang, "Universally Slimmable Networks" (arXiv:1903.05134), section 3.3.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not norms:
        return 0
    chosen = device_of(module) if device is None else choose_device(device)
    examples = Examples(dataset, chosen)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:images]
    indices = evenly(order, batch_size)
    momenta = [norm.momentum for norm in norms]
    with placed(module, chosen), evaluating(module), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.training = True
            for batch in examples.batches(indices, seed):
                module(batch[0]) if run is None else run(module, batch[0])
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return len(norms)
