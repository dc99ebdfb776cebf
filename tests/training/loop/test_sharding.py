"""Parameters that lie spread over two processes (FSDP, gloo): trained as in one, kept, and gone on with."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from two_processes import FSDP, in_two, shard_on_cpu

import graphsurgery as gs
from graphsurgery.errors import SurgeryError
from graphsurgery.training.loop import sharding
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.run import Run
from graphsurgery.training.objectives.tasks import CrossEntropy

PLAN = TrainingPlan(epochs=2, batch_size=10, lr=0.1, device="cpu", gradient_accumulation=2, clip=1.0, keep_best=True)


def small(norms):
    """A cut network, and data of which the processes get unlike numbers of batches."""
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(16)] if norms else []
    net = nn.Sequential(nn.Linear(4, 16), *norm, nn.ReLU(), nn.Linear(16, 3))
    graph = gs.compress(gs.trace(net, torch.zeros(2, 4)), 0.5)
    x = torch.randn(513, 4)
    return graph.module, TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def trained(folder, *, norms=False, stop=None):
    module, data = small(norms)

    class Stopped(CrossEntropy):
        def on_step(self, fraction_done):
            if stop is not None and fraction_done >= stop:
                raise KeyboardInterrupt

    part = TensorDataset(*(tensor[:40] for tensor in data.tensors))
    fit(module, part, PLAN, objective=Stopped(3), validation=data, run=Run(folder))
    return module.state_dict()


def test_two_processes_train_as_one_does(tmp_path):
    def work(rank):
        shard_on_cpu()
        prepared, seen = sharding.prepared, []
        sharding.prepared = lambda *given: (seen.append(found := prepared(*given)), found)[1]
        state = trained(tmp_path / "two")
        (_, module, _), parts = seen[0], []
        parts += [tuple(parameter.to_local().shape) for parameter in module.parameters()]
        torch.save({"state": state, "parts": parts}, tmp_path / f"{rank}.pt")

    in_two(work, **FSDP)
    zero, one = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(zero["state"], one["state"], rtol=0, atol=0)
    assert zero["parts"][0] == one["parts"][0] == (4, 4), "each has one half"
    expected = trained(tmp_path / "one")
    torch.testing.assert_close(zero["state"], expected, rtol=1e-4, atol=1e-5)


def deep(layers=4):
    """Large layers of one size in a row, between small ones."""
    torch.manual_seed(0)
    inner = [part for _ in range(layers) for part in (nn.Linear(256, 256), nn.ReLU())]
    return nn.Sequential(nn.Linear(4, 256), nn.LayerNorm(256), *inner, nn.Linear(256, 3))


def test_one_large_layer_is_whole_at_a_time(tmp_path):
    """Forward and backward; what else is whole is what is too small to ask for."""

    def work(rank):
        shard_on_cpu()
        prepared = sharding.prepared
        most = 0

        def watched(*given):
            called, module, optimizer = prepared(*given)

            def look(*_):
                nonlocal most
                whole = [p for p in module.parameters() if not hasattr(p, "full_tensor")]
                most = max(most, sum(p.numel() for p in whole))

            for layer in module.modules():
                layer.register_forward_hook(look)
                layer.register_full_backward_hook(look)
            return called, module, optimizer

        sharding.prepared = watched
        module = gs.trace(deep(), torch.zeros(2, 4)).module
        x = torch.randn(40, 4)
        data = TensorDataset(x, (x[:, 0] > 0).long())
        fit(module, data, PLAN, objective=CrossEntropy(3), validation=data)
        torch.save({"most": most, "state": module.state_dict()}, tmp_path / f"{rank}.pt")

    in_two(work, **FSDP)
    found = torch.load(tmp_path / "0.pt")
    large, all_of_it = 256 * 257, sum(p.numel() for p in deep().parameters())
    assert large <= found["most"] <= 2 * large + (all_of_it - 4 * large), "of four large layers two at most"
    module = gs.trace(deep(), torch.zeros(2, 4)).module
    torch.manual_seed(0)
    assert set(found["state"]) == set(module.state_dict())


def test_units_are_large_layers_that_are_called_once_and_share_nothing():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.twice = nn.Embedding(300, 256), nn.Linear(256, 256)
            self.once, self.read, self.head = nn.Linear(256, 256), nn.Linear(256, 256), nn.Linear(256, 300, bias=False)
            self.head.weight, self.rnn = self.words.weight, nn.GRU(256, 256, batch_first=True)

        def forward(self, x):
            x = self.twice(self.twice(self.words(x))) + self.once(self.words(x))
            x = self.rnn(self.read(x) * self.read.bias)[0]
            return self.head(x)

    module = gs.trace(Tied(), torch.zeros(2, 3, dtype=torch.int64)).module
    assert sharding.units_of(module) == [module.get_submodule("once")]
    assert sharding.units_of(Tied()) == []


def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path):
    def begin(rank):  # noqa: ARG001
        shard_on_cpu()
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "run", norms=True, stop=0.6)

    def go_on(rank):
        shard_on_cpu()
        again, through = (trained(tmp_path / name, norms=True) for name in ("run", "through"))
        torch.testing.assert_close(again, through, rtol=0, atol=0)
        torch.save(again, tmp_path / f"{rank}.pt")

    in_two(begin, **FSDP)
    in_two(go_on, **FSDP)
    assert (tmp_path / "0.pt").exists()
    with pytest.raises(SurgeryError, match=r"was trained under FSDP; go on so, or use a new run folder"):
        trained(tmp_path / "run", norms=True)


def test_what_cannot_be_spread_is_refused():
    class Whatever:
        is_fsdp2, device = False, torch.device("cpu")

    with pytest.raises(SurgeryError, match=r"takes its second version; give accelerate launch --fsdp_version 2"):
        sharding.own_copy(nn.Linear(2, 2), Whatever(), possible=True)
    Whatever.is_fsdp2 = True
    with pytest.raises(SurgeryError, match=r"gates, masks and widths hold parameters of their own"):
        sharding.own_copy(nn.Linear(2, 2), Whatever(), possible=False)
