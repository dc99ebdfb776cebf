"""Examples in `.npz` files: an array for each input, or one input with its labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import graphsurgery as gs
from graphsurgery.graph import InputSpec
from graphsurgery.training.data import load_data
from graphsurgery.training.data.array_files import read_vectors
from graphsurgery.training.data.calibration import read_examples
from graphsurgery.training.data.several_inputs import PackedInputs

IMAGE = InputSpec("image", (2, 3, 4, 4))
WORDS = InputSpec("words_0", (2, 5), torch.int64, 0, 9)
STATE = InputSpec("state", (2, 1, 6), batched=False)


def saved(path, count=None, *, inputs=(IMAGE, WORDS), seed=0):
    """Random arrays: single examples, or as many in a stack."""
    generator = np.random.default_rng(seed)
    found = {}
    for spec in inputs:
        one = spec.shape[1:] if spec.batched else spec.shape
        shape = one if count is None else (count, *one)
        whole = not spec.dtype.is_floating_point
        found[spec.name] = generator.integers(0, 10, shape) if whole else generator.normal(size=shape)
    np.savez(path, **found)
    return found


def test_stacks_and_single_examples_are_put_together(tmp_path):
    one, many = saved(tmp_path / "a.npz"), saved(tmp_path / "b.npz", 5, seed=1)
    packed = PackedInputs([IMAGE, WORDS])
    vectors = read_vectors([tmp_path / "a.npz", tmp_path / "b.npz"], packed)
    assert (vectors.shape, vectors.dtype) == ((6, 48 + 5), torch.float64)
    image, words = packed.unpacked(vectors)
    assert (image.dtype, words.dtype) == (torch.float32, torch.int64)
    np.testing.assert_array_equal(words[0].numpy(), one["words_0"])
    np.testing.assert_array_equal(words[1:].numpy(), many["words_0"])
    np.testing.assert_allclose(image[1:].numpy(), many["image"], rtol=1e-6)


def test_names_as_the_file_has_them_are_found(tmp_path):
    np.savez(tmp_path / "a.npz", **{"words:0": np.arange(5), "image": np.zeros((3, 4, 4))})
    vectors = read_vectors([tmp_path / "a.npz"], PackedInputs([IMAGE, WORDS]))
    assert PackedInputs([IMAGE, WORDS]).unpacked(vectors)[1].tolist() == [[0, 1, 2, 3, 4]]


def test_double_precision_stays():
    packed = PackedInputs([IMAGE, InputSpec("time", (2, 1), torch.float64)])
    time = torch.rand(3, 1, dtype=torch.float64) + 1e9
    assert torch.equal(packed.unpacked(packed.packed([torch.zeros(3, 3, 4, 4), time]))[1], time)


def test_large_indices_stay_exact():
    packed = PackedInputs([IMAGE, WORDS])
    words = torch.full((2, 5), 2**40 + 1)
    assert torch.equal(packed.unpacked(packed.packed([torch.zeros(2, 3, 4, 4), words]))[1], words)


class Recurrent(torch.nn.Module):
    """Runs from a state that has no batch in front."""

    def forward(self, x, state):
        return {"y": x * state.sum(), "next": state + x.sum()}


def test_inputs_without_a_batch_run_one_after_the_other():
    packed = PackedInputs([InputSpec("x", (1, 4), batched=True), STATE])
    x, state = torch.randn(3, 4), torch.randn(3, 2, 1, 6)
    found = packed.run(Recurrent(), packed.packed([x, state]))
    torch.testing.assert_close(found["y"], x[:, None] * state.sum((1, 2, 3))[:, None, None])
    assert found["next"].shape == (3, 2, 1, 6)
    assert [tuple(t.shape) for t in packed.real(packed.packed([x, state]))] == [(1, 4), (2, 1, 6)]


def test_a_tenth_is_held_out(tmp_path):
    saved(tmp_path / "a.npz", 20)
    found = read_examples(tmp_path, [IMAGE, WORDS])
    assert (len(found.train), len(found.held)) == (18, 2)
    assert found.packed is not None


def test_one_input_needs_no_name(tmp_path):
    np.savez(tmp_path / "a.npz", anything=np.ones((6, 3, 4, 4)))
    found = read_examples(tmp_path, [IMAGE])
    assert found.packed is None
    assert found.train[0][0].shape == (3, 4, 4)


def broken(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path


IMAGES = np.zeros((4, 3, 4, 4))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": IMAGES}, r"a.npz: has no array words_0, found image; give one for each input: image, words_0"),
        (
            {"image": IMAGES, "words_0": np.zeros((3, 5))},
            r"a.npz: has 4 of image, 3 of words_0; expected as many examples of each",
        ),
        (
            {"image": IMAGES, "words_0": np.zeros((4, 6))},
            r"a.npz: array words_0 is \[4, 6\], expected \[5\], or a stack of such",
        ),
        ({"image": np.array(["text"]), "words_0": np.zeros((4, 5))}, r"a.npz: array image is of <U4, expected numbers"),
        ({"image": IMAGES[:1], "words_0": np.zeros((1, 5))}, r"has 1 examples, expected at least 4"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, arrays, message):
    with pytest.raises(gs.SpecError, match=message):
        read_examples(broken(tmp_path, **arrays), [IMAGE, WORDS])


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(gs.SpecError, match=r"a.npz: cannot be read as arrays"):
        read_examples(tmp_path, [IMAGE, WORDS])
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, IMAGES)  # which is no archive
    with pytest.raises(gs.SpecError, match=r"a.npz: cannot be read as arrays"):
        read_examples(tmp_path, [IMAGE, WORDS])
    (tmp_path / "a.npz").unlink()
    np.save(tmp_path / "a.npy", IMAGES)
    with pytest.raises(gs.SpecError, match=r"has no .npz files; the network takes 2 inputs, give an array for each"):
        read_examples(tmp_path, [IMAGE, WORDS])


def test_labelled_arrays_are_data(tmp_path):
    for part, count in (("train", 20), ("val", 4), ("test", 5)):
        (tmp_path / part).mkdir()
        np.savez(tmp_path / part / "a.npz", x=np.ones((count, 3)), labels=np.arange(count) % 7)
    data = load_data(f"arrays:{tmp_path}")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 4, 5]
    assert (data.input_shape, data.classes) == ((3,), 7)
    assert data.train[0][0].dtype == torch.float32


def test_missing_parts_are_split_off(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(20.0)[:, None], y=np.arange(20.0)[:, None])
    data = load_data(f"arrays:{tmp_path}?split_seed=1")
    parts = [part.tensors[0] for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [17, 2, 1]
    assert sorted(torch.cat(parts).flatten().tolist()) == list(range(20))
    assert data.classes is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, r"a.npz: has the arrays x; expected one of inputs, and one called labels, targets or y"),
        ({"x": IMAGES, "z": IMAGES, "y": np.zeros(4)}, r"a network with several inputs is recovered by --calib"),
        ({"x": IMAGES, "y": np.zeros(3)}, r"a.npz: has inputs \[4, 3, 4, 4\] and labels \[3\]; expected \[n, ...\]"),
        ({"x": IMAGES[:2], "y": np.zeros(2)}, r"has 2 examples, expected at least 3"),
    ],
)
def test_labelled_arrays_that_do_not_fit_are_named(tmp_path, arrays, message):
    with pytest.raises(gs.SpecError, match=message):
        load_data(f"arrays:{broken(tmp_path, **arrays)}")


def test_folders_that_hold_nothing_are_named(tmp_path):
    with pytest.raises(gs.SpecError, match=r"has no .npz files; expected some with inputs and labels"):
        load_data(f"arrays:{tmp_path}")
    with pytest.raises(gs.SpecError, match=r"DIR: is not a folder; give arrays:DIR with .npz files"):
        load_data("arrays")
    np.savez(tmp_path / "a.npz", x=IMAGES, y=np.zeros(4))
    np.savez(tmp_path / "b.npz", x=IMAGES[:, :2], y=np.zeros(4))
    with pytest.raises(gs.SpecError, match=r"its files have inputs and labels of several shapes or kinds"):
        load_data(f"arrays:{tmp_path}")


def test_labels_that_are_no_classes_are_refused(tmp_path):
    """A loss would leave those of -100 out, and an accuracy would not."""
    np.savez(tmp_path / "a.npz", x=np.zeros((30, 4)), y=np.arange(30) % 3 - 100)
    with pytest.raises(gs.SpecError, match=r"train has the label -100; labels are numbers from 0"):
        load_data(f"arrays:{tmp_path}")
    (tmp_path / "val").mkdir()
    np.savez(tmp_path / "a.npz", x=np.zeros((30, 4)), y=np.arange(30) % 3)
    np.savez(tmp_path / "val" / "b.npz", x=np.zeros((30, 4)), y=np.zeros(30))
    with pytest.raises(gs.SpecError, match="some of its labels are whole numbers and some are not; make them alike"):
        load_data(f"arrays:{tmp_path}")
