import math

import pytest
import torch
from torch import nn
from torch.utils.data import Subset

from graphsurgery.errors import SurgeryError
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.run import Run
from graphsurgery.training.objectives import CrossEntropy

PLAN = TrainingPlan(epochs=3, batch_size=16, lr=0.1, device="cpu", seed=5)


def plan(**changes):
    return TrainingPlan(**{**PLAN.__dict__, **changes})


def trained(net, data, chosen=PLAN, **options):
    history = fit(net, data, chosen, objective=options.pop("objective", CrossEntropy(3)), **options)
    return net.state_dict(), history


def same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


class Counting(CrossEntropy):
    """Has a state, adds a term, logs a number, and can fail at a step."""

    def __init__(self, *, fail_at=None, error=RuntimeError):
        super().__init__(3)
        self.calls, self.strength, self.fail_at, self.error = 0, 0.0, fail_at, error
        self.fractions = []

    def on_step(self, fraction_done):
        self.fractions.append(fraction_done)
        if self.calls == self.fail_at:
            raise self.error("stopped")
        self.calls += 1
        self.strength += 0.001 * fraction_done

    def loss(self, module, batch):
        task = super().loss(module, batch)["total"]
        size = sum(p.square().sum() for p in module.parameters())
        return {"total": task + self.strength * size, "task": task}

    def epoch_metrics(self):
        return {"strength": self.strength}

    def state_dict(self):
        return {"calls": self.calls, "strength": self.strength}

    def load_state_dict(self, state):
        self.calls, self.strength = state["calls"], state["strength"]


def test_training_learns(blobs, make_net):
    net = make_net()
    _, history = trained(net, blobs, plan(epochs=10), validation=blobs)
    assert [record.epoch for record in history.records] == list(range(1, 11))
    assert history.records[-1].train["total"] < history.records[0].train["total"]
    assert history.records[-1].validation["accuracy"] > 0.9
    assert not net.training


def test_the_seed_fixes_everything_and_the_random_state_of_the_caller_is_kept(blobs, make_net):
    first, _ = trained(make_net(), blobs)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    net = make_net()
    torch.manual_seed(1)
    second, _ = trained(net, blobs)
    assert torch.equal(torch.rand(3), expected)
    same(first, second)
    other, _ = trained(make_net(), blobs, plan(seed=6))
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_a_data_set_that_is_not_in_memory_trains_alike(blobs, make_net):
    first, _ = trained(make_net(), blobs)
    second, _ = trained(make_net(), Subset(blobs, range(100)))
    same(first, second)


def test_accumulation_takes_the_same_steps(blobs):
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    start = {name: t.clone() for name, t in net.state_dict().items()}
    first = {name: t.clone() for name, t in trained(net, blobs, plan(clip=0.5))[0].items()}
    net.load_state_dict(start)
    second, _ = trained(net, blobs, plan(clip=0.5, gradient_accumulation=3))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_other_optimizers(blobs, make_net, optimizer):
    _, history = trained(make_net(), blobs, plan(optimizer=optimizer, lr=0.01, weight_decay=0.01, warmup=1.0))
    assert history.records[-1].train["total"] < history.records[0].train["total"]


def test_mixed_precision_leaves_the_module_plain(blobs, make_net):
    net = make_net()
    trained(net, blobs, plan(mixed_precision="bf16"))
    assert "forward" not in vars(net)
    assert net[0].weight.dtype == torch.float32
    trained(net, blobs)  # the next stage may choose another precision


def test_keep_best_restores_the_best_weights(blobs, make_net):
    net = make_net()
    _, history = trained(net, blobs, plan(epochs=6, lr=0.5, keep_best=True), validation=blobs)
    from graphsurgery.training.loop.evaluation import evaluate

    best = max(record.validation["accuracy"] for record in history.records)
    assert history.records[history.best_epoch - 1].validation["accuracy"] == best
    assert evaluate(net, blobs, CrossEntropy(3))["accuracy"] == best
    with pytest.raises(SurgeryError, match="keep_best needs validation data"):
        trained(net, blobs, plan(keep_best=True))


class Breaking(CrossEntropy):
    """Its validation score is no number in some epochs."""

    def __init__(self, *broken):
        super().__init__(3)
        self.broken, self.epoch = broken, 0

    def metrics(self):
        self.epoch += 1
        return super().metrics()

    def predict(self, module, batch):
        output, target = super().predict(module, batch)
        return output * math.nan if self.epoch in self.broken else output, target

    score, higher_is_better = "loss", False


def test_what_is_no_number_is_never_the_best(blobs, make_net):
    _, history = trained(make_net(), blobs, plan(keep_best=True), objective=Breaking(1), validation=blobs)
    losses = [record.validation["loss"] for record in history.records]
    assert math.isnan(losses[0])
    assert losses[history.best_epoch - 1] == min(losses[1:])
    with pytest.raises(SurgeryError, match="train: validation loss is no number in any epoch"):
        trained(make_net(), blobs, plan(keep_best=True), objective=Breaking(1, 2, 3), validation=blobs)


