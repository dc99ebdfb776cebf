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


class PreTrainedModel(nn.Module):
    config_class = Config
    main_input_name = "input_ids"

    def save_pretrained(self, folder):
        folder.mkdir()
        described = {"architectures": [type(self).__name__], **vars(self.config)}
        (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
        save_file(self.state_dict(), folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder, output_loading_info=False, **_):
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = cls(Config(**{name: value for name, value in fields.items() if name in vars(Config())}))
        tensors = {}
        for file in folder.glob("*.safetensors"):
            tensors |= load_file(file)
        found = model.load_state_dict(tensors, strict=False)
        info = {"missing_keys": found.missing_keys, "unexpected_keys": found.unexpected_keys}
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


class ScaledModel(TinyModel):
    """What it gives has its width in it, out of sight of the sizes."""

    def forward(self, input_ids, attention_mask=None):
        return {"logits": super().forward(input_ids, attention_mask)["logits"] * self.config.hidden_size**-0.5}


def install(monkeypatch):
    """The library, which is found by the name of transformers as long as the fixture lasts."""
    logging = SimpleNamespace(
        is_progress_bar_enabled=lambda: True, disable_progress_bar=lambda: None, enable_progress_bar=lambda: None
    )
    found = ModuleType("transformers")
    found.__dict__.update(
        PreTrainedModel=PreTrainedModel, TinyModel=TinyModel, ScaledModel=ScaledModel, AutoModel=None,
        utils=SimpleNamespace(logging=logging), __version__="0",
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "transformers", found)
    return found
