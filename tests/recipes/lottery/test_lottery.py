"""Lottery tickets: rounds, controls, seeds, and going on after an interruption."""

from dataclasses import replace

import pytest
import torch

import graphsurgery as gs
from graphsurgery.checkpoint import read_metadata
from graphsurgery.models.loading import open_model
from graphsurgery.passes.gate import gate
from graphsurgery.recipes.lottery.lottery import lottery
from graphsurgery.recipes.lottery.plans import LotteryPlan
from graphsurgery.recipes.lottery.tickets import mean_and_deviation
from graphsurgery.recipes.train import fresh
from graphsurgery.reports.lottery import apart, draw_lottery, lottery_markdown, lottery_table
from graphsurgery.surgery.masks.mask_set import MaskSet
from graphsurgery.surgery.masks.plans import Restart, Selection
from graphsurgery.training.data import load_data
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.loop.run import Run
from graphsurgery.training.loop.snapshots import LossReadings, Snapshot
from graphsurgery.training.objectives import CrossEntropy

SPEC = "paper/lenet_300_100?in_features=64"
TRAINING = TrainingPlan(epochs=2, batch_size=64, optimizer="adam", lr=2e-3, schedule="constant", device="cpu")
PLAN = LotteryPlan(TRAINING, rounds=2, density=0.25)
SILENT = SilentReporter()


@pytest.fixture(scope="module")
def data():
    return load_data("digits?train=300")


@pytest.mark.parametrize("spec", [SPEC, "paper/resnet20?in_channels=1&width=4"])
def test_every_round_keeps_its_share_of_what_lives(spec, data, tmp_path):
    plan = replace(PLAN, selection=Selection(output=1.0), training=replace(TRAINING, epochs=1))
    found = lottery(spec, data, plan, folder=tmp_path, reporter=SILENT).outcome
    assert [point.round for point in found.points] == [0, 1, 2]
    living = found.masks[0, 0]
    for number in (1, 2):
        masks = found.masks[0, number]
        assert {n: int(m.sum()) for n, m in masks.items()} == {n: round(0.5 * int(m.sum())) for n, m in living.items()}
        assert (masks & living) == masks
        ticket = gs.load(tmp_path / "seed-0" / f"round-{number:02d}.pt")
        assert MaskSet.nonzero(ticket) == masks
        record = read_metadata(tmp_path / "seed-0" / f"round-{number:02d}.pt")
        assert MaskSet.from_dict(record["masks"]) == masks
        assert record["metrics"]["density"] == found.of(number)[0].density == masks.density
        living = masks


def test_the_network_is_the_chosen_ticket_of_the_first_seed(data, tmp_path):
    plan = replace(PLAN, seeds=2, training=replace(TRAINING, epochs=1))
    graph, outcome = lottery(SPEC, data, plan, reporter=SILENT)
    assert MaskSet.nonzero(graph) == outcome.masks[0, outcome.delivered]
    kept = lottery(SPEC, data, plan, folder=tmp_path, reporter=SILENT).graph
    assert kept.lineage[-1] == graph.lineage[-1]
    assert all(torch.equal(tensor, kept.tensors()[name]) for name, tensor in graph.tensors().items())
    assert [row.name for row in outcome.rows] == ["dense", "ticket of round 1", "ticket of round 2"]
    assert [row.test["accuracy"] for row in outcome.rows] == [outcome.mean(number)[0] for number in outcome.rounds]
    assert {record.stage for record in outcome.curves} == {
        f"seed-{s}.round-0{n}.ticket" for s in (0, 1) for n in (0, 1, 2)
    }


def test_in_one_shot_every_density_comes_from_the_dense_network(data):
    found = lottery(SPEC, data, replace(PLAN, one_shot=True, selection=Selection(output=1.0)), reporter=SILENT).outcome
    assert [round(found.of(number)[0].density, 2) for number in found.rounds] == [1.0, 0.5, 0.25]
    assert (found.masks[0, 2] & found.masks[0, 1]) == found.masks[0, 2]


def test_seeds_and_controls(data):
    controls = ("reinit", "shuffle", "constant, sign kept", "variant-1")
    plan = replace(PLAN, seeds=2, controls=controls, control_rounds=(2,), restart=Restart("rewind"))
    found = lottery(SPEC, data, plan, reporter=SILENT).outcome
    assert found.names == ["ticket", *controls]
    assert [len(found.of(2, name)) for name in found.names] == [2] * 5
    assert found.of(1, "reinit") == []
    assert {point.stop for point in found.points} <= {0, 5, 10}
    mean, deviation = found.mean(2, "reinit")
    values = [point.test["accuracy"] for point in found.of(2, "reinit")]
    assert (mean, deviation) == mean_and_deviation(values)
    assert all(point.test["accuracy"] > 0.5 for point in found.of(2))
    assert found.masks[0, 1] != found.masks[1, 1]


