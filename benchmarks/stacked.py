"""Many seeds of one recipe at once: their trainings are one training of one stacked model.

    python benchmarks/stacked.py    # ten seeds against one, into docs/benchmarks.md

A recipe is written for one seed and calls `fit`. `side_by_side` runs it for many, each in a thread of its own, one of
them at a time: whoever calls `fit` waits, and when all wait, networks of one kind are trained together by `torch.func`
(`fit_stacked`), each on its own data, in its own order and with its own statistics, by the same steps as `fit` takes.
"""

from __future__ import annotations

import copy
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from document import measured, table, write_section
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.data import TensorDataset

from graphsurgery.errors import SurgeryError
from graphsurgery.recipes.train import fresh
from graphsurgery.training.data import load_data
from graphsurgery.training.data.batches import epoch_plan
from graphsurgery.training.loop import fit as loop
from graphsurgery.training.loop.optimizers import make_optimizer, parameter_groups, set_rates
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.loop.run import History
from graphsurgery.training.objectives.tasks import Objective, objective_for

T = TypeVar("T")
CALLERS = ("graphsurgery.recipes.experiment.fit", "graphsurgery.training.loop.fit.fit")
"""Where recipes find `fit`."""


@dataclass
class Training:
    """One call of `fit`."""

    module: nn.Module
    dataset: Any
    plan: TrainingPlan
    objective: Objective
    more: dict[str, Any] = field(default_factory=dict)

    def kind(self) -> object:
        """Equal for trainings that can be one; trainings by means that are not stacked are alone."""
        special = self.more.get("param_groups") or self.more.get("run")
        plan, stacked = self.plan, type(self.dataset) is TensorDataset
        if special or not stacked or plan.keep_best or plan.clip is not None or plan.gradient_accumulation > 1:
            return id(self)
        networks = [self.module, *filter(None, [getattr(self.objective, "teacher", None)])]
        shapes = [(name, tensor.shape) for part in networks for name, tensor in part.state_dict().items()]
        code = [getattr(part, "code", str(part)) for network in networks for part in network.modules()]
        data = [(tensor.shape, tensor.dtype) for tensor in self.dataset.tensors]
        rules = (type(self.objective), str(getattr(self.objective, "imitation", "")))
        return str((replace(plan, seed=0), rules, shapes, code, data))


def fit_stacked(trainings: Sequence[Training]) -> None:
    """Train networks of one `Training.kind` in place, by the steps that `fit` takes for each; they end in eval mode.

    Raises:
        SurgeryError: a loss is not finite.
    """
    modules, plan = [training.module.train() for training in trainings], trainings[0].plan
    parameters, buffers = (_stacked([dict(named(module)) for module in modules]) for named in _STATES)
    for parameter in parameters.values():
        parameter.requires_grad_()
    step = _step(trainings)
    every = list(parameters.values())
    groups = [
        {"params": [p for p in every if p.dim() > 2 or plan.decay_vectors], "name": "weights"},
        {"params": [p for p in every if p.dim() <= 2 and not plan.decay_vectors], "weight_decay": 0.0},
    ]
    optimizer = make_optimizer(parameter_groups(nn.Module(), plan, groups), plan)
    for epoch in range(plan.epochs):
        orders = [_order(training, epoch) for training in trainings]
        for number, rows in enumerate(zip(*orders, strict=True)):
            set_rates(optimizer, plan, epoch + number / len(orders[0]))
            gradients, losses = step(parameters, buffers, _batch(trainings, rows))
            for name, parameter in parameters.items():
                parameter.grad = gradients[name]
            optimizer.step()
        if not losses.isfinite().all():
            raise SurgeryError(f"stacked: losses {losses.tolist()} in epoch {epoch + 1}")
    with torch.no_grad():
        for index, module in enumerate(modules):
            module.load_state_dict({name: tensor[index] for name, tensor in (parameters | buffers).items()})
            module.eval()


_STATES = (nn.Module.named_parameters, nn.Module.named_buffers)


