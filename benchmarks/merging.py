"""Merging against everything that the same epochs could buy: several tasks and architectures, several seeds.

    python benchmarks/merging.py                      # what is missing, then the page
    python benchmarks/merging.py --tasks digits/cnn   # one task
    python benchmarks/merging.py --choose             # ways and rates, on other seeds

Every seed has its own split of the data, its own parents and controls. Results are kept in
`docs/results/merging.jsonl`, a line for each run, so that an interrupted benchmark goes on; without that file it begins
anew. Nothing is selected on test data: `auto` and "best of three" look at validation, and the ways and rates of the
recipe were chosen by validation data of seeds from 100 on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from document import DOCS, measured, table, write_section
from stacked import side_by_side
from torch.utils.data import TensorDataset

from graphsurgery.graph import ModelGraph
from graphsurgery.recipes import demo
from graphsurgery.recipes.merging.merge import merge
from graphsurgery.recipes.merging.plan import CONTROL, CONTROLS, WAYS, MergeWishes
from graphsurgery.recipes.train import train
from graphsurgery.training.data.dataset import Data, split
from graphsurgery.training.data.loading import load_data
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter

RESULTS = DOCS / "results" / "merging.jsonl"
CHOOSING = 100
"""The first seed of those that settings are chosen on."""


@dataclass(frozen=True)
class Task:
    """Parents of one kind on one kind of data.

    Attributes:
        spec: their architecture.
        data: the data of a seed.
        plan: how a parent trains.
        seeds: how many are published.
        what: the data in words.
        ways: what is done with the parents of a seed that is published; see `one_merge`.
        stacked: whether its seeds are trained as one, which pays where layers are small.
    """

    spec: str
    data: Callable[[int], Data]
    plan: TrainingPlan
    seeds: int
    what: str
    ways: tuple[str, ...] = ("auto",)
    stacked: bool = False


def digits(train: int, validation: int) -> Callable[[int], Data]:
    """So many digits to train and to validate, drawn by the seed; all others of the 1,797 are the test."""

    def load(seed: int) -> Data:
        whole = load_data("digits")
        parts = [getattr(whole, name).tensors for name in ("train", "validation", "test")]
        together = TensorDataset(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        sizes = [train, validation, len(together) - train - validation]
        return replace(
            whole, **dict(zip(("train", "validation", "test"), split(together, sizes, seed=seed), strict=True))
        )

    return load


def sine(seed: int) -> Data:
    """The sine task, its training points split anew; the test points are an even grid."""
    return load_data(f"sine?split_seed={seed}")


def fashion(train: int, validation: int) -> Callable[[int], Data]:
    """So many images of Fashion-MNIST, drawn by the seed, and its 10,000 test images."""

    def load(seed: int) -> Data:
        whole = load_data("fashion-mnist")
        pairs = zip(whole.train.tensors, whole.validation.tensors, strict=True)
        parts = split(TensorDataset(*(torch.cat(pair) for pair in pairs)), [train, validation], seed=seed)
        return replace(whole, train=parts[0], validation=parts[1])

    return load


_SGD = TrainingPlan(epochs=60, batch_size=64, lr=0.1, weight_decay=5e-4, schedule="cosine", device="cpu")
_WIDE_BATCH = replace(_SGD, batch_size=128)
_SMALL, _WHOLE = fashion(10_000, 2_000), fashion(54_000, 6_000)
_DIGITS, _FEW_DIGITS, _FEW_CLOTHES = digits(850, 300), digits(200, 100), fashion(1_000, 500)
_OWN = f"{Path(__file__).parent}/"
_VIT = f"{_OWN}small_vit.py:small_vit"
_ADAMW = replace(_SGD, optimizer="adamw", lr=2e-3)
TASKS = {
    "few digits/cnn": Task("paper/cnn?width=3", _FEW_DIGITS, _SGD, 12, "200 digits", stacked=True),
    "few digits/resnet20": Task("paper/resnet20?in_channels=1&width=8", _FEW_DIGITS, _SGD, 5, "200 digits"),
    "few digits/vit": Task(f"{_VIT}?width=32&pixels=8", _FEW_DIGITS, replace(_ADAMW, epochs=120), 5, "200 digits"),
    "few clothes/lenet": Task(
        "paper/lenet_300_100", _FEW_CLOTHES, replace(_SGD, lr=0.05), 5, "1,000 of Fashion-MNIST", stacked=True
    ),
    "few clothes/cnn": Task("paper/cnn?width=8", _FEW_CLOTHES, _SGD, 5, "1,000 of Fashion-MNIST"),
    "digits/cnn": Task("paper/cnn?width=3", _DIGITS, _SGD, 12, "digits", ("auto", "plain"), stacked=True),
    "digits/resnet20": Task("paper/resnet20?in_channels=1&width=8", _DIGITS, replace(_SGD, epochs=15), 5, "digits"),
    "digits/vit": Task(f"{_VIT}?width=32&pixels=8", _DIGITS, replace(_ADAMW, epochs=30), 5, "digits"),
    "sine/mlp": Task("paper/mlp", sine, replace(_SGD, epochs=300, lr=0.02, weight_decay=0.0), 10, "sine", stacked=True),
    "fashion/lenet-small": Task(
        "paper/lenet_300_100", _SMALL, replace(_WIDE_BATCH, epochs=30, lr=0.05), 5, "12,000 of Fashion-MNIST"
    ),
    "fashion/vit": Task(_VIT, _SMALL, replace(_ADAMW, epochs=15, batch_size=128), 5, "12,000 of Fashion-MNIST"),
    "fashion/lenet": Task("paper/lenet_300_100", _WHOLE, replace(_WIDE_BATCH, epochs=6, lr=0.05), 5, "Fashion-MNIST"),
    "fashion/cnn": Task("paper/cnn?width=8", _SMALL, replace(_WIDE_BATCH, epochs=8), 5, "12,000 of Fashion-MNIST"),
}


Way = tuple[str, float | None]
"""How parents are merged, and at which rate; None is the recipe's own."""


