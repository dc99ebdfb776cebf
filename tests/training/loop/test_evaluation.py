import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from graphsurgery.errors import SurgeryError
from graphsurgery.training.loop.evaluation import evaluate, recalibrate
from graphsurgery.training.objectives import CrossEntropy, MeanSquaredError, objective_for


def test_accuracy_and_loss_do_not_depend_on_the_batch_size(blobs, make_net):
    net = make_net().train()
    whole = evaluate(net, blobs, CrossEntropy(3), batch_size=100)
    parts = evaluate(net, blobs, CrossEntropy(3), batch_size=7)
    assert parts == pytest.approx(whole, rel=1e-6)
    x, y = blobs.tensors
    logits = net.eval()(x)
    assert whole["accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())
    assert whole["loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-6)


def test_modes_are_restored(blobs, make_net):
    net = make_net().train()
    net[1].eval()
    evaluate(net, blobs, CrossEntropy(3))
    assert [layer.training for layer in net] == [True, False, True, True, True]


def test_regression():
    data = TensorDataset(torch.ones(10, 1), torch.full((10, 1), 3.0))
    assert evaluate(nn.Identity(), data, MeanSquaredError()) == {"loss": 4.0, "mse": 4.0}


def test_objective_for():
    from graphsurgery.training.data import load_data

    assert isinstance(objective_for(load_data("sine")), MeanSquaredError)
    assert objective_for(load_data("digits")).classes == 10


def test_unknown_device(blobs, make_net):
    with pytest.raises(SurgeryError, match="device 'gpu': is unknown; use auto, cpu or cuda"):
        evaluate(make_net(), blobs, CrossEntropy(3), device="gpu")


def test_recalibrate(blobs, make_net):
    net = make_net().train()
    net[1].momentum = 0.3
    net[1].running_mean.fill_(100)
    weights = net[0].weight.clone()
    assert recalibrate(net, blobs, images=1000, batch_size=25) == 1
    hidden = net[0](blobs.tensors[0]).detach()
    torch.testing.assert_close(net[1].running_mean, hidden.mean(0))
    assert net[1].num_batches_tracked == 4
    assert net[1].momentum == 0.3
    assert all(layer.training for layer in net)
    assert torch.equal(net[0].weight, weights)


@pytest.mark.parametrize("examples", [24, 25, 26, 52, 90])
def test_recalibrating_counts_every_example_alike(examples):
    x = 5 * torch.randn(examples, 4, generator=torch.Generator().manual_seed(0)) + 3
    norm = nn.BatchNorm1d(4)
    recalibrate(norm, TensorDataset(x, torch.zeros(examples)), batch_size=25)
    # Batches of 22 and 23 examples, or of 17 and 18, differ a little.
    torch.testing.assert_close(norm.running_mean, x.mean(0), rtol=0.01, atol=0.05)
    torch.testing.assert_close(norm.running_var, x.var(0), rtol=0.1, atol=0)


def test_recalibrate_without_norms(blobs):
    assert recalibrate(nn.Linear(4, 3), blobs) == 0