def test_a_special_group_and_the_objectives_hooks(blobs, make_net):
    net, objective = make_net(), Counting()
    frozen = net[1].weight.clone()
    groups = [{"params": [net[1].weight], "lr": 0.0, "weight_decay": 0.0, "schedule": "constant"}]
    _, history = trained(net, blobs, objective=objective, param_groups=groups)
    assert torch.equal(net[1].weight, frozen)
    assert set(history.records[0].train) == {"total", "task"}
    assert history.records[-1].extra == {"strength": objective.strength}
    assert objective.fractions == pytest.approx([step / 21 for step in range(21)])


@pytest.mark.parametrize("save_every", [0, 1, 3])
@pytest.mark.parametrize("fail_at", [0, 5, 7, 12, 20])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, blobs, make_net, save_every, fail_at):
    chosen = plan(keep_best=True, optimizer="adamw", lr=0.02)
    whole = Run(tmp_path / "whole")
    expected, history = trained(make_net(), blobs, chosen, objective=Counting(), validation=blobs, run=whole)

    run = Run(tmp_path / "cut", save_every=save_every)
    with pytest.raises(RuntimeError, match="stopped"):
        trained(make_net(), blobs, chosen, objective=Counting(fail_at=fail_at), validation=blobs, run=run)
    torch.manual_seed(99)
    again = Run(tmp_path / "cut", save_every=save_every)
    found, resumed = trained(make_net(), blobs, chosen, objective=Counting(), validation=blobs, run=again)
    same(found, expected)
    assert resumed.best_epoch == history.best_epoch
    assert timeless(again.metrics()) == timeless(whole.metrics())
    assert [record.train for record in resumed.records] == [record.train for record in history.records]


class Clocked(nn.Module):
    """Has a buffer that no state_dict has, and that training moves."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.layer = nn.Linear(4, 3)
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.steps += 1
        return self.layer(x) / (1 + 0.1 * self.steps)


def test_what_no_state_dict_has_is_resumed_and_restored_too(tmp_path, blobs):
    _, history = trained(best := Clocked(), blobs, plan(keep_best=True), objective=Breaking(3), validation=blobs)
    assert history.best_epoch < 3
    assert best.steps == 7 * history.best_epoch
    with pytest.raises(RuntimeError, match="stopped"):
        trained(Clocked(), blobs, plan(lr=5.0), objective=Counting(fail_at=12), run=Run(tmp_path, save_every=2))
    trained(found := Clocked(), blobs, plan(lr=5.0), objective=Counting(), run=Run(tmp_path, save_every=2))
    trained(whole := Clocked(), blobs, plan(lr=5.0), objective=Counting())
    same(found.state_dict(), whole.state_dict())
    assert found.steps == whole.steps == 21


def timeless(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def test_a_kill_between_the_metrics_line_and_the_state(tmp_path, blobs, make_net, monkeypatch):
    expected, _ = trained(make_net(), blobs)
    run = Run(tmp_path)
    save = run.save_state

    def killed(stage, state):
        if state["position"]["epoch"] == 2:
            raise KeyboardInterrupt
        save(stage, state)

    monkeypatch.setattr(run, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(make_net(), blobs, run=run)
    assert [record["epoch"] for record in run.metrics()] == [1, 2]
    found, _ = trained(make_net(), blobs, run=Run(tmp_path))
    same(found, expected)
    assert [record["epoch"] for record in run.metrics()] == [1, 2, 3]


def test_a_finished_stage_is_loaded_not_trained(tmp_path, blobs, make_net):
    expected, history = trained(make_net(), blobs, objective=Counting(), run=Run(tmp_path))
    found, again = trained(make_net(), blobs, objective=Counting(fail_at=0), run=Run(tmp_path))
    same(found, expected)
    assert again == history


def test_a_state_of_something_else_is_refused(tmp_path, blobs, make_net):
    run = Run(tmp_path)
    trained(make_net(), blobs, run=run)
    with pytest.raises(SurgeryError, match=r"train.state.pt: was trained with lr=0.1, now 0.2; use a new run folder"):
        trained(make_net(), blobs, plan(lr=0.2), run=run)
    with pytest.raises(SurgeryError, match="was trained on 100 examples, now 50"):
        trained(make_net(), Subset(blobs, range(50)), run=run)
    with pytest.raises(SurgeryError, match=r"has weight of shape None, the model \(3, 4\)"):
        trained(nn.Linear(4, 3), blobs, run=run)


def test_a_loss_that_is_not_finite(tmp_path, blobs, make_net):
    run = Run(tmp_path, save_every=1)

    class Breaking(Counting):
        def loss(self, module, batch):
            scale = float("nan") if self.calls == 10 else 1.0
            return {"total": super().loss(module, batch)["total"] * scale}

    message = (
        r"gates: the loss is nan in epoch 2, step 3, at a learning rate of 0\.1; try lr=0\.01 or warmup=1 or clip=1; "
        r"the last good state is .*gates.state"
    )
    with pytest.raises(SurgeryError, match=message):
        fit(make_net(), blobs, PLAN, objective=Breaking(), run=run, stage="gates")
    state = run.load_state("gates")
    assert (state["position"]["epoch"], state["position"]["step"]) == (1, 2)
    assert all(t.isfinite().all() for t in state["model"].values())


def test_a_line_per_epoch_away_from_a_terminal(blobs, make_net, logged):
    trained(make_net(), blobs, plan(epochs=2), validation=blobs)
    assert len(logged) == 2
    assert logged[0].startswith("train epoch 1/2: train total ")