def test_tickets_of_a_network_go_back_to_its_weights(data, tmp_path):
    """Every seed starts from the network as it is, which stays so; the control has weights of its own."""
    start = fresh("paper/cnn?width=4", data, 7)
    before = {name: tensor.clone() for name, tensor in start.tensors().items()}
    # No training at all: a ticket is the network under its mask.
    plan = replace(
        PLAN,
        rounds=1,
        seeds=2,
        training=replace(TRAINING, lr=0.0, epochs=1),
        restart=Restart("rewind"),
        controls=("reinit",),
    )
    found = lottery("a.pt", data, plan, start=start, folder=tmp_path, reporter=SILENT).outcome
    for seed in (0, 1):
        ticket = gs.load(tmp_path / f"seed-{seed}" / "round-01.pt")
        for name, mask in found.masks[seed, 1].items():
            assert torch.equal(ticket.tensors()[name], before[name] * mask)
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.tensors().items())
    assert found.of(1, "reinit")[0].test["loss"] != found.of(1)[0].test["loss"]


def test_choice_is_by_validation_data_only(data):
    found = lottery(SPEC, replace(data, test=data.train), PLAN, reporter=SILENT).outcome
    other = lottery(SPEC, replace(data, test=data.validation), PLAN, reporter=SILENT).outcome
    assert found.chosen == other.chosen
    assert [p.validation for p in found.points] == [p.validation for p in other.points]


class Stopped(Exception):
    """As if somebody had pulled the plug."""


class Stopping(SilentReporter):
    def __init__(self, epochs):
        self.left = epochs

    def epoch_finished(self, _):
        self.left -= 1
        if self.left == 0:
            raise Stopped


REWOUND = replace(PLAN, controls=("shuffle",), restart=Restart("rewind"), rewind_to=3, stop_every=2)


@pytest.fixture(scope="module")
def expected(data):
    return lottery(SPEC, data, REWOUND, reporter=SILENT).outcome


@pytest.mark.parametrize("epochs", [1, 3, 4, 5])
def test_a_lottery_goes_on_between_rounds_and_within_them(epochs, data, expected, tmp_path):
    plan, run = REWOUND, Run(tmp_path, save_every=2)
    with pytest.raises(Stopped):
        lottery(SPEC, data, plan, run=run, reporter=Stopping(epochs))
    found = lottery(SPEC, data, plan, run=run, reporter=SILENT).outcome
    assert found.points == expected.points
    assert found.masks == expected.masks
    again = Stopping(1)
    assert lottery(SPEC, data, plan, run=run, reporter=again).outcome.points == expected.points
    assert again.left == 1


def test_a_snapshot_is_what_training_so_far_gives(data):
    """The weights after step 5 of 10 are those of a training of one epoch of 5."""
    graph, short = fresh(SPEC, data, 0), fresh(SPEC, data, 0)
    watched = Snapshot(CrossEntropy(10), graph.module, 5)
    fit(graph.module, data.train, TRAINING, objective=watched, reporter=SILENT)
    fit(short.module, data.train, replace(TRAINING, epochs=1), objective=CrossEntropy(10), reporter=SILENT)
    assert watched.values.keys() == short.tensors().keys()
    assert all(torch.equal(tensor, watched.values[name]) for name, tensor in short.tensors().items())


def test_reading_the_loss_more_often_changes_nothing_but_the_step(data):
    plan = replace(PLAN, rounds=1, training=replace(TRAINING, epochs=6, lr=2e-2))
    found, finely = (lottery(SPEC, data, replace(plan, stop_every=n), reporter=SILENT).outcome for n in (0, 2))
    assert [replace(p, stop=0) for p in finely.points] == [replace(p, stop=0) for p in found.points]
    assert all(point.stop % 5 == 0 for point in found.points)
    assert all(point.stop % 5 == 0 or point.stop % 2 == 0 for point in finely.points)
    assert any(point.stop % 5 for point in finely.points)


