import multiprocessing

import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from graphsurgery.errors import SurgeryError
from graphsurgery.training.data.batches import Examples, epoch_plan
from graphsurgery.training.data.dataset import UNLABELLED
from graphsurgery.training.data.transfer import unlabelled


def flat(plan):
    return torch.cat([part for step in plan for parts in step for part in parts])


def test_a_step_sees_the_same_examples_however_they_are_shared():
    one = epoch_plan(101, 20, processes=1, accumulation=1, seed=3, epoch=2)
    many = epoch_plan(101, 20, processes=2, accumulation=3, seed=3, epoch=2)
    assert [len(step[0][0]) for step in one] == [17, 17, 17, 17, 17, 16]
    assert torch.equal(flat(one), flat(many))
    assert [[len(part) for part in parts] for parts in many[0]] == [[3, 3], [3, 3], [3, 2]]


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {
        (seed, epoch): flat(epoch_plan(50, 10, processes=1, accumulation=1, seed=seed, epoch=epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(order.tolist()) for order in orders.values()}) == 4
    assert all(order.sort().values.equal(torch.arange(50)) for order in orders.values())


def test_a_batch_smaller_than_its_shares():
    with pytest.raises(SurgeryError, match="batch of 2 examples: cannot be shared by 2 processes and 2 accumulation"):
        epoch_plan(50, 2, processes=2, accumulation=2, seed=0, epoch=0)


class Noisy(Dataset):
    """Examples with a random augmentation."""

    def __getitem__(self, index):
        return torch.rand(2) + index, index

    def __len__(self):
        return 6


@pytest.mark.parametrize("workers", [0, 1])
def test_augmentation_is_a_function_of_seed_and_index(workers):
    indices = [torch.tensor([1, 4]), torch.tensor([5])]
    state = torch.get_rng_state()
    found = list(Examples(Noisy(), torch.device("cpu"), workers=workers).batches(indices, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    expected = list(Examples(Noisy(), torch.device("cpu")).batches(indices[1:], seed=3))
    torch.testing.assert_close(found[1], expected[0], rtol=0, atol=0)
    other = list(Examples(Noisy(), torch.device("cpu")).batches(indices, seed=4))
    assert not torch.equal(other[0][0], found[0][0])


class Damaged(Noisy):
    def __getitem__(self, index):
        if index == 5:
            raise ValueError("a damaged image")
        return super().__getitem__(index)


def test_no_worker_outlives_an_error_whose_traceback_is_kept():
    batches = Examples(Damaged(), torch.device("cpu"), workers=1).batches([torch.tensor([5]), torch.tensor([1])])
    with pytest.raises(ValueError, match="a damaged image") as kept:
        next(batches)
    assert kept.value.__traceback__ is not None
    assert multiprocessing.active_children() == []


def test_no_examples():
    with pytest.raises(SurgeryError, match="has no examples"):
        Examples(TensorDataset(torch.empty(0, 2)), torch.device("cpu"))


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8, torch.bool])
@pytest.mark.parametrize("in_memory", [True, False])
def test_labels_of_any_kind_are_classes(kind, in_memory):
    dataset = TensorDataset(torch.zeros(6, 2), torch.tensor([0, 1, 1, 0, 1, 0]).to(kind))
    examples = Examples(dataset if in_memory else Subset(dataset, range(6)), torch.device("cpu"))
    (batch,) = examples.batches([torch.arange(6)])
    assert batch[1].dtype == torch.int64
    assert batch[1].tolist() == [0, 1, 1, 0, 1, 0]
    assert set(unlabelled(dataset).tensors[1].tolist()) == {UNLABELLED}