def merges(name: str, ways: Sequence[Way], seed: int) -> list[dict[str, Any]]:
    """Two parents of a seed, merged in several ways; beside `auto` stand the controls that no other way has."""
    task, silent = TASKS[name], SilentReporter()
    data = task.data(seed)
    parents = [
        train(task.spec, data, replace(task.plan, seed=2 * seed + index), reporter=silent).graph for index in (0, 1)
    ]
    return [one_merge(name, seed, way, parents, data) for way in ways]


def one_merge(name: str, seed: int, way: Way, parents: Sequence[ModelGraph], data: Data) -> dict[str, Any]:
    """The parents merged in one way, `plain` is `distil` without mixtures: the line that is kept."""
    by, rate = way
    controls = controls_of(name, seed) if way == ("auto", None) and seed < CHOOSING else ()
    wishes = MergeWishes(
        by="distil" if by == "plain" else by,
        rate=rate,
        controls=",".join(controls),
        control=bool(controls),
        device="cpu",
    )
    plan = wishes.plan(parents, seed)
    if by == "plain":
        plan = replace(plan, imitation=replace(plan.imitation, mixed=False))
    outcome = merge(parents, data, plan, reporter=SilentReporter()).outcome
    rows = {
        row.name: {
            "test": row.test[outcome.metric],
            "validation": row.validation[outcome.metric],
            "epochs": row.epochs,
            "macs": row.training_macs,
            "note": row.note,
        }
        for row in outcome.rows
    }
    return {"task": name, "seed": seed, "by": by, "rate": rate, "metric": outcome.metric, "rows": rows}


def controls_of(name: str, seed: int) -> list[str]:
    """Which controls are trained: those that stand beside no other way on the same split, as all ways cost as much."""
    found = results()
    known = {row for by in WAYS for row in found.get((name, seed, by, None), {"rows": {}})["rows"]}
    rows = {control: f"{CONTROL}{control}" for control in CONTROLS} | {"another": f"{CONTROL}best of 3"}
    return [control for control in CONTROLS if rows[control] not in known]


DEMO = "demo"
"""The merge of `make demo`, which has its own split and seeds."""


def one_demo(seed: int) -> dict[str, Any]:
    """The parents and the merged network of `graphsurgery demo --seed`, without its controls."""
    data, silent = load_data(demo.DATA), SilentReporter()
    parents = [train(demo.SPEC, data, replace(demo.PLAN, seed=2 * seed + i), reporter=silent).graph for i in (0, 1)]
    plan = MergeWishes(control=False, device="cpu").plan(parents, seed)
    outcome = merge(parents, data, plan, reporter=silent).outcome
    scores = {row.name: {"test": row.test[outcome.metric]} for row in outcome.rows}
    return {"task": DEMO, "seed": seed, "by": "auto", "rate": None, "metric": outcome.metric, "rows": scores}


