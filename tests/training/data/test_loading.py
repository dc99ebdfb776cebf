import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from graphsurgery.errors import SpecError
from graphsurgery.models import build
from graphsurgery.training.data import check_fits, load_data


def write_idx(path, array, *, cut=0):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = (header + array.astype(np.uint8).tobytes())[: -cut or None]
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def fashion(tmp_path):
    random = np.random.default_rng(0)
    for prefix, count in (("train", 50), ("t10k", 10)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", random.integers(0, 256, (count, 28, 28)))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path


def test_digits():
    data = load_data("digits")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1150, 287, 360]
    assert (data.input_shape, data.classes, data.name) == ((1, 8, 8), 10, "digits")
    x = data.train.tensors[0]
    assert abs(x.mean().item()) < 1e-5
    assert abs(x.std().item() - 1) < 1e-5


def test_splits_are_disjoint_and_do_not_follow_the_training_seed():
    first, second = load_data("digits", seed=0), load_data("digits", seed=1)
    torch.testing.assert_close(first.validation.tensors, second.validation.tensors, rtol=0, atol=0)
    rows = torch.cat([part.tensors[0].flatten(1) for part in (first.train, first.validation, first.test)])
    assert len(rows.unique(dim=0)) == 1797
    other = load_data("digits?split_seed=1")
    assert not torch.equal(first.validation.tensors[1], other.validation.tensors[1])


def test_fewer_training_examples():
    few = load_data("digits?train=100", seed=3)
    again = load_data("digits?train=100", seed=3)
    other = load_data("digits?train=100", seed=4)
    assert isinstance(few.train, TensorDataset)
    assert len(few.train) == 100
    torch.testing.assert_close(few.train.tensors, again.train.tensors, rtol=0, atol=0)
    assert not torch.equal(few.train.tensors[1], other.train.tensors[1])
    assert len(few.test) == 360


def test_fewer_examples_to_validate():
    few, other = (load_data("digits?train=100&validation=50", seed=seed) for seed in (3, 4))
    whole = load_data("digits")
    assert [len(part) for part in (few.train, few.validation, few.test)] == [100, 50, 360]
    torch.testing.assert_close(few.validation.tensors, other.validation.tensors, rtol=0, atol=0)
    rows = {row.tobytes() for row in whole.validation.tensors[0].numpy()}
    assert {row.tobytes() for row in few.validation.tensors[0].numpy()} <= rows


def test_sine():
    data = load_data("sine")
    assert (len(data.train), data.classes, data.input_shape) == (10_000, None, (1,))
    x, y = data.train.tensors
    assert x.abs().max() <= 1
    assert abs((y - torch.sin(10 * torch.pi * x)).std().item() - 0.2) < 0.005
    x, y = data.test.tensors
    torch.testing.assert_close(y, torch.sin(10 * torch.pi * x))


def test_fashion_mnist_from_a_folder(fashion):
    data = load_data(f"fashion-mnist:{fashion}")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [45, 5, 10]
    assert data.input_shape == (1, 28, 28)
    assert data.classes == 10


def test_image_folder(images):
    data = load_data(f"imagefolder:{images}?size=14")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 6, 2]
    assert data.train[0][0].shape == (3, 14, 14)
    assert (data.input_shape, data.classes) == ((3, 14, 14), 2)
    torch.testing.assert_close(data.test[0][0], data.test[0][0])


def test_image_folder_without_parts(images):
    data = load_data(f"imagefolder:{images / 'train'}?size=14")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [16, 2, 2]


@pytest.mark.parametrize(("train", "val"), [("Train", "valid"), ("training", "Validation"), ("train", "dev")])
def test_parts_go_by_their_usual_names(images, train, val):
    (images / "train").rename(images / train)
    (images / "val").rename(images / val)
    data = load_data(f"imagefolder:{images}?size=14")
    assert ([len(part) for part in (data.train, data.validation, data.test)], data.classes) == ([18, 6, 2], 2)
    (images / "VAL").mkdir()
    with pytest.raises(SpecError, match=r"has .* and .*, two folders of one part; give one"):
        load_data(f"imagefolder:{images}?size=14")


