"""`graphsurgery compress`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from graphsurgery.cli.options import (
    OPENING,
    SHOWN,
    DryRun,
    Opening,
    Output,
    RunFolder,
    Seed,
    Shown,
    without_dry_run,
    writable,
)


def compress(
    model: str,
    /,
    *,
    output: Output,
    keep: float | None = None,
    keep_space: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    importance: str = "l2",
    round_to: int = 1,
    data: str | None = None,
    epochs: int = 0,
    lr: float | None = None,
    device: str = "auto",
    run: RunFolder = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    opening: Opening = OPENING,
    shown: Shown = SHOWN,
) -> None:
    """Remove channels; the result equals the network with the removed reads masked. With data, bring accuracy back.

    Parameters
    ----------
    model
        A checkpoint, a state_dict with --arch, or a model spec.
    keep
        Share of the channels that stays in every space, above 0 and at most 1.
    keep_space
        NAME=N for a number of channels of one space, NAME=0.25 for a share; may be given again. Without --keep the
        other spaces stay whole.
    importance
        Which channels stay: l2, l1, bn, taylor (needs data), gate or random.
    round_to
        Numbers of channels become multiples of this.
    data
        What the network was trained on: measures every step, and recalibrates BatchNorm.
    epochs
        Fine-tune for so long, by the plan the network was trained with and a fresh optimizer.
    lr
        Learning rate of the fine-tuning; by default a tenth of the training's.
    device
        Where to fine-tune: auto, cpu, cuda or any torch device.
    """
    writable(output)
    from dataclasses import asdict

    from graphsurgery.checkpoint import save
    from graphsurgery.cli.output import Output as Screen
    from graphsurgery.cli.output import columns, count
    from graphsurgery.cost import cost
    from graphsurgery.errors import SurgeryError
    from graphsurgery.recipes.shrink import Cut, cut, fine_tuning, parse_spaces, shrink
    from graphsurgery.training.data import check_fits, load_data
    from graphsurgery.training.run import Run

    if epochs and data is None:
        raise SurgeryError(f"compress: {epochs} epochs of fine-tuning need data; give --data")
    screen = Screen(shown)
    examples = load_data(data, seed=seed) if data else None
    graph = opening.graph(model, examples.input_shape if examples else None)
    if examples is not None:
        check_fits(examples, graph.module, name=model)
    plan = Cut(keep, parse_spaces(keep_space), importance, round_to, seed)
    document = {"model": model, "cut": asdict(plan)}
    if examples is None or dry_run:
        small, outcome = cut(graph, plan, examples), None
    else:
        chosen = {"epochs": epochs, "device": device, "seed": seed} | ({} if lr is None else {"lr": lr})
        training = fine_tuning(graph, **chosen)
        settings = {"command": "compress", "model": model, "cut": asdict(plan), "plan": asdict(training)}
        folder = None if run is None else Run(run, config=settings)
        small, outcome = shrink(graph, plan, examples, training, run=folder, reporter=screen.reporter())
    before, after = cost(graph), cost(small)
    table = columns("", "parameters", "MACs", right=["parameters", "MACs"])
    table.add_row("before", count(before.parameters), count(before.macs))
    table.add_row("after", count(after.parameters), count(after.macs))
    table.add_row("ratio", f"{after.parameters / before.parameters:.3f}", f"{after.macs / max(1, before.macs):.3f}")
    screen.show(table)
    document |= {"before": asdict(before), "after": asdict(after)}
    if outcome is not None:
        from graphsurgery.reports.tables import outcome_table

        screen.show(outcome_table(outcome))
        document["outcome"] = outcome.as_dict()
    if dry_run:
        screen.line("dry run", f"would write {output}")
        screen.finish(document, *without_dry_run())
        return
    save(small, output, **document)
    screen.line("wrote", str(output))
    screen.finish({**document, "files": {"network": output}}, "export", output, "-o", output.with_suffix(".onnx"))