def demo_sentence() -> str:
    """On how many seeds the demo ends at or above its best parent; empty where not all have been run."""
    runs = [results().get((DEMO, seed, "auto", None)) for seed in range(10)]
    found = [run for run in runs if run is not None]
    if len(found) < len(runs):
        return ""
    gained = gains(found, "merged", better_parent)
    return (
        f"`graphsurgery demo` at seeds 0 to 9 ends at or above its best parent on {sum(g >= 0 for g in gained)} of 10 "
        f"({mean_and_error(gained)} points; its test set has 360 images)."
    )


def results() -> dict[tuple[str, int, str, float | None], dict[str, Any]]:
    """What has been run."""
    if not RESULTS.exists():
        return {}
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {(line["task"], line["seed"], line["by"], line["rate"]): line for line in lines}


def run_missing(name: str, seeds: Sequence[int], ways: Sequence[Way]) -> None:
    """Merge the parents of each seed in the ways that are not there yet, and write each down as it comes."""
    missing: dict[tuple[Way, ...], list[int]] = {}
    for seed in seeds:
        lacking = tuple(way for way in ways if (name, seed, *way) not in results())
        missing.setdefault(lacking, []).append(seed)
    for lacking, group in missing.items():
        for together in ([group] if TASKS[name].stacked else [[seed] for seed in group]) if lacking else []:
            began = time.process_time()
            found = side_by_side(partial(merges, name, lacking), together)
            seconds = (time.process_time() - began) / len(together) / len(lacking)
            for run in itertools.chain.from_iterable(found):
                write_down({**run, "seconds": seconds})


def write_down(run: dict[str, Any]) -> None:
    """Keep a run, and show its scores."""
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(run) + "\n")
    shown = ", ".join(f"{name} {row['test']:.4f}" for name, row in run["rows"].items())
    print(f"{run['task']}, seed {run['seed']}, {run['by']}: {shown}", flush=True)


def gains(runs: Sequence[dict[str, Any]], name: str, other: Callable[[dict[str, Any]], float]) -> list[float]:
    """By how much a row is better than another one, by seed: points of accuracy, or per cent of its error."""
    found = []
    for run in runs:
        ours, theirs = run["rows"][name]["test"], other(run)
        found.append(100 * (ours - theirs) if run["metric"] == "accuracy" else 100 * (theirs - ours) / theirs)
    return found


def mean_and_error(values: Sequence[float]) -> str:
    """The mean, and its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):+.2f} ± {error:.2f}"


def score_of(row: str, run: dict[str, Any]) -> float:
    """The test score of a row."""
    return float(run["rows"][row]["test"])


def better_parent(run: dict[str, Any]) -> float:
    """The test score of the parent that is better on the test data: in its favour."""
    scores = [run["rows"][f"parent {n}"]["test"] for n in (1, 2)]
    return max(scores) if run["metric"] == "accuracy" else min(scores)


OURS = ("merged", "distilled")
"""What `auto` delivers, and what it has trained."""
BESIDE = {"joint": "by joint", "plain": "without mixtures"}
"""Other ways, on the same splits: the joint recipe, and distillation on the examples as they are."""
ROWS = (
    "parent 1", "parent 2", "ensemble", "weight average", "soup", "aligned average", "joint", "by joint",
    "without mixtures", "distilled", "merged", "control: longer", "control: faster", "control: best of 3",
    "control: distilled", "control: wide", "control: mixed",
)  # fmt: skip


def with_others(found: dict[tuple[str, int, str, float | None], dict[str, Any]], name: str, seed: int) -> Any:
    """The merge of a seed by `auto`, beside what other ways made of the same split, and their controls."""
    run, rows = found[(name, seed, "auto", None)], {}
    for by in ("joint", "plain", "distil"):
        for row, values in found.get((name, seed, by, None), {"rows": {}})["rows"].items():
            title = BESIDE.get(by, "") if row == "merged" else row if row.startswith(CONTROL) else ""
            rows |= {title: values} if title else {}
    return {**run, "rows": rows | run["rows"]}


def ours(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of `OURS` that all runs have."""
    return [name for name in OURS if all(name in run["rows"] for run in runs)]


