"""The generator: a diffusion transformer over video and text with attention in shifted windows.

Noisy latent, condition and mask go in, velocity comes out. Samples of any size are packed along one token
axis, each with its own text; nothing is padded. One implementation serves both released flavours, which
differ in weight sharing, feed-forward, rotary embedding and the last layers, by `GeneratorConfig`.

    videos -> patches -> tokens -+                 +-> output norm -> patches -> videos
    texts ------------> tokens --+--> blocks x N --+
    timesteps -> modulation -----+

Source: SeedVR2 (arXiv 2506.05301), Sec. 3 and Table 6, and the released weights.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seedvr2.config import GeneratorConfig
from seedvr2.errors import ConfigError, ShapeError
from seedvr2.models.attention import BACKENDS, AttentionPlan, Backend, WindowAttention, fastest_kernel
from seedvr2.models.layers import (
    SEPARATE,
    SHARED,
    VIDEO_ONLY,
    Branch,
    OutputNorm,
    PerModality,
    TimeEmbedding,
    linear,
    patchify,
    rms_norm,
    unpatchify,
)
from seedvr2.models.rope import Rope, packed_positions
from seedvr2.models.windows import Grid, window_layout


@dataclass(frozen=True, eq=False)
class Plan:
    """What all blocks share during one forward pass: sizes, window layouts and rotations."""

    grids: tuple[Grid, ...]
    """Token grid of each sample."""
    video_lengths: tuple[int, ...]
    """Video tokens in hand, per sample; they choose the modulation of a token."""
    text_lengths: tuple[int, ...]
    """Text tokens in hand, per sample."""
    regular: AttentionPlan
    shifted: AttentionPlan


class Block(nn.Module):
    """One transformer block: joint window attention, then a feed-forward per modality.

    Args:
        config: Sizes of the generator.
        index: Place in the stack; odd blocks shift their windows.
    """

    def __init__(self, config: GeneratorConfig, index: int) -> None:
        super().__init__()
        names = SEPARATE if index < config.separate_layers else SHARED
        self.eps = config.norm_eps
        self.shifted = index % 2 == 1
        self.video_only = config.video_only_last_layer and index == config.layers - 1
        self.attention = WindowAttention(config, names)
        own = VIDEO_ONLY if self.video_only and names == SEPARATE else names
        self.branches = PerModality(lambda: Branch(config), own)

    def forward(self, video: Tensor, text: Tensor, embedding: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """Update both streams.

        Args:
            video: (video tokens, width).
            text: (text tokens, width).
            embedding: (2, 3, samples, width) float32, see `TimeEmbedding`.
            plan: Layout of these tokens.

        Returns:
            Both streams. A video-only block gives the text back as it came: there, attention sees plain
            normalised text and nothing else is computed for it.
        """
        video_branch = self.branches.of("video")
        video_in = video_branch.before_attention(video, embedding, plan.video_lengths)
        if self.video_only:
            text_in = rms_norm(text, self.eps)
        else:
            text_branch = self.branches.of("text")
            text_in = text_branch.before_attention(text, embedding, plan.text_lengths)

        attended = self.attention(video_in, text_in, plan.shifted if self.shifted else plan.regular)

        video = video_branch.after_attention(video, attended[0], embedding, plan.video_lengths)
        if not self.video_only:
            text = text_branch.after_attention(text, attended[1], embedding, plan.text_lengths)
        return video, text


class Generator(nn.Module):
    """The Swin-MMDiT that predicts velocity.

    Args:
        config: Sizes and switches; the defaults of `GeneratorConfig` are the 3B flavour.
        attention_backend: "auto", "sdpa", "varlen" or "flash", see `packed_attention`.
        attention_dtype: Dtype of queries, keys and values inside attention; None keeps theirs. Released
            weights were trained and run with bfloat16.
        checkpoint_activations: Recompute each block in the backward pass instead of keeping its activations.

    Raises:
        ConfigError: Unknown backend, or an odd head_dim.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        *,
        attention_backend: Backend = "auto",
        attention_dtype: torch.dtype | None = None,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if attention_backend not in BACKENDS:
            raise ConfigError(
                f"no attention backend {attention_backend!r}; choose from {', '.join(BACKENDS)}"
            )
        self.config = config
        self.attention_backend: Backend = attention_backend
        self.attention_dtype = attention_dtype
        self.checkpoint_activations = checkpoint_activations
        self.patch_in = linear(4 * config.in_channels, config.width)
        self.text_in = linear(config.text_channels, config.width)
        self.time_in = TimeEmbedding(config.width)
        self.rope = Rope(config.rope, config.head_dim)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.layers))
        self.output_norm = OutputNorm(config) if config.output_norm else None
        self.patch_out = linear(config.width, 4 * config.latent_channels)

    def forward(self, videos: Sequence[Tensor], timesteps: Tensor, texts: Sequence[Tensor]) -> list[Tensor]:
        """Predict the velocity of each sample.

        Args:
            videos: One (in_channels, T, h, w) per sample: noisy latent, condition latent, mask. Sizes may
                differ between samples; h and w are even.
            timesteps: (samples,) in [0, 1000]; 1000 is noise.
            texts: One (tokens, text_channels) per sample; lengths may differ.

        Returns:
            One (latent_channels, T, h, w) per sample, in the dtype that the model computes in.

        Raises:
            ShapeError: Sizes that do not fit the configuration or each other.
            ConfigError: The attention backend does not run here.
        """
        video, text, embedding, plan = self.embed(videos, timesteps, texts)
        for block in self.blocks:
            video, text = self.run(block, video, text, embedding, plan)
        return self.project(video, embedding, plan)

    def hidden(
        self, videos: Sequence[Tensor], timesteps: Tensor, texts: Sequence[Tensor], *, after: Collection[int]
    ) -> list[tuple[Tensor, ...]]:
        """Hidden video tokens after some blocks; the blocks behind the last of them are not run.

        Args:
            videos: As in `forward`.
            timesteps: As in `forward`.
            texts: As in `forward`.
            after: Indices of blocks, from 0.

        Returns:
            For each chosen block, in ascending order: one (video tokens, width) per sample, row-major in
            the sample's token grid.

        Raises:
            ShapeError: As in `forward`.
            ConfigError: A block does not exist, or the attention backend does not run here.
        """
        if not after or min(after) < 0 or max(after) >= len(self.blocks):
            raise ConfigError(f"expected block indices from 0 to {len(self.blocks) - 1}, got {sorted(after)}")
        video, text, embedding, plan = self.embed(videos, timesteps, texts)
        tapped = []
        for index, block in enumerate(islice(self.blocks, max(after) + 1)):
            video, text = self.run(block, video, text, embedding, plan)
            if index in after:
                tapped.append(torch.split(video, list(plan.video_lengths)))
        return tapped

    def embed(
        self, videos: Sequence[Tensor], timesteps: Tensor, texts: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Plan]:
        """Pack a batch: video tokens, text tokens, timestep embedding, and the plan for the blocks."""
        self._check(videos, timesteps, texts)
        dtype = self.patch_in.weight.dtype
        video = self.patch_in(torch.cat([patchify(video) for video in videos]).to(dtype))
        text = self.text_in(torch.cat(list(texts)).to(dtype))
        embedding = self.time_in(timesteps, video.dtype)
        grids = tuple((v.shape[1], v.shape[2] // 2, v.shape[3] // 2) for v in videos)
        text_lengths = tuple(len(tokens) for tokens in texts)
        return video, text, embedding, self.plan(grids, text_lengths, video.device, video.dtype)

    def plan(
        self, grids: tuple[Grid, ...], text_lengths: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> Plan:
        """Layouts (kept by value) and rotations (made anew) of a batch of token grids and text lengths.

        Args:
            grids: Token grid of each sample.
            text_lengths: Text tokens of each sample.
            device: Where the blocks run.
            dtype: What the blocks compute in; together with the device it decides what "auto" means.
        """
        backend = self.attention_backend
        if backend == "auto":
            backend = fastest_kernel(device, self.attention_dtype or dtype)
        halves = []
        for shifted in (False, True):
            key = (grids, text_lengths, self.config.num_windows, shifted, device)
            rotation = self.rope(packed_positions(self.config.rope, *key))
            halves.append(AttentionPlan(window_layout(*key), rotation, backend, self.attention_dtype))
        return Plan(grids, halves[0].layout.video_lengths, text_lengths, *halves)

    def run(
        self, block: nn.Module, video: Tensor, text: Tensor, embedding: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        """Both streams after one block, with its activations kept or recomputed."""
        streams: tuple[Tensor, Tensor]
        if self.checkpoint_activations and torch.is_grad_enabled():
            streams = checkpoint(
                block, video, text, embedding, plan, use_reentrant=False, preserve_rng_state=False
            )
        else:
            streams = block(video, text, embedding, plan)
        return streams

    def project(self, video: Tensor, embedding: Tensor, plan: Plan) -> list[Tensor]:
        """Video tokens after the last block to one velocity per sample."""
        if self.output_norm is not None:
            video = self.output_norm(video, embedding, plan.video_lengths)
        patches = torch.split(self.patch_out(video), list(plan.video_lengths))
        return [unpatchify(piece, grid) for piece, grid in zip(patches, plan.grids, strict=True)]

    def _check(self, videos: Sequence[Tensor], timesteps: Tensor, texts: Sequence[Tensor]) -> None:
        count = len(videos)
        if count == 0 or len(texts) != count or timesteps.shape != (count,):
            raise ShapeError(
                f"expected one text and one timestep per video, got {count} videos, {len(texts)} texts "
                f"and timesteps of shape {tuple(timesteps.shape)}"
            )
        for video in videos:
            if video.ndim != 4 or video.shape[0] != self.config.in_channels:
                raise ShapeError(
                    f"expected videos of shape ({self.config.in_channels}, T, h, w), got {tuple(video.shape)}"
                )
            if video.shape[2] % 2 or video.shape[3] % 2 or 0 in video.shape:
                raise ShapeError(
                    f"expected an even latent height and width, got {tuple(video.shape[2:])}; "
                    "crop frames to multiples of 16"
                )
        for text in texts:
            if text.ndim != 2 or text.shape[1] != self.config.text_channels:
                raise ShapeError(
                    f"expected texts of shape (tokens, {self.config.text_channels}), got {tuple(text.shape)}"
                )
