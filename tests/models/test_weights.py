"""Which of the weights in a file are those of a network."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

import graphsurgery as gs
from graphsurgery.checkpoint.foreign import read_contents
from graphsurgery.errors import CheckpointError
from graphsurgery.models.loading import open_model, open_pair
from graphsurgery.models.mask_files import open_masks
from graphsurgery.models.sources.weights import load_weights
from graphsurgery.passes.compress import compress

FILE = """
from torch import nn

INPUT_SHAPE = (3, 6, 6)

def net(width=4):
    head = nn.Sequential(nn.Flatten(), nn.Linear(width * 16, 2))
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), head)

def up():
    return nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1))
"""


def net(seed=0, width=4):
    torch.manual_seed(seed)
    head = nn.Sequential(nn.Flatten(), nn.Linear(width * 16, 2))
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), head).eval()


def up(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()


@pytest.fixture
def arch(tmp_path):
    (tmp_path / "nets.py").write_text(FILE)
    return f"{tmp_path / 'nets.py'}:net"


def prefixed(prefix, module=None):
    return {f"{prefix}{name}": tensor for name, tensor in (module or net()).state_dict().items()}


def averaged():
    average = AveragedModel(net())
    return average.state_dict()


def parallel_inside():
    module = net()
    module[3] = nn.DataParallel(module[3])
    return module.state_dict()


def compiled_inside():
    module = net()
    module[3] = torch.compile(module[3])
    return module.state_dict()


FORMS = {
    "bare": lambda: (prefixed(""), "", ()),
    "data parallel": lambda: (prefixed("module."), "module", ()),
    "compiled": lambda: (prefixed("_orig_mod."), "", ()),
    "compiled in parallel": lambda: ({"model": prefixed("module._orig_mod.")}, "model.module", ()),
    "averaged": lambda: (averaged(), "module", ("n_averaged",)),
    "parallel inside": lambda: (parallel_inside(), "", ()),
    "compiled inside": lambda: (compiled_inside(), "", ()),
    "lightning": lambda: (
        {"epoch": 3, "state_dict": prefixed("model."), "optimizer_states": [{"state": {0: {"m": torch.ones(2)}}}]},
        "state_dict.model",
        (),
    ),
    "lightning with a loss": lambda: (
        {"state_dict": {**prefixed("net."), "loss.weight": torch.ones(2)}},
        "state_dict.net",
        ("state_dict.loss",),
    ),
    "an optimizer": lambda: (
        {"model": prefixed(""), "optimizer": {"state": {0: {"exp_avg": torch.ones(4, 3, 3, 3)}}, "param_groups": []}},
        "model",
        (),
    ),
    "a part of another network": lambda: (
        {**prefixed("backbone."), "neck.weight": torch.ones(3)},
        "backbone",
        ("neck",),
    ),
    "the same twice": lambda: ({"params": prefixed(""), "params_ema": prefixed("")}, "params", ("params_ema",)),
    "a tensor beside": lambda: ({"net": prefixed(""), "rng_state": torch.ones(3)}, "net", ("rng_state",)),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_are_found_wherever_they_lie(name, tmp_path):
    content, path, others = FORMS[name]()
    torch.save(content, tmp_path / "w.pt")
    module = net(1)
    taken = load_weights(module, read_contents(tmp_path / "w.pt"), "w.pt", "net")
    torch.testing.assert_close(dict(module.state_dict()), dict(net().state_dict()), rtol=0, atol=0)
    assert (taken.path, taken.others) == (path, others)


TWO = {
    "state_dict_ema": {"state_dict": prefixed("", net(0)), "state_dict_ema": prefixed("module.", net(1))},
    "model_ema": {"model": prefixed("", net(0)), "model_ema": prefixed("", net(1)), "epoch": 2},
    "ema": {"model": prefixed("", net(0)), "ema": {"shadow": prefixed("", net(1)), "decay": 0.9}},
    "params_ema": {"params_ema": prefixed("", net(1)), "params": prefixed("", net(0))},
    "teacher": {"student": prefixed("module.", net(0)), "teacher": prefixed("", net(1))},
    "state_dict.ema_model": {"state_dict": {**prefixed("model.", net(0)), **prefixed("ema_model.", net(1))}},
}


@pytest.mark.parametrize("key", TWO)
def test_of_several_that_fit_the_key_says_which(key, tmp_path, arch):
    path = tmp_path / "w.pt"
    torch.save(TWO[key], path)
    with pytest.raises(
        CheckpointError, match=r"w\.pt: several sets of weights fit it, and differ: .*; choose one with"
    ):
        open_model(str(path), arch=arch)
    graph, module = open_pair(str(path), arch=arch, key=key)
    torch.testing.assert_close(dict(module.state_dict()), dict(net(1).state_dict()), rtol=0, atol=0)
    assert graph.lineage[-1]["weights"].startswith(key)
    assert graph.lineage[-1]["beside"]
    with pytest.raises(CheckpointError, match=r"has nothing at --key emaa; it holds .* tensors"):
        open_model(str(path), arch=arch, key="emaa")


def test_where_nothing_fits_it_says_what_there_is(tmp_path, arch):
    path = tmp_path / "w.pt"
    torch.save({"generator": prefixed("", net(0, 5)), "discriminator": {"weight": torch.ones(2, 2)}}, path)
    with pytest.raises(
        CheckpointError,
        match=r"does not fit .*: of 9 tensors 7 of another shape \(first 0.weight: \[5, 3, 3, 3\] in the file, .*"
        r"the file holds generator \(9 tensors\), discriminator \(1 tensors\), to choose from with --key",
    ):
        open_model(str(path), arch=arch)
    torch.save({"m": prefixed("", net(0)), "extra": 1, "n": {**prefixed("", net(1)), "4.weight": torch.ones(2)}}, path)
    assert open_pair(str(path), arch=arch)[0].lineage[-1]["weights"] == "m"
    with pytest.raises(CheckpointError, match=r"1 unexpected \(first 4.weight\)"):
        open_model(str(path), arch=arch, key="n")


@pytest.mark.parametrize("key", [None, "ema"])
def test_of_several_modules_too(key, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"model": net(0), "ema": net(1)}, path)
    if key is None:
        with pytest.raises(CheckpointError, match=r"holds model \(Sequential\), ema \(Sequential\); choose one module"):
            open_model(str(path), trust_pickle=True, example_shape=(3, 6, 6))
        return
    graph = open_model(str(path), trust_pickle=True, example_shape=(3, 6, 6), key=key)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(graph(x), net(1)(x), rtol=0, atol=0)


def test_a_cut_network_is_the_architecture_of_its_own_weights(tmp_path):
    small = compress(gs.trace(net(), torch.zeros(2, 3, 6, 6)), {"0": 2})
    gs.save(small, tmp_path / "small.pt")
    with torch.no_grad():
        for parameter in small.module.parameters():
            parameter.add_(1)
    torch.save({"state_dict": small.module.state_dict()}, tmp_path / "trained.pth")
    graph, module = open_pair(str(tmp_path / "trained.pth"), arch=str(tmp_path / "small.pt"))
    assert module is None
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(graph(x), small(x), rtol=0, atol=0)
    assert [space.size for space in graph.spaces] == [2]
    with pytest.raises(CheckpointError, match=r"--arch .*trained.pth: describes no network; give a graphsurgery"):
        open_model(str(tmp_path / "trained.pth"), arch=str(tmp_path / "trained.pth"))


def test_safetensors_belong_to_a_spec_too(tmp_path, arch):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({f"model.{name}": t for name, t in net(1).state_dict().items()}, tmp_path / "w.safetensors")
    graph = open_model(str(tmp_path / "w.safetensors"), arch=arch)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(graph.module.eval()(x), net(1)(x), rtol=0, atol=0)
    assert open_masks(str(tmp_path / "w.safetensors"), arch=arch).density == 1.0


def in_parts(kind):
    """A network whose weights are in parts, with values of its own, and what evaluates the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = net(3) if kind != "spectral norm of a transposed convolution" else up(3)
        if kind == "pruned":
            prune.random_unstructured(module[0], "weight", 0.4)
            prune.random_unstructured(module[0], "bias", 0.5)
            prune.ln_structured(module[3][1], "weight", 0.5, 2, 1)
        elif kind == "weight norm":
            nn.utils.weight_norm(module[0])
            nn.utils.weight_norm(module[3][1], dim=1)
        elif kind == "weight norm of everything":
            nn.utils.weight_norm(module[0], dim=None)
        elif kind == "new weight norm":
            parametrizations.weight_norm(module[0])
        elif kind == "new spectral norm":
            parametrizations.spectral_norm(module[0], n_power_iterations=3)
        else:
            nn.utils.spectral_norm(module[0])
            module.train()(torch.randn(2, 3, 6, 6))
            module.eval()
    return module


