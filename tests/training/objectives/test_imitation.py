"""Losses of imitation, teachers, their answers in a file, and transfer sets."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import graphsurgery as gs
from graphsurgery.training.data.batches import Examples
from graphsurgery.training.data.dataset import UNLABELLED
from graphsurgery.training.data.transfer import SHIFT, answered, augmented, unlabelled
from graphsurgery.training.imitation import LOSSES, Imitation
from graphsurgery.training.objectives import CrossEntropy
from graphsurgery.training.objectives.imitation import Mimicry, imitation_loss
from graphsurgery.training.objectives.several_tasks import TasksInOne
from graphsurgery.training.objectives.teachers import OnnxTeacher, Teachers, logits_of


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 5, generator=generator, dtype=torch.float64) * 3 for _ in range(2)]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_perfect_student_has_no_loss_and_any_other_has_some(loss, logits):
    student, teacher = logits
    imitation = Imitation(loss)
    assert float(imitation_loss(imitation, teacher, teacher)) == pytest.approx(0, abs=1e-9)
    assert float(imitation_loss(imitation, student, teacher)) > 1e-4


@pytest.mark.parametrize("loss", LOSSES)
def test_what_softmax_ignores_does_not_count(loss, logits):
    student, teacher = logits
    shifted = student + torch.arange(16.0).unsqueeze(1)
    assert float(imitation_loss(Imitation(loss), shifted, teacher)) == pytest.approx(
        float(imitation_loss(Imitation(loss), student, teacher))
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_descent_leads_to_the_teacher(loss, logits):
    student, teacher = logits
    student = student.clone().requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        imitation_loss(Imitation(loss), student, teacher).backward()
        optimizer.step()
    assert (student.argmax(1) == teacher.argmax(1)).all()


def test_losses_are_their_formulas(logits):
    student, teacher = logits
    centred = [x - x.mean(1, keepdim=True) for x in logits]
    assert float(imitation_loss(Imitation("logits"), student, teacher)) == pytest.approx(
        float(0.5 * (centred[0] - centred[1]).square().mean())
    )
    soft = [torch.softmax(x / 2, 1) for x in logits]
    expected = 4 * (soft[1] * (soft[1].log() - soft[0].log())).sum(1).mean()
    assert float(imitation_loss(Imitation("kl", 2.0), student, teacher)) == pytest.approx(float(expected))
    dist = imitation_loss(Imitation("dist", 1.0), student, teacher)
    rows = [torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(*(x.softmax(1) for x in logits), strict=True)]
    columns = [
        torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(*(x.softmax(1).t() for x in logits), strict=True)
    ]
    assert float(dist) == pytest.approx(float(2 - torch.stack(rows).mean() - torch.stack(columns).mean()))


def test_decoupled_parts_make_the_divergence(logits):
    """KL = TCKD + (1 - p of the target) NCKD for each example (Zhao et al., equation 6)."""
    student, teacher = logits
    whole = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)
    target, others = (Imitation("dkd", 1.0, alpha=a, beta=1 - a) for a in (1.0, 0.0))
    for i in range(len(student)):
        s, t = student[i : i + 1], teacher[i : i + 1]
        rest = 1 - t.softmax(1).max()
        assert float(imitation_loss(target, s, t) + rest * imitation_loss(others, s, t)) == pytest.approx(
            float(whole[i]), rel=1e-5
        )


def test_labels_count_by_their_weight_where_there_are_some():
    torch.manual_seed(0)
    module, x, answers = nn.Linear(4, 3), torch.randn(6, 4), torch.randn(6, 3)
    labels = torch.tensor([0, 1, 2, UNLABELLED, UNLABELLED, 1])
    module.requires_grad_(False)
    mixed = Mimicry(3, Imitation(labels=0.3)).loss(module, (x, labels, answers))
    known = labels != UNLABELLED
    cross = CrossEntropy(3).loss(module, (x[known], labels[known]))["total"]
    imitation = Mimicry(3, Imitation()).loss(module, (x, labels, answers))["total"]
    assert float(mixed["total"]) == pytest.approx(float(0.3 * cross + 0.7 * imitation))
    none = torch.full((6,), UNLABELLED)
    assert float(Mimicry(3, Imitation(labels=1.0)).loss(module, (x, none, answers))["total"]) == 0


def test_a_teacher_that_runs_along_gives_the_same_loss():
    torch.manual_seed(0)
    module, teacher, x = nn.Linear(4, 3), Teachers([nn.Linear(4, 3), nn.Linear(4, 3)]), torch.randn(6, 4)
    labels = torch.zeros(6, dtype=torch.long)
    with torch.no_grad():
        stored = Mimicry(3, Imitation()).loss(module, (x, labels, teacher(x)))["total"]
        along = Mimicry(3, Imitation(), teacher=teacher).loss(module, (x, labels))["total"]
    assert float(along) == pytest.approx(float(stored))


def test_mixtures_are_answered_by_the_teacher_and_labelled_by_shares():
    torch.manual_seed(0)
    module, teacher = (nn.Linear(3, 4).double().requires_grad_(False) for _ in range(2))
    x, labels = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 3, UNLABELLED, 2])
    found = Mimicry(4, Imitation("kl", 2.0, labels=0.3, mixed=True), teacher=teacher).loss(module, (x, labels))
    shares = [0.125, 0.375, 0.625, 0.875]
    mixed = torch.stack([share * x[n] + (1 - share) * x[n - 1] for n, share in enumerate(shares)])
    student = module(mixed)
    torch.testing.assert_close(found["imitation"], imitation_loss(Imitation("kl", 2.0), student, teacher(mixed)))
    known = [(n, labels[n - back], [1 - share, share][back == 0]) for n, share in enumerate(shares) for back in (0, 1)]
    known = [(n, label, share) for n, label, share in known if label != UNLABELLED]
    errors = sum(share * F.cross_entropy(student[n], label) for n, label, share in known)
    torch.testing.assert_close(found["labels"], errors / sum(share for *_, share in known))
    torch.testing.assert_close(found["total"], 0.7 * found["imitation"] + 0.3 * found["labels"])


def test_nothing_is_mixed_of_regression_and_of_whole_numbers():
    torch.manual_seed(0)
    words = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 4))
    tokens = torch.arange(12).view(4, 3) % 5
    cases = [(None, nn.Linear(3, 1), torch.randn(4, 3), torch.randn(4, 1)), (4, words, tokens, torch.arange(4))]
    for classes, network, x, y in cases:
        losses = [
            Mimicry(classes, Imitation("kl", mixed=mixed, labels=0.5), teacher=copy.deepcopy(network))
            for mixed in (False, True)
        ]
        kept, mixed = (loss.loss(network, (x, y))["total"] for loss in losses)
        assert torch.equal(kept, mixed)


def test_labels_alone_need_no_teacher_of_mixtures():
    module, x, y = nn.Linear(3, 4), torch.randn(4, 3), torch.arange(4)
    assert list(Mimicry(4, Imitation(labels=1.0, mixed=True)).loss(module, (x, y))) == ["total"]
    with pytest.raises(gs.SurgeryError, match="nobody has answered mixtures before they are made; give a teacher"):
        Mimicry(4, Imitation(mixed=True))


def test_classes_can_be_divided_by_their_spread(logits):
    student, teacher = (x.float() for x in logits)
    spread = teacher.std(0)
    module = nn.Identity()
    found = Mimicry(5, Imitation(), spread=spread).loss(module, (student, torch.zeros(16), teacher))["total"]
    assert float(found) == pytest.approx(float(imitation_loss(Imitation(), student / spread, teacher / spread)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "l7"}, "unknown loss 'l7'"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"labels": 1.5}, "labels is 1.5"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(gs.SurgeryError, match=message):
        Imitation(**options)


class Counting(nn.Module):
    """A teacher that counts its examples, and stops at some."""

    def __init__(self, stop=math.inf):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.seen, self.stop = 0, stop

    def forward(self, x):
        if self.seen >= self.stop:
            raise KeyboardInterrupt
        self.seen += len(x)
        return self.layer(x)


@pytest.fixture
def examples():
    return TensorDataset(torch.randn(100, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(100))


def test_answers_are_kept_and_found_again_by_contents(examples, tmp_path):
    torch.manual_seed(0)
    teacher = Counting()
    first = logits_of(Teachers([teacher]), examples, tmp_path, batch_size=7, device="cpu")
    with torch.no_grad():
        assert torch.allclose(first, teacher.layer(examples.tensors[0]))
    count = teacher.seen
    again = logits_of(Teachers([teacher]), examples, tmp_path, batch_size=7, device="cpu")
    assert teacher.seen == count
    assert torch.equal(first, again)
    with torch.no_grad():
        teacher.layer.weight[0, 0] += 1
    other = logits_of(Teachers([teacher]), examples, tmp_path, device="cpu")
    assert not torch.equal(first, other)
    moved = TensorDataset(examples.tensors[0] + 1, examples.tensors[1])
    assert not torch.equal(other, logits_of(Teachers([teacher]), moved, tmp_path, device="cpu"))
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_teachers_with_other_settings_are_others(examples, tmp_path):
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    second = copy.deepcopy(first)
    second[1] = nn.Tanh()
    found = [
        logits_of(Teachers([gs.trace(m, torch.zeros(2, 4)).module]), examples, tmp_path, device="cpu")
        for m in (first, second)
    ]
    assert not torch.equal(*found)


def test_numbers_without_labels_do_not_count():
    x, y = torch.randn(5, 2), torch.randn(5, 1)
    whole = augmented(TensorDataset(x, y), 2)
    assert whole.tensors[1][5:].isnan().all()
    assert unlabelled(TensorDataset(x, y)).tensors[1].shape == (5, 1)
    module = nn.Linear(2, 1).requires_grad_(False)
    learnt = Mimicry(None, Imitation(labels=1.0))
    inputs, labels = whole.tensors
    loss = learnt.loss(module, (inputs, labels, torch.zeros(15, 1)))["total"]
    assert float(loss) == pytest.approx(float(F.mse_loss(module(x), y)))


def test_an_interrupted_file_is_completed(examples, tmp_path):
    torch.manual_seed(0)
    teacher = Counting(stop=2 * 30)
    with pytest.raises(KeyboardInterrupt):
        logits_of(Teachers([teacher]), examples, tmp_path, batch_size=1, device="cpu")
    (note,) = tmp_path.glob("*.json")
    assert json.loads(note.read_text())["done"] == 60 // 20 * 20
    teacher.seen, teacher.stop = 0, math.inf
    found = logits_of(Teachers([teacher]), examples, tmp_path, batch_size=1, device="cpu")
    assert teacher.seen == 40
    with torch.no_grad():
        assert torch.allclose(found, teacher.layer(examples.tensors[0]), atol=1e-6)


@pytest.mark.parametrize("damage", ["note", "table", "short"])
def test_a_damaged_file_is_computed_anew(damage, examples, tmp_path):
    teacher = Counting()
    first = logits_of(Teachers([teacher]), examples, tmp_path, device="cpu").clone()
    (note,), (table,) = tmp_path.glob("*.json"), tmp_path.glob("*.npy")
    if damage == "note":
        note.write_text("{")
    elif damage == "table":
        table.write_bytes(b"junk")
    else:
        note.write_text('{"done": 1000}')
    assert torch.equal(logits_of(Teachers([teacher]), examples, tmp_path, device="cpu"), first)


def test_data_that_are_not_in_memory_have_answers_too(tmp_path):
    class Squares(Dataset):
        def __getitem__(self, index):
            return torch.full((4,), float(index)), index % 3

        def __len__(self):
            return 30

    teacher = Counting()
    found = logits_of(Teachers([teacher]), Squares(), tmp_path, device="cpu")
    x, label, answer = answered(Squares(), found)[7]
    assert (float(x[0]), label) == (7.0, 1)
    assert torch.equal(answer, found[7])
    assert int(unlabelled(Squares())[7][1]) == UNLABELLED


def test_what_a_teacher_says_is_said_of_what_the_student_sees():
    class Augmented(Dataset):
        def __getitem__(self, index):
            return torch.randn(4) + index, index % 3

        def __len__(self):
            return 30

    teacher = nn.Linear(4, 3)
    found = logits_of(Teachers([teacher]), Augmented(), device="cpu")
    several = TasksInOne([Augmented(), Augmented()], torch.cat([found, found]))
    for dataset in answered(Augmented(), found), several:
        for seed in (1, 2):
            x, *_, answers = next(Examples(dataset, torch.device("cpu")).batches([torch.arange(30)], seed))
            torch.testing.assert_close(teacher(x).detach(), answers)


def test_a_teacher_of_another_kind_is_refused(examples):
    with pytest.raises(gs.SurgeryError, match=r"teachers: give \[100, 2, 2\], expected \[batch, classes\]"):
        logits_of(Teachers([nn.Unflatten(1, (2, 2))]), examples, device="cpu")


def test_a_teacher_in_a_file_says_what_the_network_says(tmp_path):
    graph = gs.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(2, 4))
    gs.export_onnx(graph, tmp_path / "t.onnx")
    x = torch.randn(5, 4)
    teacher = OnnxTeacher(tmp_path / "t.onnx")
    assert torch.allclose(teacher(x), graph(x), atol=1e-5)
    assert Teachers([teacher]).digest() == Teachers([OnnxTeacher(tmp_path / "t.onnx")]).digest()
    with pytest.raises(gs.SurgeryError, match=r"missing\.onnx"):
        OnnxTeacher(tmp_path / "missing.onnx")


def test_a_teacher_is_known_by_tensors_that_no_file_has():
    teachers = [nn.Linear(4, 3) for _ in range(2)]
    teachers[1].load_state_dict(teachers[0].state_dict())
    for mean, teacher in enumerate(teachers):
        teacher.register_buffer("mean", torch.tensor(float(mean)), persistent=False)
    assert len({Teachers([teacher]).digest() for teacher in teachers}) == 2


def test_copies_are_shifted_and_noisy_and_have_no_labels():
    images = torch.zeros(20, 1, 9, 9)
    images[:, :, 4, 4] = 10.0
    whole = augmented(TensorDataset(images, torch.arange(20)), 3, seed=1)
    x, labels = whole.tensors
    assert len(x) == 80
    assert torch.equal(x[:20], images)
    assert (labels[20:] == UNLABELLED).all()
    places = x[20:].flatten(1).argmax(1)
    rows, columns = places // 9 - 4, places % 9 - 4
    assert int(rows.abs().max()) == SHIFT
    assert int(columns.abs().max()) == SHIFT
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) > 10
    assert torch.equal(augmented(TensorDataset(images, torch.arange(20)), 3, seed=1).tensors[0], x)
    assert augmented(TensorDataset(torch.randn(5, 4), torch.zeros(5)), 1).tensors[0].shape == (10, 4)


def test_copies_need_data_in_memory():
    with pytest.raises(gs.SurgeryError, match="only data in memory can be augmented here"):
        augmented(unlabelled(_Listed()), 1)
    with pytest.raises(gs.SurgeryError, match="-1 copies, expected 0 or more"):
        augmented(TensorDataset(torch.zeros(2, 3), torch.zeros(2)), -1)


class _Listed(Dataset):
    def __getitem__(self, index):
        return torch.zeros(3), 0

    def __len__(self):
        return 2
