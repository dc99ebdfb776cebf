"""Small random networks of libraries that are built in Python, with their inputs by name: for `libraries.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, dict[str, Any]]


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _of_images(path: str, *sizes: int, **options: Any) -> Built:
    """A network of one tensor, by default an image; a name that is empty stands for the only input."""
    return _class(path)(**options), {"": torch.zeros(2, *(sizes or (3, 32, 32)))}


def _medical(name: str, *sizes: int, **options: Any) -> Built:
    """One of MONAI, on images or volumes of one channel."""
    sizes = sizes or (32, 32)
    channels = {"spatial_dims": len(sizes), "in_channels": 1, "out_channels": 2}
    return _of_images(f"monai.networks.nets.{name}", 1, *sizes, **channels, **options)


def _vision(path: str, *sizes: int, **options: Any) -> Built:
    """One of vit-pytorch, of five classes."""
    return _of_images(f"vit_pytorch.{path}", *sizes, num_classes=5, **options)


# diffusers ------------------------------------------------------------------------------------------------------------


def _steps(*shape: int, **more: Tensor) -> dict[str, Any]:
    return {"sample": torch.zeros(2, *shape), "timestep": torch.tensor([3, 7]), **more}


def _unet_2d() -> Built:
    from diffusers import UNet2DModel

    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    model = UNet2DModel(
        sample_size=16, block_out_channels=(16, 32), down_block_types=down, up_block_types=up, norm_num_groups=4,
        layers_per_block=1, attention_head_dim=8,
    )  # fmt: skip
    return model, _steps(3, 16, 16)


def _unet_of_texts() -> Built:
    from diffusers import UNet2DConditionModel

    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    model = UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), down_block_types=down, up_block_types=up, norm_num_groups=4,
        layers_per_block=1, attention_head_dim=4, cross_attention_dim=24,
    )  # fmt: skip
    return model, _steps(4, 16, 16, encoder_hidden_states=torch.zeros(2, 5, 24))


def _autoencoder() -> Built:
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = AutoencoderKL(block_out_channels=(16, 32), norm_num_groups=4, sample_size=16, **blocks)
    return model, {"sample": torch.zeros(2, 3, 16, 16)}


def _diffusion_transformer() -> Built:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8)
    given = {"hidden_states": torch.zeros(2, 4, 8, 8), "timestep": torch.tensor([3, 7])}
    return model, {**given, "class_labels": torch.tensor([1, 2])}


# graphs ---------------------------------------------------------------------------------------------------------------

_EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 5, 5, 0]])


def _of_graphs(name: str, **options: Any) -> Built:
    sizes = {"in_channels": 8, "hidden_channels": 16, "num_layers": 2, "out_channels": 4}
    model = _class(f"torch_geometric.nn.models.{name}")(**sizes, **options)
    return model, {"x": torch.zeros(6, 8), "edge_index": _EDGES}


# texts ----------------------------------------------------------------------------------------------------------------


def _of_tokens(kind: str, **options: Any) -> Built:
    """A decoder or an encoder of x-transformers."""
    layers = _class(f"x_transformers.{kind}")(dim=32, depth=2, heads=4, attn_dim_head=8, **options)
    model = _class("x_transformers.TransformerWrapper")(num_tokens=50, max_seq_len=16, attn_layers=layers)
    return model, {"": torch.randint(0, 50, (2, 12))}


def _images_and_texts() -> Built:
    from open_clip.model import CLIP

    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
    text = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 4, "layers": 2}
    model = CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
    return model, {"image": torch.zeros(2, 3, 32, 32), "text": torch.randint(0, 50, (2, 12))}


# sounds ---------------------------------------------------------------------------------------------------------------

_WAVES = torch.linspace(0, 99, 3200).sin().reshape(2, 1600)
_SPECTRA = torch.linspace(0, 99, 1280).sin().reshape(2, 40, 16)


def _of_sounds(path: str, inputs: dict[str, Tensor], *given: Any, **options: Any) -> Built:
    """One of torchaudio or speechbrain."""
    return _class(path)(*given, **options), inputs


def _wav2vec2() -> Built:
    from torchaudio.models import wav2vec2_model

    model = wav2vec2_model(
        extractor_mode="layer_norm", extractor_conv_layer_config=[(16, 4, 3), (16, 3, 2)], extractor_conv_bias=False,
        encoder_embed_dim=32, encoder_projection_dropout=0.1, encoder_pos_conv_kernel=4, encoder_pos_conv_groups=2,
        encoder_num_layers=2, encoder_num_heads=4, encoder_attention_dropout=0.1, encoder_ff_interm_features=48,
        encoder_ff_interm_dropout=0.1, encoder_dropout=0.1, encoder_layer_norm_first=False, encoder_layer_drop=0.0,
        aux_num_out=7,
    )  # fmt: skip
    return model, {"waveforms": _WAVES}


_SEPARATING = {
    "enc_kernel_size": 16, "enc_num_feats": 16, "msk_kernel_size": 3, "msk_num_feats": 8, "msk_num_hidden_feats": 16,
    "msk_num_layers": 2, "msk_num_stacks": 2,
}  # fmt: skip
_WAVE_RNN = {
    "upsample_scales": [2, 2, 5], "n_classes": 12, "hop_length": 20, "n_res_block": 2, "n_rnn": 16, "n_fc": 16,
    "kernel_size": 5, "n_freq": 8, "n_hidden": 16, "n_output": 16,
}  # fmt: skip
_ECAPA = {
    "channels": [16, 16, 16, 16, 48], "kernel_sizes": [5, 3, 3, 3, 1], "dilations": [1, 2, 3, 4, 1],
    "attention_channels": 8, "res2net_scale": 4, "se_channels": 8,
}  # fmt: skip
_SPEECH = {"num_layers": 2, "nhead": 4, "d_model": 32, "kernel_size": 5, "attention_type": "regularMHA"}
_FRAMES = {"src": torch.linspace(0, 99, 640).sin().reshape(2, 10, 32)}

_FEATURES = (8, 8, 16, 16, 32, 8)
_VIT = {"dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48, "dim_head": 8}
_PATCHES = {**_VIT, "image_size": 32, "patch_size": 8}
_STAGES = {"depth": (1, 1, 1, 1)}

BUILT: dict[str, Callable[[], Built]] = {
    "diffusers/UNet2DModel": _unet_2d,
    "diffusers/UNet2DConditionModel": _unet_of_texts,
    "diffusers/AutoencoderKL": _autoencoder,
    "diffusers/DiTTransformer2DModel": _diffusion_transformer,
    "monai/UNet": partial(_medical, "UNet", channels=(8, 16, 32), strides=(2, 2), num_res_units=2),
    "monai/BasicUNet": partial(_medical, "BasicUNet", features=_FEATURES),
    "monai/BasicUNet of volumes": partial(_medical, "BasicUNet", 32, 32, 32, features=_FEATURES),
    "monai/AttentionUnet": partial(_medical, "AttentionUnet", channels=(8, 16, 32), strides=(2, 2)),
    "monai/SegResNet": partial(_medical, "SegResNet", init_filters=8),
    "monai/DynUNet": partial(
        _medical, "DynUNet", kernel_size=[3] * 3, strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[8, 16, 32]
    ),
    "monai/UNETR": partial(
        _medical, "UNETR", img_size=32, feature_size=8, hidden_size=32, mlp_dim=48, num_heads=4
    ),
    "monai/SwinUNETR": partial(_medical, "SwinUNETR", 64, 64, feature_size=12),
    "monai/DenseNet": partial(_medical, "DenseNet", init_features=8, growth_rate=4, block_config=(2, 2)),
    "monai/SENet": partial(
        _of_images, "monai.networks.nets.SEResNet50", 3, 64, 64, spatial_dims=2, in_channels=3, num_classes=3
    ),
    "monai/HighResNet": partial(_medical, "HighResNet"),
    "vit_pytorch/ViT": partial(_vision, "ViT", **_PATCHES),
    "vit_pytorch/SimpleViT": partial(_vision, "SimpleViT", **_PATCHES),
    "vit_pytorch/DeepViT": partial(_vision, "deepvit.DeepViT", **_PATCHES),
    "vit_pytorch/CaiT": partial(_vision, "cait.CaiT", **_PATCHES, cls_depth=1),
    "vit_pytorch/CCT": partial(
        _vision, "cct.CCT", img_size=(32, 32), embedding_dim=32, n_conv_layers=2, kernel_size=3, stride=2, padding=1,
        pooling_kernel_size=3, pooling_stride=2, pooling_padding=1, num_layers=2, num_heads=4, mlp_ratio=2.0,
        positional_embedding="learnable",
    ),
    "vit_pytorch/CvT": partial(
        _vision, "cvt.CvT", 3, 64, 64, s1_emb_dim=16, s2_emb_dim=16, s3_emb_dim=32, s2_heads=2, s3_heads=2, s3_depth=1
    ),
    "vit_pytorch/LeViT": partial(
        _vision, "levit.LeViT", 3, 64, 64, image_size=64, stages=2, dim=(16, 32), depth=1, heads=(2, 4), mlp_mult=2
    ),
    "vit_pytorch/MaxViT": partial(
        _vision, "max_vit.MaxViT", 3, 64, 64, dim_conv_stem=16, dim=16, dim_head=8, depth=(1, 1), window_size=4
    ),
    "vit_pytorch/MobileViT": partial(
        _vision, "mobile_vit.MobileViT", 3, 64, 64, image_size=(64, 64), dims=[16, 24, 32],
        channels=[8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 32],
    ),
    "vit_pytorch/CrossFormer": partial(
        _vision, "crossformer.CrossFormer", 3, 128, 128, dim=(32, 32, 64, 64), **_STAGES,
        global_window_size=(4, 2, 2, 1), local_window_size=4,
    ),
    "vit_pytorch/RegionViT": partial(
        _vision, "regionvit.RegionViT", 3, 56, 56, dim=(16, 16, 32, 32), **_STAGES, window_size=7,
        tokenize_local_3_conv=False, use_peg=False,
    ),
    "vit_pytorch/ViT of signals": partial(_vision, "vit_1d.ViT", 3, 64, seq_len=64, patch_size=8, **_VIT),
    "vit_pytorch/ViT of videos": partial(
        _vision, "vit_3d.ViT", 3, 4, 32, 32, image_size=32, frames=4, image_patch_size=8, frame_patch_size=2, **_VIT
    ),
    "x_transformers/Decoder": partial(_of_tokens, "Decoder"),
    "x_transformers/Decoder as in Llama": partial(
        _of_tokens, "Decoder", rotary_pos_emb=True, ff_glu=True, ff_swish=True, use_rmsnorm=True, attn_kv_heads=2
    ),
    "x_transformers/Encoder": partial(_of_tokens, "Encoder"),
    "open_clip/CLIP": _images_and_texts,
    "torch_geometric/GCN": partial(_of_graphs, "GCN"),
    "torch_geometric/GraphSAGE": partial(_of_graphs, "GraphSAGE"),
    "torch_geometric/GAT": partial(_of_graphs, "GAT", heads=2),
    "torch_geometric/GIN": partial(_of_graphs, "GIN"),
    "torchaudio/ConvTasNet": partial(
        _of_sounds, "torchaudio.models.ConvTasNet", {"input": _WAVES[:, None]}, num_sources=2, **_SEPARATING
    ),
    "torchaudio/wav2vec2": _wav2vec2,
    "torchaudio/DeepSpeech": partial(
        _of_sounds, "torchaudio.models.DeepSpeech", {"x": _SPECTRA[:, None]}, n_feature=16, n_hidden=24, n_class=9
    ),
    "torchaudio/Wav2Letter": partial(
        _of_sounds, "torchaudio.models.Wav2Letter", {"x": _WAVES.reshape(2, 16, 100).repeat(1, 1, 2)}, num_classes=9,
        input_type="mfcc", num_features=16,
    ),
    "torchaudio/WaveRNN": partial(
        _of_sounds, "torchaudio.models.WaveRNN",
        {"waveform": _WAVES[:, None, :120], "specgram": _SPECTRA[:, :1, :8].unsqueeze(-1).repeat(1, 1, 1, 10)},
        **_WAVE_RNN,
    ),
    "speechbrain/ECAPA_TDNN": partial(
        _of_sounds, "speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN", {"x": _SPECTRA}, 16, lin_neurons=8, **_ECAPA
    ),
    "speechbrain/VanillaNN": partial(
        _of_sounds, "speechbrain.lobes.models.VanillaNN.VanillaNN", {"x": _SPECTRA}, (2, 40, 16), dnn_blocks=2,
        dnn_neurons=16,
    ),
    "speechbrain/Conformer": partial(
        _of_sounds, "speechbrain.lobes.models.transformer.Conformer.ConformerEncoder", _FRAMES, d_ffn=48, **_SPEECH
    ),
    "speechbrain/Branchformer": partial(
        _of_sounds, "speechbrain.lobes.models.transformer.Branchformer.BranchformerEncoder", _FRAMES,
        csgu_linear_units=48, **_SPEECH,
    ),
}  # fmt: skip