def test_losses_are_read_every_so_many_steps(data):
    graph, short = fresh(SPEC, data, 0), fresh(SPEC, data, 0)
    watched = LossReadings(CrossEntropy(10), graph.module, data.validation, 5)
    fit(graph.module, data.train, replace(TRAINING, epochs=3), objective=watched, reporter=SILENT)
    history = fit(
        short.module, data.train, TRAINING, objective=CrossEntropy(10), validation=data.validation, reporter=SILENT
    )
    assert watched.losses == {5 * record.epoch: record.validation["loss"] for record in history.records}


@pytest.mark.parametrize("criterion", ["snip", "movement"])
def test_criteria_that_need_more(criterion, data):
    found = lottery(SPEC, data, replace(PLAN, rounds=1, selection=Selection(criterion)), reporter=SILENT).outcome
    assert len(found.points) == 2


def test_table_and_plot(data, tmp_path):
    plan = replace(PLAN, seeds=2, controls=("reinit",), training=replace(TRAINING, epochs=1))
    found = lottery(SPEC, data, plan, reporter=SILENT).outcome
    text = lottery_markdown(found)
    assert len(text.splitlines()) == 5
    assert "±" in text
    assert "ticket: test accuracy | stops at step | reinit: test accuracy" in text
    assert lottery_table(found).row_count == 3
    draw_lottery(found, tmp_path / "plot.svg")
    draw_lottery(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.svg").read_text().count("reinit") >= 1
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("densities", "ticks"),
    [
        ([100, 50, 25], [100, 50, 25]),
        ([100, 90, 10, 9, 1], [100, 10, 1]),
        ([100], [100]),
        ([100 * 0.8**n for n in range(25)], None),
    ],
)
def test_ticks_are_densities_that_were_trained(densities, ticks):
    found = apart(densities)
    assert found == ticks or (ticks is None and 5 <= len(found) <= 9)
    assert set(found) <= set(densities)
    assert (found[0], found[-1]) == (max(densities), min(densities))


def test_regression_has_tickets_too():
    spec = "paper/mlp?hidden=20"
    found = lottery(spec, load_data("sine?train=500"), replace(PLAN, seeds=2, rounds=1), reporter=SILENT).outcome
    assert found.metric == "mse"
    assert "±" in lottery_markdown(found)


BAD = {
    "density": ({"density": 1.0}, r"density is 1, expected a share between 0 and 1"),
    "rounds": ({"rounds": 0}, r"rounds is 0, expected at least 1"),
    "control": ({"controls": ("luck",)}, r"control 'luck' is unknown; choose from reinit; shuffle"),
    "control round": ({"control_rounds": (3,)}, r"control round 3 is not one of the rounds 1 to 2"),
    "readings": ({"stop_every": -1}, r"stop_every is -1, expected a number of steps from 0"),
    "no control": ({"control_rounds": (1,)}, r"control rounds are given, and no control"),
    "no rewinding": ({"rewind_to": 5}, r"rewind_to is step 5, and lr-rewind goes on from the last weights"),
    "rewind": ({"rewind_to": -1}, r"rewind_to is -1, expected a number of steps from 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_plans_are_refused(case):
    options, message = BAD[case]
    with pytest.raises(gs.SurgeryError, match=message):
        replace(PLAN, **options)


@pytest.mark.parametrize("options", [{"controls": ("shuffle",)}, {"restart": Restart(dead="freeze")}])
def test_a_step_to_go_back_to_is_for_all_that_begin_there(options):
    assert replace(PLAN, rewind_to=5, **options).rewind_to == 5


def test_a_start_that_does_not_fit_is_refused(data):
    with pytest.raises(gs.SpecError, match=r"a.pt: does not take the inputs \[1, 8, 8\] of digits"):
        lottery("a.pt", data, PLAN, start=open_model("paper/lenet_300_100"), reporter=SILENT)
    with pytest.raises(gs.SurgeryError, match=r"lottery: a.pt has gates; fold or compress it first"):
        lottery("a.pt", data, PLAN, start=gate(fresh("paper/cnn?width=4", data, 0)), reporter=SILENT)


def test_what_training_does_not_reach_and_what_would_be_empty_is_refused(data):
    with pytest.raises(gs.SurgeryError, match=r"rewind_to is step 99, training has 10"):
        lottery(SPEC, data, replace(PLAN, rewind_to=99, restart=Restart("rewind")), reporter=SILENT)
    with pytest.raises(
        gs.SurgeryError, match=r"fc1.weight has 19200 living weights of 19200, and 1e-06 % .* keep more"
    ):
        lottery(SPEC, data, replace(PLAN, density=1e-8, rounds=1), reporter=SILENT)
