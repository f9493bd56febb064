"""The small pieces of a generator block: norms, modulation, feed-forward, embeddings and patches.

Tokens are packed: (tokens, channels), the samples of a batch one after another. What differs per sample is
broadcast over the tokens of that sample without a table per token.

Source: SeedVR2 (arXiv 2506.05301), Sec. 3, and the released weights.
"""

import math
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from seedvr2.config import GeneratorConfig
from seedvr2.models.windows import Grid

ModuleT = TypeVar("ModuleT", bound=nn.Module)

Modality = Literal["video", "text"]
Names = tuple[Literal["video", "text", "both"], ...]
SEPARATE: Names = ("video", "text")
SHARED: Names = ("both",)
VIDEO_ONLY: Names = ("video",)

SINUSOIDS = 256
"""Channels of the sinusoidal timestep embedding."""


class PerModality(nn.Module, Generic[ModuleT]):
    """One module for each modality, or one that both share.

    Args:
        build: Makes one module.
        names: `SEPARATE`, `SHARED` or `VIDEO_ONLY`.
    """

    def __init__(self, build: Callable[[], ModuleT], names: Names) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, build())

    def of(self, modality: Modality) -> ModuleT:
        """The module of one modality."""
        module: ModuleT = getattr(self, modality if modality in self._modules else "both")
        return module


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer that starts with Xavier weights and no bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def rms_norm(tokens: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis; statistics in float32, result in x's dtype."""
    weight = None if weight is None else weight.to(tokens.dtype)
    return functional.rms_norm(tokens, tokens.shape[-1:], weight, eps).to(tokens.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, with a weight."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise (..., channels)."""
        return rms_norm(tokens, self.eps, self.weight)


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """`tokens * scale + shift`, with one row of scale and shift per sample.

    Args:
        tokens: (tokens, channels), `lengths` of them per sample.
        shift: (samples, channels).
        scale: (samples, channels). There is no "1 +": the learned scale starts around 1.
        lengths: Tokens per sample.
    """
    if len(set(lengths)) == 1:
        samples = rearrange(tokens, "(b n) d -> b n d", b=len(lengths))
        modulated = torch.addcmul(shift[:, None], samples, scale[:, None])
        return rearrange(modulated, "b n d -> (b n) d").to(tokens.dtype)
    pieces = zip(torch.split(tokens, list(lengths)), shift, scale, strict=True)
    return torch.cat([torch.addcmul(b, piece, a).to(tokens.dtype) for piece, b, a in pieces])


def add_gated(residual: Tensor, tokens: Tensor, gate: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """`residual + tokens * gate`, with one row of the gate (samples, channels) per sample."""
    if len(set(lengths)) == 1:
        stream, samples = (rearrange(x, "(b n) d -> b n d", b=len(lengths)) for x in (residual, tokens))
        added = torch.addcmul(stream, samples, gate[:, None])
        return rearrange(added, "b n d -> (b n) d").to(residual.dtype)
    pieces = zip(torch.split(residual, list(lengths)), torch.split(tokens, list(lengths)), gate, strict=True)
    return torch.cat([torch.addcmul(stream, piece, row).to(residual.dtype) for stream, piece, row in pieces])


class SwiGlu(nn.Module):
    """Gated feed-forward of the 3B flavour: 8/3 of the width, rounded up to a multiple of 256, no biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-int(2 * width * 4 / 3) // 256) * 256
        self.gate = linear(width, hidden, bias=False)
        self.proj_in = linear(width, hidden, bias=False)
        self.proj_out = linear(hidden, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (tokens, width) to the same shape."""
        hidden: Tensor = functional.silu(self.gate(tokens)) * self.proj_in(tokens)
        mapped: Tensor = self.proj_out(hidden)
        return mapped


class GeluMlp(nn.Module):
    """Feed-forward of the 7B flavour: 4 times the width, tanh approximation of GELU, biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_in = linear(width, 4 * width)
        self.proj_out = linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (tokens, width) to the same shape."""
        mapped: Tensor = self.proj_out(functional.gelu(self.proj_in(tokens), approximate="tanh"))
        return mapped


class Branch(nn.Module):
    """What a block does to one modality by itself: modulation, residuals and feed-forward.

    The timestep embedding is the same for all blocks and modalities; each adds its own learned vectors
    ("AdaSingle").

    Args:
        config: Sizes of the generator.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attention_shift = modulation_vector(config.width, around=0.0)
        self.attention_scale = modulation_vector(config.width, around=1.0)
        self.attention_gate = modulation_vector(config.width, around=0.0)
        self.mlp_shift = modulation_vector(config.width, around=0.0)
        self.mlp_scale = modulation_vector(config.width, around=1.0)
        self.mlp_gate = modulation_vector(config.width, around=0.0)
        self.mlp = SwiGlu(config.width) if config.mlp == "swiglu" else GeluMlp(config.width)

    def before_attention(self, tokens: Tensor, embedding: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Norm and modulation in front of attention.

        Args:
            tokens: Residual stream (tokens, width).
            embedding: Timestep embedding (site, kind, samples, width), see `TimeEmbedding`.
            lengths: Tokens per sample.
        """
        shift, scale, _ = embedding[0]
        normed = rms_norm(tokens, self.eps)
        return modulate(normed, shift + self.attention_shift, scale + self.attention_scale, lengths)

    def after_attention(
        self, tokens: Tensor, attended: Tensor, embedding: Tensor, lengths: tuple[int, ...]
    ) -> Tensor:
        """Add what attention gave, then the feed-forward; arguments as in `before_attention`."""
        _, _, attention_gate = embedding[0]
        shift, scale, mlp_gate = embedding[1]
        tokens = add_gated(tokens, attended, attention_gate + self.attention_gate, lengths)
        hidden = modulate(rms_norm(tokens, self.eps), shift + self.mlp_shift, scale + self.mlp_scale, lengths)
        return add_gated(tokens, self.mlp(hidden), mlp_gate + self.mlp_gate, lengths)


def modulation_vector(width: int, around: float) -> nn.Parameter:
    """A learned shift, scale or gate: normal around a value with deviation 1 / sqrt(width)."""
    return nn.Parameter(around + torch.randn(width) / math.sqrt(width))


class TimeEmbedding(nn.Module):
    """Timesteps to the modulation that all blocks share.

    Args:
        width: Channels of the residual stream.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_in = linear(SINUSOIDS, width)
        self.proj_hidden = linear(width, width)
        self.proj_out = linear(width, 6 * width)
        nn.init.normal_(self.proj_out.weight, std=0.02)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """Embed timesteps.

        Args:
            timesteps: (samples,) in [0, 1000].
            dtype: Dtype of the sinusoids after they are computed in float32.

        Returns:
            (2, 3, samples, width) float32: for attention and for the feed-forward, the shift, scale and gate.
        """
        half = SINUSOIDS // 2
        exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
        angles = timesteps.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
        sinusoids = torch.cat((angles.sin(), angles.cos()), dim=-1).to(dtype)
        hidden = functional.silu(self.proj_in(sinusoids))
        embedding: Tensor = self.proj_out(functional.silu(self.proj_hidden(hidden))).float()
        # The released weights keep the channel as the slow index.
        return rearrange(embedding, "b (d site kind) -> site kind b d", site=2, kind=3).contiguous()


class OutputNorm(nn.Module):
    """Norm and modulation before the last projection of the 3B flavour.

    Args:
        config: Sizes of the generator.

    Source: the released weights take the attention part of the timestep embedding here.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.width))
        self.shift = modulation_vector(config.width, around=0.0)
        self.scale = modulation_vector(config.width, around=1.0)

    def forward(self, tokens: Tensor, embedding: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Normalise and modulate (tokens, width); arguments as in `Branch.before_attention`."""
        shift, scale, _ = embedding[0]
        normed = rms_norm(tokens, self.eps, self.weight)
        return modulate(normed, shift + self.shift, scale + self.scale, lengths)


def patchify(video: Tensor) -> Tensor:
    """Cut (channels, T, h, w) into 1x2x2 patches: (T * h/2 * w/2, 4 * channels), channels fastest."""
    return rearrange(video, "c t (h ph) (w pw) -> (t h w) (ph pw c)", ph=2, pw=2)


def unpatchify(patches: Tensor, grid: Grid) -> Tensor:
    """Undo `patchify` for a token grid (T, h/2, w/2)."""
    frames, height, _ = grid
    return rearrange(patches, "(t h w) (ph pw c) -> c t (h ph) (w pw)", t=frames, h=height, ph=2, pw=2)