def task_section(name: str, by: str, runs: Sequence[dict[str, Any]]) -> str:
    """The table of one task."""
    task, rows = TASKS[name], []
    accuracy = runs[0]["metric"] == "accuracy"
    for row in ROWS:
        if any(row not in run["rows"] for run in runs):
            continue
        scores = [run["rows"][row]["test"] for run in runs]
        shown = f"{100 * statistics.mean(scores):.2f} %" if accuracy else f"{statistics.mean(scores):.4f}"
        taken = {key: [run["rows"][row][key] for run in runs] for key in ("epochs", "macs")}
        less = ["" if row == name else mean_and_error(gains(runs, name, partial(score_of, row))) for name in ours(runs)]
        epochs = "" if None in taken["epochs"] else f"{statistics.mean(taken['epochs']):.0f}"
        macs = "" if None in taken["macs"] else f"{statistics.mean(taken['macs']) / 1e9:.2f}"
        rows.append([f"**{row}**" if row in OURS else row, shown, *less, epochs, macs])
    score = "test accuracy" if accuracy else "test error (mse)"
    head = ["network", score, *(f"{name} is better by" for name in ours(runs)), "epochs", "GMACs"]
    way = "" if by == "auto" else f"`--by {by}`, "
    title = f"{way}{task.what}: `{task.spec.removeprefix(_OWN)}`, {task.plan.epochs} epochs, {len(runs)} seeds"
    return f"#### {title}\n\n{verdict(runs)}\n\n{table(head, rows)}"


def strongest_control(runs: Sequence[dict[str, Any]]) -> str:
    """The control that is best on test data, in the mean: in its favour."""
    controls = [row for row in ROWS if row.startswith("control") and all(row in run["rows"] for run in runs)]
    best = max if runs[0]["metric"] == "accuracy" else min
    return best(controls, key=lambda row: statistics.mean(score_of(row, run) for run in runs))


_RELATIONS = {"better": "better than", "tie": "a tie with", "worse": "worse than"}


def relation_of(values: Sequence[float]) -> str:
    """What gains say, to two standard errors."""
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    return "tie" if abs(mean) < 2 * error else "better" if mean > 0 else "worse"