def test_parts_are_no_classes(images):
    (images / "train").rename(images / "learning")
    with pytest.raises(SpecError, match="has val with folders in it, and no train; name the training part so"):
        load_data(f"imagefolder:{images}?size=14")


def test_a_function(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def make(n=6):\n    return tuple(TensorDataset(torch.zeros(n, 3), torch.arange(n) % 4) for _ in range(3))\n"
        "def odd():\n    return 3\n"
    )
    data = load_data(f"{path}:make?n=8&train=5")
    assert (len(data.train), len(data.test), data.classes, data.input_shape) == (5, 8, 4, (3,))
    with pytest.raises(SpecError, match=r"returned an int, expected a Data, or .train, validation, test"):
        load_data(f"{path}:odd")
    with pytest.raises(SpecError, match=r"has no option 'm'; accepted: n"):
        load_data(f"{path}:make?m=3")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "unknown data 'digit'; did you mean digits"),
        ("digits?trian=5", "has no option 'trian'; accepted: split_seed, train, validation"),
        ("digits?validation=288", "validation=288 examples, the data have 287; give a number from 1 to 287"),
        ("digits?validation=all", "validation=all examples, the data have 287"),
        ("digits?train=2000", "train=2000 examples, the data have 1150"),
        ("digits?train=0", "give a number from 1 to 1150"),
        ("digits?split_seed=x", "split_seed=x is not a whole number"),
        ("digits:somewhere", "digits takes no folder"),
        ("fashion-mnist:/no/where", "/no/where: is not a folder"),
        ("cifar10:/no/where", "/no/where: is not a folder; give the one that holds cifar-10-batches-py"),
        ("imagefolder:/no/where", "/no/where: is not a folder"),
        ("imagefolder", "DIR: is not a folder"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(SpecError, match=message):
        load_data(spec)


def test_an_empty_folder(tmp_path):
    with pytest.raises(SpecError, match="has no train-images-idx3-ubyte"):
        load_data(f"fashion-mnist:{tmp_path}")
    with pytest.raises(SpecError, match="has no whole copy of CIFAR10"):
        load_data(f"cifar10:{tmp_path}")
    with pytest.raises(SpecError, match="has no class folders"):
        load_data(f"imagefolder:{tmp_path}")


def test_truncated_files(fashion):
    images = fashion / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(SpecError, match=r"train-images-idx3-ubyte.gz: cannot be read"):
        load_data(f"fashion-mnist:{fashion}")
    write_idx(images, np.zeros((50, 28, 28)), cut=7)
    with pytest.raises(SpecError, match="has 39193 bytes of data, its header says 39200"):
        load_data(f"fashion-mnist:{fashion}")
    write_idx(images, np.zeros((49, 28, 28)))
    with pytest.raises(SpecError, match=r"has images \[49, 28, 28\] and labels \[50\]"):
        load_data(f"fashion-mnist:{fashion}")
    images.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(SpecError, match="is not an IDX file"):
        load_data(f"fashion-mnist:{fashion}")


def test_check_fits():
    data = load_data("digits")
    module = build("paper/cnn").train()
    check_fits(data, module)
    assert module.training
    assert module.norm1.num_batches_tracked == 0
    with pytest.raises(SpecError, match=r"; give paper/lenet_300_100\?in_features=64&classes=10$"):
        check_fits(load_data("digits"), build("paper/lenet_300_100"), name="paper/lenet_300_100")
    wrong = "paper/cnn?width=3&in_channels=3"
    with pytest.raises(SpecError, match=r"; give paper/cnn\?width=3&in_channels=1&classes=10$"):
        check_fits(data, build(wrong), name=wrong)
    with pytest.raises(SpecError, match=r"a.pt: does not take the inputs \[1, 8, 8\] of digits .*in_channels"):
        check_fits(data, build("paper/cnn?in_channels=3"), name="a.pt")
    with pytest.raises(SpecError, match=r"gives outputs \[7\], digits has 10 classes; build it with \?classes=10"):
        check_fits(data, build("paper/cnn?classes=7"))
    with pytest.raises(SpecError, match=r"gives outputs \[2\], sine has targets \[1\]"):
        check_fits(load_data("sine"), build("paper/mlp?outputs=2"))
