"""What a data function may return, and what is refused."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset

from graphsurgery.errors import SpecError
from graphsurgery.training.data.classes import class_count
from graphsurgery.training.data.loading import load_data

HEAD = """
import numpy as np
import torch
from torch.utils.data import *
from graphsurgery.training.data import Data

def part(n=20, k=3):
    return TensorDataset(torch.arange(4.0 * n).reshape(n, 4), torch.arange(n) % k)

class Named(Dataset):
    classes = ["a", "b", "c", "d", "e"]
    def __init__(self, n): self.n, self.targets = n, [i % 3 for i in range(n)]
    def __len__(self): return self.n
    def __getitem__(self, i): return torch.full((4,), float(i)), i % 3

def f():
    return """


@pytest.fixture
def returning(tmp_path):
    """The data of a function that returns an expression."""

    def load(expression, more=""):
        (tmp_path / "d.py").write_text(f"{HEAD}{expression}\n{more}")
        return load_data(f"{tmp_path / 'd.py'}:f")

    return load


THREE = (20, 20, 20)


@pytest.mark.parametrize(
    ("expression", "sizes", "classes"),
    [
        ("part(), part(), part(20, 4)", THREE, 4),
        ("[part(), part(), part()]", THREE, 3),
        ("{'train': part(), 'val': part(), 'test': part()}", THREE, 3),
        ("{'training': part(), 'validation': part()}", (18, 20, 2), 3),
        ("{'train': part(), 'test': part(10)}", (18, 2, 10), 3),
        ("part(), part(10)", (18, 2, 10), 3),
        ("part()", (16, 2, 2), 3),
        ("[part()]", (16, 2, 2), 3),
        ("Data(part(), part(), part(), (4,), 3, 'mine')", THREE, 3),
        ("DataLoader(part(), 7, shuffle=True), DataLoader(part()), DataLoader(part(), drop_last=True)", THREE, 3),
        ("DataLoader(part(), sampler=SubsetRandomSampler(range(12))), part(), part()", (12, 20, 20), 3),
        ("DataLoader(part(), batch_size=None), part(), part()", THREE, 3),
        ("[(torch.ones(4), i % 2) for i in range(20)], part(), part()", THREE, 3),
        ("torch.ones(20, 4), torch.arange(20) % 2", (16, 2, 2), 2),
        ("(np.ones((20, 4)), np.arange(20) % 2), part(), part()", THREE, 3),
        ("Named(20), Named(20), Named(20)", THREE, 5),
        ("(torch.ones(20, 4), torch.ones(20, 2))", (16, 2, 2), None),
    ],
)
def test_what_a_function_may_return(returning, expression, sizes, classes):
    data = returning(expression)
    assert tuple(map(len, (data.train, data.validation, data.test))) == sizes
    assert (data.input_shape, data.classes) == ((4,), classes)


def test_what_is_split_off_is_said(returning):
    assert returning("part(), part(), part()").parts == ""
    assert returning("part(), part(10)").parts == "18 train, 2 validation (split off train), 10 test"


def test_splits_that_are_made_do_not_meet(returning):
    data = returning("part()")
    seen = [int(part[i][0][0]) for part in (data.train, data.validation, data.test) for i in range(len(part))]
    assert sorted(seen) == list(range(0, 80, 4))


def test_arrays_are_floats_and_labels_whole_numbers(returning):
    data = returning("np.ones((20, 4)), np.arange(20, dtype=np.int32) % 2")
    assert [t.dtype for t in data.train[0]] == [torch.float32, torch.int64]


def test_a_loader_collates_examples_one_by_one(returning):
    make = "lambda b: (torch.stack([x for x, _ in b]) / 2, torch.tensor([y for _, y in b]))"
    data = returning(f"DataLoader(part(), 5, collate_fn={make}), part(), part()")
    assert data.train[1][0].tolist() == [2.0, 2.5, 3.0, 3.5]
    assert data.classes == 3


def test_a_file_may_say_how_many_classes_there_are(returning):
    assert returning("part()", "CLASSES = 7").classes == 7
    with pytest.raises(SpecError, match="CLASSES in its file is 'ten'; give a whole number above 0"):
        returning("part()", "CLASSES = 'ten'")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("None", r"d\.py:f: returned None, expected a Data, or \(train, validation, test\), or a dict"),
        ("'train'", "returned a str, expected"),
        ("part(), part(), part(), part()", "returned a tuple of 4, expected"),
        ("()", "returned a tuple of 0, expected"),
        ("{'trian': part()}", "a dict with 'trian', which is no split; did you mean train"),
        ("{'test': part()}", "a dict without 'train'"),
        ("{'train': part(), 'val': part(), 'dev': part()}", "two splits for validation"),
        ("5, part(), part()", "train is an int, expected a data set"),
        ("part(), part(0), part()", "validation has no examples; give at least one, or leave it out"),
        ("torch.ones(9, 4), torch.ones(3, 4)", "train has 9 inputs and 3 targets; give one for each"),
        ("torch.ones(0, 4), torch.ones(0)", "train has no examples"),
        ("part(1)", "has 1 training examples, too few to split validation and test off"),
        ("part(), part(), (torch.ones(9, 5), torch.ones(9).long())", r"inputs of train are \[4\], those of test \[5\]"),
        ("[{'image': torch.ones(4), 'label': 1}] * 9, part(), part()", "a dict with 'image', 'label'; return pairs"),
        ("[(object(), 1)] * 9, part(), part()", "inputs that are an object; make tensors of them"),
        ("[(torch.ones(4), 'cat')] * 9, part(), part()", "labels that are a str; give the number of the class"),
        ("(torch.ones(9, 4), torch.ones(9, 3).long()), part(), part()", r"labels that are a Tensor \[3\]"),
        ("(torch.ones(9, 4), -3 * torch.ones(9).long()), part(), part()", "train has the label -3"),
        (
            "type('I', (IterableDataset,), {'__iter__': lambda s: iter(())})(), part(), part()",
            "train is an IterableDataset",
        ),
        ("DataLoader(part(), sampler=WeightedRandomSampler([1.0] * 20, 5)), part(), part()", "WeightedRandomSampler"),
        ("DataLoader(part(), batch_sampler=[[0, 1]]), part(), part()", "a batch_sampler of its own"),
    ],
)
def test_what_is_refused(returning, expression, message):
    with pytest.raises(SpecError, match=message):
        returning(expression)


def test_an_error_in_the_file_has_its_line(tmp_path):
    (tmp_path / "d.py").write_text("def f():\n    return g()\n\ndef g():\n    return {}['x']\n")
    with pytest.raises(SpecError, match=r"d\.py:f: fails: .*d\.py:5 in g: KeyError: .x.; repair the file"):
        load_data(f"{tmp_path / 'd.py'}:f")
    broken = "    def __len__(self): return 9\n    def __getitem__(self, i): return 1 / 0\n"
    (tmp_path / "d.py").write_text(f"class S:\n{broken}\ndef f():\n    return S(), S(), S()\n")
    with pytest.raises(SpecError, match=r"d\.py:3 in __getitem__: ZeroDivisionError"):
        load_data(f"{tmp_path / 'd.py'}:f")


def test_a_file_without_its_function(tmp_path):
    (tmp_path / "d.py").write_text("raise RuntimeError\ndef loaders(): ...\ndef _own(): ...\n")
    with pytest.raises(SpecError, match=r"names a Python file, and which function of it .* give \S+d\.py:loaders$"):
        load_data(f"{tmp_path / 'd.py'}")
    with pytest.raises(SpecError, match=r"no\.py: no such file; expected a Python file"):
        load_data("no.py")


class Opaque(Dataset):
    """Images that are dear: each is counted when it is made."""

    def __init__(self, real, /, **attributes):
        self.real, self.made = real, 0
        vars(self).update(attributes)

    def __len__(self):
        return len(self.real)

    def __getitem__(self, index):
        self.made += 1
        return torch.ones(4), self.real[index]


LABELS = [0, 1, 5, 2] * 25


@pytest.mark.parametrize(
    "attributes",
    [{"targets": LABELS}, {"labels": np.array(LABELS)}, {"samples": [("a.png", y) for y in LABELS]}],
    ids=lambda attributes: next(iter(attributes)),
)
@pytest.mark.parametrize("around", ["alone", "subset", "subset of a subset", "joined"])
def test_classes_are_counted_without_images(attributes, around):
    whole = Opaque(LABELS, **attributes)
    few = Subset(whole, range(2, 60))
    data = {"alone": whole, "subset": few, "subset of a subset": Subset(few, range(0, 50))}
    part = data.get(around) or ConcatDataset([whole, few])
    assert class_count("d", {"train": part}) == 6
    assert whole.made <= 6


@pytest.mark.parametrize(
    "attributes", [{}, {"targets": LABELS[1:]}, {"targets": [9] * 100}, {"targets": ["cat"] * 100}]
)
def test_a_list_that_cannot_be_believed_is_not(attributes):
    whole = Opaque(LABELS, **attributes)
    assert class_count("d", {"train": whole}) == 6
    assert whole.made >= 100


def test_labels_that_are_transformed_are_looked_at():
    whole = Opaque([0, 3] * 5, targets=[0, 1] * 5, target_transform=lambda y: 3 * y)
    assert class_count("d", {"train": whole}) == 4


def test_loaders_of_one_data_set_with_other_samplers():
    whole = TensorDataset(torch.arange(10.0)[:, None], torch.arange(10))
    loader = DataLoader(whole, sampler=SubsetRandomSampler([3, 4]))
    from graphsurgery.training.data.functions import _dataset

    found = _dataset("d", loader)
    assert [float(found[i][0]) for i in range(2)] == [3.0, 4.0]