PARTS = {
    "pruned": "0.weight (RandomUnstructured)",
    "weight norm": "0.weight (WeightNorm)",
    "weight norm of everything": "0.weight (WeightNorm)",
    "new weight norm": "0.weight (WeightNorm)",
    "spectral norm": "0.weight (SpectralNorm)",
    "new spectral norm": "0.weight (SpectralNorm)",
    "spectral norm of a transposed convolution": "0.weight (SpectralNorm)",
}


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize("kind", PARTS)
def test_weights_in_parts_are_computed(kind, described, tmp_path, arch):
    module = in_parts(kind)
    transposed = "transposed" in kind
    arch = arch.replace(":net", ":up") if transposed else arch
    if described:
        plain = up(5) if transposed else net(5)
        gs.save(gs.trace(plain, torch.zeros(2, 3, 6, 6)), tmp_path / "own.pt")
        arch = str(tmp_path / "own.pt")
    torch.save(module.state_dict(), tmp_path / "w.pt")
    graph = open_model(str(tmp_path / "w.pt"), arch=arch)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(graph.module.eval()(x), module(x), rtol=1e-6, atol=1e-6)
    assert graph.spaces[0].size == (3 if transposed else 4)
    assert "parametrizations" not in " ".join(graph.module.state_dict())
    assert any("0.weight" in line for record in graph.lineage for line in record.get("weights that were computed", []))


def test_one_spelling_fits_a_network_of_the_other():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old, new = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2))), net()
    new = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))
    expected = copy.deepcopy(dict(old.state_dict()))
    load_weights(new, _contents(old.state_dict()), "w.pt", "new")
    torch.testing.assert_close(new[0].parametrizations.weight.original1.data, expected["0.weight_v"], rtol=0, atol=0)
    load_weights(old, _contents(new.state_dict()), "w.pt", "old")
    torch.testing.assert_close(dict(old.state_dict()), expected, rtol=0, atol=0)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_unknown_parts_are_refused_by_name(tmp_path, arch):
    module = net()
    nn.utils.parametrize.register_parametrization(module[0], "weight", Doubled())
    torch.save(module.state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"0.weight is there in parts \(0.weight_orig\), and not as weight norm"):
        open_model(str(tmp_path / "w.pt"), arch=arch)
    state = net().state_dict()
    del state["1.running_mean"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"1 missing \(first 1.running_mean\)"):
        open_model(str(tmp_path / "w.pt"), arch=arch)


def _contents(state):
    from graphsurgery.checkpoint.foreign import Contents

    return Contents(dict(state), ("",), {})
