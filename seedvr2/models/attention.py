"""Joint attention of video and text inside windows, over a packed batch.

Each window attends over its own video tokens and all text tokens of its sample; text is averaged over the
windows of the sample. There is one function, `packed_attention`, and three kernels behind it: torch's dense
attention on batches of equally long windows (any device), torch's kernel of variable length, and
flash-attention (both CUDA, 16 bit). Tests hold them to a plain loop over windows.

Source: SeedVR2 (arXiv 2506.05301), Sec. 3.2 and Fig. 2, and the released weights.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional

from seedvr2.config import GeneratorConfig
from seedvr2.errors import ConfigError
from seedvr2.models.layers import Names, PerModality, RMSNorm, linear
from seedvr2.models.rope import rotate
from seedvr2.models.windows import WindowLayout

Kernel = Literal["sdpa", "varlen", "flash"]
Backend = Literal["auto", "sdpa", "varlen", "flash"]
BACKENDS: tuple[Backend, ...] = ("auto", "sdpa", "varlen", "flash")


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """What the blocks of one partition (regular or shifted) share during a forward pass."""

    layout: WindowLayout
    rotation: Tensor
    """(video + text tokens, 1, head_dim / 2) complex64, in token order."""
    backend: Backend = "auto"
    dtype: torch.dtype | None = None
    """Dtype of queries, keys and values in the kernel; None keeps that of the input."""


class WindowAttention(nn.Module):
    """Attention of one block: projections per modality around a core that sees heads only.

    Args:
        config: Sizes of the generator.
        names: Modalities that own weights.
    """

    def __init__(self, config: GeneratorConfig, names: Names) -> None:
        super().__init__()
        inner = config.heads * config.head_dim
        self.head_dim = config.head_dim
        self.qkv = PerModality(lambda: linear(config.width, 3 * inner, bias=False), names)
        self.query_norm = PerModality(lambda: RMSNorm(config.head_dim, config.norm_eps), names)
        self.key_norm = PerModality(lambda: RMSNorm(config.head_dim, config.norm_eps), names)
        self.core = AttentionCore()
        self.out = PerModality(lambda: linear(inner, config.width), names)

    def forward(self, video: Tensor, text: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor]:
        """Attend jointly.

        Args:
            video: (video tokens, width), all samples in a row.
            text: (text tokens, width), all samples in a row.
            plan: Layout and rotations of these tokens.

        Returns:
            Video and text of the same shapes.
        """
        video_q, video_k, video_v = self._heads(self.qkv.of("video")(video))
        text_q, text_k, text_v = self._heads(self.qkv.of("text")(text))
        q = torch.cat((self.query_norm.of("video")(video_q), self.query_norm.of("text")(text_q)))
        k = torch.cat((self.key_norm.of("video")(video_k), self.key_norm.of("text")(text_k)))
        v = torch.cat((video_v, text_v))
        video_heads, text_heads = self.core(q, k, v, plan)
        return self.out.of("video")(video_heads.flatten(1)), self.out.of("text")(text_heads.flatten(1))

    def _heads(self, qkv: Tensor) -> Tensor:
        return rearrange(qkv, "n (qkv h d) -> qkv n h d", qkv=3, d=self.head_dim)


class AttentionCore(nn.Module):
    """Rotation and window attention; the part that needs all tokens but treats each head alone.

    It has no weights and takes any number of heads, so that sequence parallelism can wrap it from outside:
    exchange tokens for heads before, and heads for tokens after.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor]:
        """Rotate and attend.

        Args:
            q: Normalised queries (video + text tokens, heads, head_dim).
            k: Normalised keys, likewise.
            v: Values, likewise.
            plan: Layout and rotations of all tokens.

        Returns:
            Video (video tokens, heads, head_dim) and text (text tokens, heads, head_dim).
        """
        q, k = rotate(q, plan.rotation), rotate(k, plan.rotation)
        return packed_attention(q, k, v, plan.layout, backend=plan.backend, dtype=plan.dtype)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: WindowLayout,
    *,
    backend: Backend = "auto",
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention in each window over its video tokens and all text tokens of its sample.

    Args:
        q: Queries (video + text tokens, heads, head_dim): video of all samples, then text of all samples.
        k: Keys, likewise.
        v: Values, likewise.
        layout: Windows of the batch.
        backend: The kernel; "auto" takes the fastest that this device and dtype have.
        dtype: Dtype of q, k and v in the kernel; None keeps theirs. Released runs use bfloat16.

    Returns:
        Video (video tokens, heads, head_dim), and text (text tokens, heads, head_dim) averaged over the
        windows of its sample, in the dtype of `q`.

    Raises:
        ConfigError: The kernel is not installed, or does not know this device or dtype.
    """
    dtype = dtype or q.dtype
    if backend == "auto":
        backend = fastest_kernel(q.device, dtype)
    kernel = {"sdpa": _sdpa, "varlen": _varlen, "flash": _flash}[backend]
    packed_q, packed_k, packed_v = (x.to(dtype).index_select(0, layout.sources) for x in (q, k, v))
    packed = kernel(packed_q, packed_k, packed_v, layout).to(q.dtype)
    text_rows = [count * n for count, n in zip(layout.window_counts, layout.text_lengths, strict=True)]
    results = packed.index_select(0, layout.results)
    video, *texts = torch.split(results, [sum(layout.video_lengths), *text_rows])
    means = [
        reduce(text, "(n windows) h d -> n h d", "mean", windows=count)
        for text, count in zip(texts, layout.window_counts, strict=True)
    ]
    return video, torch.cat(means)


def fastest_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """What "auto" means for queries of this device and dtype."""
    if device.type != "cuda" or dtype.itemsize != 2 or torch.cuda.get_device_capability(device) < (8, 0):
        return "sdpa"
    return (
        "flash"
        if _installed("flash_attn")
        else "varlen"
        if _installed("torch.nn.attention.varlen")
        else "sdpa"
    )


@cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None


def _sdpa(q: Tensor, k: Tensor, v: Tensor, layout: WindowLayout) -> Tensor:
    batches = []
    sizes = [count * length for count, length in layout.groups]
    for (count, _), *group in zip(layout.groups, *(torch.split(x, sizes) for x in (q, k, v)), strict=True):
        q_, k_, v_ = (rearrange(x, "(n s) h d -> n h s d", n=count) for x in group)
        attended = functional.scaled_dot_product_attention(q_, k_, v_)
        batches.append(rearrange(attended, "n h s d -> (n s) h d"))
    return torch.cat(batches) if len(batches) > 1 else batches[0]


def _varlen(q: Tensor, k: Tensor, v: Tensor, layout: WindowLayout) -> Tensor:
    _require_cuda_16_bit("varlen", q)
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise ConfigError(
            f"attention backend 'varlen' needs torch 2.10 or later, got {torch.__version__}; use 'sdpa'"
        ) from error
    offsets, longest = layout.offsets, layout.longest
    attended = varlen_attn(q, k, v, offsets, offsets, longest, longest)
    assert isinstance(attended, Tensor)
    return attended


def _flash(q: Tensor, k: Tensor, v: Tensor, layout: WindowLayout) -> Tensor:
    _require_cuda_16_bit("flash", q)
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        raise ConfigError(
            "attention backend 'flash' needs flash-attn, which is not installed; "
            "install the extra 'gpu' or use 'auto'"
        ) from error
    offsets, longest = layout.offsets, layout.longest
    attended: Tensor = flash_attn_varlen_func(q, k, v, offsets, offsets, longest, longest)
    return attended


def _require_cuda_16_bit(backend: Kernel, q: Tensor) -> None:
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16):
        raise ConfigError(
            f"attention backend {backend!r} runs on CUDA in float16 or bfloat16, got {q.dtype} on "
            f"{q.device.type}; use 'sdpa', or set the attention dtype to bfloat16"
        )
