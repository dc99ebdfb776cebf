"""A library of our own in the place of transformers: classes that are built from configurations, and their folders."""

import json
import sys
from types import ModuleType, SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class Config:
    """As configurations of transformers are: fields with defaults, one of them for all layers."""

    def __init__(self, hidden_size=24, num_heads=4, layers=1, inner=10, vocab_size=31, use_cache=True):
        self.hidden_size, self.num_heads, self.layers, self.inner = hidden_size, num_heads, layers, inner
        self.vocab_size, self.use_cache = vocab_size, use_cache

    @classmethod
    def from_pretrained(cls, folder, local_files_only=True, **options):  # noqa: ARG003
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8")) | options
        config = cls(**{name: value for name, value in fields.items() if name in vars(cls())})
        config.architectures = fields["architectures"]
        return config

    def save_pretrained(self, folder):
        (folder / "config.json").write_text(json.dumps(vars(self)), encoding="utf-8")


class PreTrainedModel(nn.Module):
    config_class = Config
    main_input_name = "input_ids"

    def tie_weights(self):
        """Nothing is tied."""

    def save_pretrained(self, folder):
        folder.mkdir()
        described = {"architectures": [type(self).__name__], **vars(self.config)}
        (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
        tensors = {id(t): (name, t) for name, t in reversed(self.state_dict(keep_vars=True).items())}
        save_file({name: t.detach() for name, t in tensors.values()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder, output_loading_info=False, **_):
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = cls(Config(**{name: value for name, value in fields.items() if name in vars(Config())}))
        tensors = {}
        for file in folder.glob("*.safetensors"):
            tensors |= load_file(file)
        found = model.load_state_dict(tensors, strict=False)
        state = model.state_dict(keep_vars=True)
        there = {id(state[name]) for name in tensors if name in state}  # what is tied is stored once
        missing = [name for name in found.missing_keys if id(state[name]) not in there]
        info = {"missing_keys": missing, "unexpected_keys": found.unexpected_keys}
        return (model.eval(), info) if output_loading_info else model.eval()


class TinyLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.head_size = int(config.hidden_size / config.num_heads)
        self.qkv = nn.Linear(config.hidden_size, 3 * self.head_size * config.num_heads)
        self.out = nn.Linear(self.head_size * config.num_heads, config.hidden_size)
        self.up, self.down = nn.Linear(config.hidden_size, config.inner), nn.Linear(config.inner, config.hidden_size)
        self.scale = self.head_size**-0.5

    def forward(self, x, mask):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, -1, self.head_size).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) * self.scale
        scores = scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.up(x)))


class TinyModel(PreTrainedModel):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TinyLayer(config) for _ in range(config.layers))
        self.head = nn.Linear(config.hidden_size, 3)

    def forward(self, input_ids, attention_mask=None):
        x = self.words(input_ids)
        for layer in self.layers:
            x = layer(x, attention_mask)
        return {"logits": self.head(x[:, 0])}


class TokenModel(TinyModel):
    """Logits of the next token for each of its inputs."""

    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, input_ids, attention_mask=None):
        x, mask = self.words(input_ids), torch.ones_like(input_ids) if attention_mask is None else attention_mask
        for layer in self.layers:
            x = layer(x, mask)
        return {"logits": self.head(x)}


class TiedModel(TinyModel):
    """Its head is its embedding, a buffer is stored and one is computed; not all that it has is read."""

    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_buffer("ages", torch.arange(config.vocab_size))
        self.register_buffer("turns", torch.linspace(0, 1, config.vocab_size), persistent=False)
        self.unread = nn.Linear(2, 3)
        self.tie_weights()

    def tie_weights(self):
        self.head.weight = self.words.weight

    def forward(self, input_ids, attention_mask=None):
        return {"logits": super().forward(input_ids, attention_mask)["logits"] + self.turns}


class ScaledModel(TinyModel):
    """What it gives has its width in it, out of sight of the sizes."""

    def forward(self, input_ids, attention_mask=None):
        return {"logits": super().forward(input_ids, attention_mask)["logits"] * self.config.hidden_size**-0.5}


def renames(monkeypatch, names, *, converted=None):
    """Let the library give weights other names as it loads them, by what their names begin with, and compute one."""

    class WeightRenaming:
        pass

    class WeightConverter:
        pass

    def rename_source_key(name, renamings, converters, base, known):  # noqa: ARG001
        renamed = next((new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)), name)
        return renamed, renamed if renamed == converted else None

    loading, conversion = ModuleType("transformers.core_model_loading"), ModuleType("transformers.conversion_mapping")
    loading.__dict__.update(
        WeightRenaming=WeightRenaming, WeightConverter=WeightConverter, rename_source_key=rename_source_key,
        dot_natural_key=str,
    )  # fmt: skip
    conversion.__dict__["get_model_conversion_mapping"] = lambda module: []  # noqa: ARG005
    for module in (loading, conversion):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def install(monkeypatch):
    """The library, which is found by the name of transformers as long as the fixture lasts."""
    logging = SimpleNamespace(
        is_progress_bar_enabled=lambda: True, disable_progress_bar=lambda: None, enable_progress_bar=lambda: None
    )
    found = ModuleType("transformers")
    classes = {kind.__name__: kind for kind in (PreTrainedModel, TinyModel, ScaledModel, TiedModel, TokenModel)}
    found.__dict__.update(classes, AutoModel=None, utils=SimpleNamespace(logging=logging), __version__="0")
    monkeypatch.setitem(sys.modules, "transformers", found)
    return found