def _stacked(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """As `torch.func.stack_module_state`, for networks of which each has a class of its own, as traced ones have."""
    return {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}


def _step(trainings: Sequence[Training]) -> Callable[..., tuple[dict[str, Tensor], Tensor]]:
    """The gradients by name, and the losses `[trainings]`, of stacked parameters, buffers and a batch.

    `torch.func` is asked once for each size of a batch; after that the operators that it came to run by themselves.
    """
    module, objective = trainings[0].module, copy.copy(trainings[0].objective)
    teachers = [getattr(training.objective, "teacher", None) for training in trainings]
    known = _stacked([teacher.state_dict() if teacher else {} for teacher in teachers])

    def loss(parameters: Any, buffers: Any, told: Any, batch: list[Tensor]) -> Tensor:
        if teachers[0] is not None:
            objective.teacher = lambda x: functional_call(teachers[0], told, (x,))  # type: ignore[attr-defined]
        return objective.loss(lambda x: functional_call(module, (parameters, buffers), (x,)), batch)["total"]  # type: ignore[arg-type]

    every, traced = torch.vmap(grad_and_value(loss)), {}

    def step(parameters: Any, buffers: Any, batch: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        given = (parameters, buffers, known, batch)
        if (size := batch[0].shape) not in traced:
            scratch = {name: buffer.clone() for name, buffer in buffers.items()}  # tracing runs it, statistics included
            traced[size] = make_fx(every)(parameters, scratch, known, batch)
        with torch.no_grad():
            return traced[size](*given)

    return step


def _order(training: Training, epoch: int) -> list[Tensor]:
    size, plan = len(training.dataset), training.plan
    steps = epoch_plan(size, plan.batch_size, processes=1, accumulation=1, seed=plan.seed, epoch=epoch)
    return [parts[0][0] for parts in steps]


def _batch(trainings: Sequence[Training], rows: Sequence[Tensor]) -> list[Tensor]:
    parts = [[tensor[chosen] for tensor in t.dataset.tensors] for t, chosen in zip(trainings, rows, strict=True)]
    return [torch.stack(tensors) for tensors in zip(*parts, strict=True)]


def side_by_side(recipe: Callable[[int], T], seeds: Iterable[int]) -> list[T]:
    """What a recipe gives for each seed; what it trains by `fit` is trained for all of them together."""
    meeting = _Meeting()
    threads = [threading.Thread(target=meeting.run, args=(recipe, seed)) for seed in seeds]
    plain = loop.fit
    with ExitStack() as stack:
        for caller in CALLERS:
            stack.enter_context(patch(caller, meeting.fit))
        for thread in threads:
            meeting.turn(thread)
        while meeting.waiting:
            meeting.train(plain)
    if meeting.failed:
        raise meeting.failed[0]
    return [meeting.found[seed] for seed in seeds]


class _Meeting:
    """Where the threads of a recipe meet: one of them runs at a time, until it wants to train or is through."""

    def __init__(self) -> None:
        self.paused = threading.Semaphore(0)
        self.waiting: list[tuple[Training, threading.Event]] = []
        self.found: dict[int, Any] = {}
        self.failed: list[BaseException] = []

    def run(self, recipe: Callable[[int], Any], seed: int) -> None:
        """What a thread does."""
        try:
            self.found[seed] = recipe(seed)
        except BaseException as error:
            self.failed.append(error)
        finally:
            self.paused.release()

    def fit(self, module: nn.Module, dataset: Any, plan: TrainingPlan, *, objective: Objective, **more: Any) -> History:
        """In the place of `fit`; what happened in the epochs is not kept."""
        go_on = threading.Event()
        self.waiting.append((Training(module, dataset, plan, objective, more), go_on))
        self.paused.release()
        go_on.wait()
        if self.failed:
            raise SystemExit
        return History((), None)

    def turn(self, thread: threading.Thread | threading.Event) -> None:
        """Let a thread run until it pauses."""
        thread.start() if isinstance(thread, threading.Thread) else thread.set()
        self.paused.acquire()

    def train(self, plain: Callable[..., Any]) -> None:
        """Train what is waited for, the same kind together, and let each thread run until it pauses again."""
        waiting, self.waiting = self.waiting, []
        kinds = defaultdict(list)
        for training, _ in waiting:
            kinds[training.kind()].append(training)
        try:
            for first, *rest in kinds.values():
                if rest:
                    fit_stacked([first, *rest])
                else:
                    plain(first.module, first.dataset, first.plan, objective=first.objective, **first.more)
        except BaseException as error:
            self.failed.insert(0, error)
        for _, go_on in waiting:
            self.turn(go_on)


TIMED = (
    ("digits", "paper/cnn?width=3", 10),
    ("digits", "paper/resnet20?in_channels=1&width=8", 2),
    ("digits", "paper/lenet_300_100?in_features=64", 5),
    ("sine", "paper/mlp", 5),
)
"""Data, network, and how many epochs are timed."""
TURNS = 3


def ten_against_one(name: str, spec: str, epochs: int) -> list[str]:
    """A row: milliseconds of an epoch of one seed by `fit`, of ten stacked, and the median of their ratios."""
    data = load_data(name)
    plan, learns = TrainingPlan(epochs=epochs, lr=0.01, device="cpu"), objective_for(data)
    turns = []
    for _ in range(TURNS):
        ten = [
            Training(fresh(spec, data, seed).module, data.train, replace(plan, seed=seed), learns) for seed in range(10)
        ]
        one = fresh(spec, data, 0).module
        began = time.process_time()
        loop.fit(one, data.train, plan, objective=learns, reporter=SilentReporter())
        between = time.process_time()
        fit_stacked(ten)
        turns.append((between - began, time.process_time() - between))
    shown = [f"{1000 * statistics.median(times) / epochs:.0f}" for times in zip(*turns, strict=True)]
    return [f"{name}, `{spec}`", *shown, f"{statistics.median(ten / one for one, ten in turns):.1f}x"]


def main() -> None:
    torch.set_num_threads(1)
    began = time.perf_counter()
    head = ["", "one seed, `fit` (ms an epoch)", "ten seeds, stacked (ms an epoch)", "ratio"]
    found = table(head, [ten_against_one(*row) for row in TIMED])
    command = measured("python benchmarks/stacked.py", time.perf_counter() - began, "scikit-learn")
    write_section("stacked", f"{command}\n\n{NOTE}\n\n{found}")
    print(found)


NOTE = f"""Batches of 64; trainings of a few epochs, {TURNS} times in turn, seconds of the processor; the ratio is the
median of the turns. In float64 each network ends within 1e-10 of where `fit` takes it alone (`tests/test_stacked.py`).
What is saved is the time between operators, most of it for small linear layers; the arithmetic of ten networks stays,
their convolutions as one of ten groups. What `torch.func` takes once to make operators of a step is counted, for a
ResNet-20 longer than these epochs."""


if __name__ == "__main__":
    main()
