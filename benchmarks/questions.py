"""What a trace makes of everything that a forward can ask or do: right, held, refused or wrong.

    python benchmarks/questions.py

Each case of `tests/asking.py` (a question about a type, a size used as a Python number, a gradient mode, a write in
place, a table kept for the next call, a random draw, …) stands in networks of several forms: as the whole network, in a
submodule, in training only, in evaluation only, after two calls, behind a gradient that is cut, and in pairs with every
fifth other case. Each trace that is not refused is compared with its module in values, statistics and gradients, in
both modes, at other batch sizes and lengths. Writes its section of docs/reliability.md, and fails if anything is wrong.
"""

from __future__ import annotations

import collections
import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from document import DOCS, measured, table, write_section
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import asking

import graphsurgery as gs
from graphsurgery.network.layers import hold
from graphsurgery.network.outputs.naming import named_outputs, run

OUTCOMES = ("right", "held", "kept whole", "refused", "wrong")
SIZES = ((2, 5), (3, 5), (1, 5), (2, 8), (3, 4))
"""Batch and length of the inputs; the first is that of the trace."""

Case = Callable[[Any, torch.Tensor], Any]


def cases() -> dict[str, Case]:
    """Every case by its name."""
    groups = (
        asking.RIGHT,
        asking.HELD,
        asking.KEPT,
        asking.TABLES,
        asking.SPELLED,
        asking.FOUND,
        [f for f, _ in asking.REFUSED],
    )
    return {case.__name__: case for group in groups for case in group}


def first(value: Any) -> torch.Tensor:
    """The first tensor of an output."""
    return value[0] if isinstance(value, tuple) else value


def in_training(case: Case, net: Any, x: torch.Tensor) -> Any:
    return first(case(net, x)) if net.training else net.b(asking.hidden(net, x))


def in_evaluation(case: Case, net: Any, x: torch.Tensor) -> Any:
    return net.b(asking.hidden(net, x)) if net.training else first(case(net, x))


def behind_a_cut(case: Case, net: Any, x: torch.Tensor) -> Any:
    with torch.no_grad():
        y = first(case(net, x))
    return net.b(asking.hidden(net, x)) + y.sum()


FORMS: dict[str, Callable[[Case], nn.Module]] = {
    "whole network": lambda case: asking.network(case),
    "submodule": lambda case: nn.Sequential(nn.Linear(4, 4), asking.network(case)).double(),
    "in training": lambda case: asking.network(lambda net, x: in_training(case, net, x)),
    "in evaluation": lambda case: asking.network(lambda net, x: in_evaluation(case, net, x)),
    "run before": lambda case: asking.run_before(asking.network(case), (3, 7), (2, 5)),
    "behind a cut gradient": lambda case: asking.network(lambda net, x: behind_a_cut(case, net, x)),
}


def pairs(found: dict[str, Case]) -> Iterator[tuple[str, nn.Module]]:
    """Two cases behind each other on the same input, each with every fifth other."""
    names = list(found)
    for i, left in enumerate(names):
        for right in names[i % 5 :: 5]:
            both = (found[left], found[right])
            forward = lambda net, x, both=both: (first(both[0](net, x)).sum(), first(both[1](net, x)).sum())  # noqa: E731
            yield f"{left} and {right}", asking.network(forward)


def outcome(module: nn.Module) -> tuple[str, str]:
    """What a trace makes of a module, and why."""
    try:
        graph = gs.trace(copy.deepcopy(module), asking.example())
    except gs.SurgeryError as cause:
        return "refused", str(cause)
    held = any(node.target is hold for node in graph.module.graph.nodes)
    whole = any("unfollowed" in node.meta for node in graph.module.graph.nodes)
    for seed, (batch, length) in enumerate(SIZES):
        x = asking.example(batch, length, seed)
        try:
            expected = named_outputs(copy.deepcopy(module).eval()(x))
        except Exception:  # whatever the case raises at this size
            continue
        try:
            run(graph.module.eval(), [x], 0)
        except ValueError:
            if held and seed:
                continue
            raise
        try:
            asking.assert_same(module, graph.module, x)
        except AssertionError as cause:
            if graph.lineage[0].get("only as in evaluation"):
                return "refused", "trains as it evaluates, and says so"
            return "wrong", f"{batch} x {length}: {str(cause).splitlines()[0]}, of {len(expected)} outputs"
    return "kept whole" if whole else "held" if held else "right", ""


def main() -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts: dict[str, collections.Counter[str]] = {}
    wrong = []
    found = cases()
    networks = [(form, name, build(case)) for form, build in FORMS.items() for name, case in found.items()]
    networks += [("two of them", name, module) for name, module in pairs(found)]
    for form, name, module in networks:
        try:
            kind, reason = outcome(module)
        except Exception as cause:  # a crash is as bad
            kind, reason = "wrong", f"{type(cause).__name__}: {cause}"
        counts.setdefault(form, collections.Counter())[kind] += 1
        if kind == "wrong":
            wrong.append(f"{form}, {name}: {reason}")
            print(wrong[-1], flush=True)
    rows = [
        [form, str(sum(count.values())), *(str(count[kind]) for kind in OUTCOMES)] for form, count in counts.items()
    ]
    total = sum(counts.values(), collections.Counter())
    rows.append(["all", str(sum(total.values())), *(str(total[kind]) for kind in OUTCOMES)])
    text = measured("python benchmarks/questions.py", time.perf_counter() - start)
    write_section("questions", f"{text}\n\n{table(['form', 'networks', *OUTCOMES], rows)}", DOCS / "reliability.md")
    print("\n".join(" ".join(row) for row in rows))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