def answer(tables: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Whether merging pays, in one sentence: how often each way beats the better parent, and the strongest control."""
    shown = [runs for runs in tables if runs[0]["by"] == "auto"]
    words = []
    for name in OURS:
        others = {
            _BEST: [better_parent] * len(shown),
            "the strongest control of the same epochs": [partial(score_of, strongest_control(runs)) for runs in shown],
        }
        for other, scores in others.items():
            found = Counter(relation_of(gains(runs, name, score)) for runs, score in zip(shown, scores, strict=True))
            numbers = f"better than {other} on {found['better']}, a tie on {found['tie']} and worse on {found['worse']}"
            words.append(f"`{name}` is {numbers}")
    return f"To two standard errors, of {len(shown)} tables {'; '.join(words)}."


def verdict(runs: Sequence[dict[str, Any]]) -> str:
    """What the numbers say, the strongest control named."""
    unit = "points" if runs[0]["metric"] == "accuracy" else "% of its error"
    strongest = strongest_control(runs)
    found = []
    for name in ours(runs):
        words = []
        for other, score in (
            (f"the strongest control ({strongest})", partial(score_of, strongest)),
            (_BEST, better_parent),
        ):
            values = gains(runs, name, score)
            relation = _RELATIONS[relation_of(values)]
            words.append(f"{relation} {other} ({mean_and_error(values)} {unit})")
        found.append(f"`{name}` is {' and '.join(words)}")
    name = ours(runs)[0]
    wins = sum(gain >= 0 for gain in gains(runs, name, better_parent))
    taken = Counter(run["rows"]["merged"]["note"].partition(":")[0] for run in runs if run["by"] == "auto")
    words = ", ".join(f"{way} {count} times" for way, count in taken.most_common())
    return (
        f"To two standard errors, {'; '.join(found)}. `{name}` is at least as good as {_BEST} on {wins} of {len(runs)} "
        f"seeds{'; `auto` took ' if words else ''}{words}."
    )


_BEST = "the parent that is better on the test data"


def page() -> str:
    """The section of docs/benchmarks.md: every task of which three seeds or more have been run, from the first on."""
    found, tables, parts = results(), [], []
    for name, task in TASKS.items():
        for by in ("auto", "joint"):  # the joint recipe has a table where there is no other
            keys = [(name, seed, by, None) for seed in range(task.seeds)]
            done = [seed for _, seed, _, _ in itertools.takewhile(found.__contains__, keys)]
            if len(done) >= 3:
                shown = with_others if by == "auto" else lambda found, name, seed: found[(name, seed, "joint", None)]
                tables.append([shown(found, name, seed) for seed in done])
                parts.append(task_section(name, by, tables[-1]))
                break
    seconds = sum(run.get("seconds", 0) for run in found.values())
    command = measured("python benchmarks/merging.py", seconds, "scikit-learn")
    return "\n\n".join([answer(tables), command, NOTE, *filter(None, [demo_sentence()]), *parts])


NOTE = """Two parents from their own seeds, `merge`, and the controls; each seed has a split of its own. `merged` is
what it delivers: the best, on validation data, of the parents, the soup, the aligned average and `distilled`, the
better parent after it has learnt from both on mixtures of examples (of a regression the end of the joint recipe), which
is what `--by distil` gives. Beside them stand `by joint`, and `without mixtures`, which learns the same of the examples
as they are: what `distilled` is better by than that comes from the mixtures, the rest from distillation. Where a split
had been measured before, its controls are those of then, on another processor, from the same seeds. Differences are
means over seeds with their standard errors. Epochs and multiply-adds count everything that a network is made of,
parents included; what teachers answer is not counted, in `distilled` a forward pass of both parents at every step.
By validation data of other seeds `auto` distils on digits (97.64 % against 97.17 % of the joint recipe, 12 seeds, by a
forerunner of `--choose --ways joint distil --tasks digits/cnn --seeds 12`) and trains the sine jointly (an error of
0.211 against 0.276, 6 seeds, by the same of `sine/mlp`); both would cost as much again. So was the rate chosen, 2.5
times the parents' with BatchNorm. That `auto` delivers what was
trained where its score equals a parent's was settled after a published split of ResNet-20 had gone to a parent: by
the loss, which decided before, `merged` is better there than the better parent by 0.46 ± 0.36 points.
The tasks of few examples were set before any was run on its published seeds: 200 digits had been chosen from 200, 300
and 400 on seeds 100 to 111, by what a merge gains over its parents on the demo's test images; the others followed from
them. With 100 examples to validate, `auto` takes a parent for the better one where it is not; `distilled` has no such
choice."""


SETTINGS: tuple[Way, ...] = (*(("joint", rate) for rate in (1.0, 2.5, 5.0, 10.0)), ("distil", 2.5))
"""Ways and rates to choose from, with BatchNorm and SGD; elsewhere the rate is that of the parents."""


def choose(names: Sequence[str], seeds: int, ways: Sequence[Way] = SETTINGS) -> str:
    """The settings side by side, on parents of seeds that are not published."""
    rows = []
    for name in names:
        chosen = range(CHOOSING, CHOOSING + seeds)
        run_missing(name, chosen, ways)
        for by, rate in ways:
            runs = [results()[(name, seed, by, rate)] for seed in chosen]
            validation = statistics.mean(run["rows"]["merged"]["validation"] for run in runs)
            rows.append([name, by, "" if rate is None else f"{rate:g}", f"{validation:.4f}"])
    return table(["task", "by", "rate", "validation"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", choices=[*TASKS, DEMO], default=[*TASKS, DEMO])
    parser.add_argument("--choose", action="store_true", help="try ways and rates, on other seeds")
    parser.add_argument("--ways", nargs="*", help="instead of all settings, these ways at their own rates")
    parser.add_argument("--seeds", type=int, help="instead of the task's number")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.choose:
        ways = SETTINGS if options.ways is None else [(by, None) for by in options.ways]
        print(choose(options.tasks, options.seeds or 3, ways))
        return
    for name in (name for name in options.tasks if name != DEMO):
        run_missing(name, range(options.seeds or TASKS[name].seeds), [(by, None) for by in TASKS[name].ways])
    if DEMO in options.tasks:
        for seed in range(10):
            if (DEMO, seed, "auto", None) not in results():
                write_down(one_demo(seed))
    write_section("merging", page(), DOCS / "benchmarks.md")


if __name__ == "__main__":
    main()
