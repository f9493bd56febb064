"""Causal video autoencoder: 8x smaller in space, 4x in time, 16 latent channels.

The first frame becomes a latent frame of its own and every further four frames become one, so an image is
a one-frame video. Everything but the causal convolutions works frame by frame; that is why a video can be
encoded and decoded slice by slice with the same result as in one call, in memory that does not grow with
its length.

Source: spec of the released video autoencoder; SeedVR2 (arXiv 2506.05301), Sec. 3.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from seedvr2.config import AutoencoderConfig
from seedvr2.errors import ShapeError
from seedvr2.models.causal_conv import CacheWalk, CausalCache, CausalConv3d

SPATIAL_FACTOR = 8
TEMPORAL_FACTOR = 4


@dataclass(frozen=True)
class Posterior:
    """Diagonal normal distribution over unscaled latents, both (B, 16, T', H/8, W/8)."""

    mean: Tensor
    log_variance: Tensor

    def mode(self) -> Tensor:
        """The most likely latent."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """A draw: mean + exp(log_variance / 2) * noise.

        Args:
            generator: Source of standard normal noise, on the mean's device.
            noise: The noise itself, of the mean's shape, instead of `generator`.

        Raises:
            ValueError: Not exactly one of the two given.
        """
        if (generator is None) == (noise is None):
            raise ValueError("sample needs either a generator or the noise itself")
        if noise is None:
            noise = torch.randn(
                self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
            )
        return self.mean + torch.exp(0.5 * self.log_variance) * noise


class Autoencoder(nn.Module):
    """The autoencoder: `encode` and `decode` whole clips, slices, or streams.

    Pixels are (B, 3, T, H, W) in [-1, 1] with T = 4n + 1 and H, W multiples of 8; latents are
    (B, 16, n + 1, H/8, W/8), scaled by `config.scaling_factor`.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> Posterior:
        """Posterior of a whole clip.

        Raises:
            ShapeError: T is not 4n + 1, or H or W is no multiple of 8.
        """
        _check_pixels(pixels, first=True)
        return _posterior(self.encoder(pixels, CacheWalk(keep=False)))

    def encode_slice(self, pixels: Tensor, cache: CausalCache) -> tuple[Posterior, CausalCache]:
        """Posterior of the next frames of a video: 4n + 1 at its start, 4n later.

        Raises:
            ShapeError: Another number of frames, or H or W is no multiple of 8.
        """
        _check_pixels(pixels, first=cache.is_start)
        walk = CacheWalk(cache)
        return _posterior(self.encoder(pixels, walk)), walk.result()

    def encode_stream(self, frames: Iterable[Tensor], slice_frames: int = 4) -> Iterator[Posterior]:
        """Posteriors of a video that arrives in pieces (B, 3, any, H, W).

        The first covers 1 + `slice_frames` frames, later ones `slice_frames`; the last may be shorter.

        Raises:
            ShapeError: The stream ends at a length that is not 4n + 1.
        """
        cache = CausalCache()
        for pixels in _regroup(frames, 1 + slice_frames, slice_frames):
            posterior, cache = self.encode_slice(pixels, cache)
            yield posterior

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels of a whole clip's latent (B, 16, T', h, w); not clamped."""
        pixels: Tensor = self.decoder(latent / self.config.scaling_factor, CacheWalk(keep=False))
        return pixels

    def decode_slice(self, latent: Tensor, cache: CausalCache) -> tuple[Tensor, CausalCache]:
        """Pixels of the next latent frames: 4n - 3 frames at the start of a video, 4n later."""
        walk = CacheWalk(cache)
        return self.decoder(latent / self.config.scaling_factor, walk), walk.result()

    def decode_stream(self, latents: Iterable[Tensor], slice_frames: int = 1) -> Iterator[Tensor]:
        """Pixels of latents that arrive in pieces (B, 16, any, h, w).

        The first covers 1 + `slice_frames` latent frames, later ones `slice_frames`.
        """
        cache = CausalCache()
        for latent in _regroup(latents, 1 + slice_frames, slice_frames):
            pixels, cache = self.decode_slice(latent, cache)
            yield pixels

    def to_latent(self, draw: Tensor) -> Tensor:
        """Scale a posterior's draw to a latent."""
        return draw * self.config.scaling_factor


class Encoder(nn.Module):
    """Pixels (B, 3, T, H, W) to moments (B, 32, T', H/8, W/8)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        first, last = config.channels[0], config.channels[-1]
        self.conv_in = CausalConv3d(3, first)
        self.down = nn.ModuleList()
        channels = first
        for level, width in enumerate(config.channels):
            resnets = [
                Resnet(channels if i == 0 else width, width, config) for i in range(config.encoder_resnets)
            ]
            is_last = level == len(config.channels) - 1
            # Space only at level 0, time and space at 1 and 2.
            resize = None if is_last else Downsample(width, time=level > 0)
            self.down.append(Level(resnets, resize))
            channels = width
        self.middle = Middle(last, config)
        self.norm_out = FrameNorm(last, config)
        self.conv_out = CausalConv3d(last, 2 * config.latent_channels)

    def forward(self, pixels: Tensor, walk: CacheWalk) -> Tensor:
        """Moments of one slice."""
        x = self.conv_in(pixels.contiguous(memory_format=torch.channels_last_3d), walk)
        for level in self.down:
            x = level(x, walk)
        x = self.middle(x, walk)
        return self.conv_out(F.silu(self.norm_out(x)), walk)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Unscaled latents (B, 16, T', h, w) to pixels (B, 3, T, 8h, 8w)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.channels[::-1]
        self.conv_in = CausalConv3d(config.latent_channels, widths[0])
        self.middle = Middle(widths[0], config)
        self.up = nn.ModuleList()
        channels = widths[0]
        for level, width in enumerate(widths):
            resnets = [
                Resnet(channels if i == 0 else width, width, config) for i in range(config.decoder_resnets)
            ]
            is_last = level == len(widths) - 1
            # Time and space at levels 0 and 1, space only at 2.
            resize = None if is_last else Upsample(width, time=level < 2)
            self.up.append(Level(resnets, resize))
            channels = width
        self.norm_out = FrameNorm(channels, config)
        self.conv_out = CausalConv3d(channels, 3)

    def forward(self, latent: Tensor, walk: CacheWalk) -> Tensor:
        """Pixels of one slice."""
        x = self.conv_in(latent.contiguous(memory_format=torch.channels_last_3d), walk)
        x = self.middle(x, walk)
        for level in self.up:
            x = level(x, walk)
        return self.conv_out(F.silu(self.norm_out(x)), walk)  # type: ignore[no-any-return]


class Level(nn.Module):
    """Resnets at one resolution, then the step to the next one."""

    def __init__(self, resnets: list["Resnet"], resize: "Downsample | Upsample | None") -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.resize = resize

    def forward(self, x: Tensor, walk: CacheWalk) -> Tensor:
        """One slice through the level."""
        for resnet in self.resnets:
            x = resnet(x, walk)
        return x if self.resize is None else self.resize(x, walk)


class Resnet(nn.Module):
    """Two normalised causal convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.norm1 = FrameNorm(in_channels, config)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = FrameNorm(out_channels, config)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        same = in_channels == out_channels
        self.shortcut = None if same else CausalConv3d(in_channels, out_channels, kernel=(1, 1, 1))

    def forward(self, x: Tensor, walk: CacheWalk) -> Tensor:
        """One slice (B, C, T, H, W)."""
        y = self.conv1(F.silu(self.norm1(x)), walk)
        y = self.conv2(F.silu(self.norm2(y)), walk)
        return y + (x if self.shortcut is None else self.shortcut(x, walk))  # type: ignore[no-any-return]


class FrameNorm(nn.GroupNorm):
    """Group normalisation with the statistics of one frame, which keeps the network causal."""

    def __init__(self, channels: int, config: AutoencoderConfig) -> None:
        super().__init__(config.norm_groups, channels, config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, T, H, W) frame by frame."""
        y = super().forward(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(y, "(b t) c h w -> b c t h w", b=x.shape[0])


class Middle(nn.Module):
    """Resnet, attention inside each frame, resnet."""

    def __init__(self, channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.resnet1 = Resnet(channels, channels, config)
        self.attention = FrameAttention(channels, config)
        self.resnet2 = Resnet(channels, channels, config)

    def forward(self, x: Tensor, walk: CacheWalk) -> Tensor:
        """One slice (B, C, T, H, W)."""
        return self.resnet2(self.attention(self.resnet1(x, walk)), walk)  # type: ignore[no-any-return]


class FrameAttention(nn.Module):
    """Single-head attention over all positions of one frame, with a residual."""

    def __init__(self, channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.norm = FrameNorm(channels, config)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each frame of (B, C, T, H, W)."""
        tokens = rearrange(self.norm(x), "b c t h w -> (b t) 1 (h w) c")
        attended = F.scaled_dot_product_attention(self.query(tokens), self.key(tokens), self.value(tokens))
        b, _, t, h, _ = x.shape
        out: Tensor = rearrange(self.out(attended), "(b t) 1 (h w) c -> b c t h w", b=b, t=t, h=h)
        return x + out


class Downsample(nn.Module):
    """Halve space, and time if `time`: 2m + 1 frames become m + 1."""

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        kernel, stride = (3, 2) if time else (1, 1)
        # Zeros on the right and at the bottom only.
        self.conv = CausalConv3d(channels, channels, (kernel, 3, 3), (stride, 2, 2), padding=(0, 1, 0, 1))

    def forward(self, x: Tensor, walk: CacheWalk) -> Tensor:
        """One slice (B, C, T, H, W)."""
        return self.conv(x, walk)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Double space, and time if `time`, by sub-pixel shuffle: m + 1 frames become 2m + 1 at a start."""

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.frames = 2 if time else 1
        self.expand = CausalConv3d(channels, 4 * self.frames * channels, kernel=(1, 1, 1))
        self.conv = CausalConv3d(channels, channels)
        with torch.no_grad():  # nearest-neighbour at first
            copies = torch.eye(channels).repeat(4 * self.frames, 1)
            self.expand.weight.copy_(copies[:, :, None, None, None])
            self.expand.bias.zero_()

    def forward(self, x: Tensor, walk: CacheWalk) -> Tensor:
        """One slice (B, C, T, H, W)."""
        x = self.expand(x, walk)
        x = rearrange(x, "b (x y z c) t h w -> b c (t z) (h x) (w y)", x=2, y=2, z=self.frames)
        if self.frames > 1 and walk.cache.is_start:  # the first frame has no second half
            x = torch.cat([x[:, :, :1], x[:, :, 2:]], dim=2)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        return self.conv(x, walk)  # type: ignore[no-any-return]


def _posterior(moments: Tensor) -> Posterior:
    mean, log_variance = moments.chunk(2, dim=1)
    return Posterior(mean, log_variance.clamp(-30.0, 20.0))


def _check_pixels(pixels: Tensor, first: bool) -> None:
    frames, height, width = pixels.shape[-3:]
    if frames < 1 or frames % TEMPORAL_FACTOR != int(first):
        expected = "4n + 1 frames" if first else "a multiple of 4 frames after the start"
        raise ShapeError(f"expected {expected}, got {frames}; pad by repeating the last frame")
    if height % SPATIAL_FACTOR or width % SPATIAL_FACTOR:
        raise ShapeError(
            f"expected sides that are multiples of {SPATIAL_FACTOR}, got {height}x{width}; pad or crop"
        )


def _regroup(pieces: Iterable[Tensor], first: int, later: int) -> Iterator[Tensor]:
    """Cut a stream of tensors along time into one piece of `first` frames and then pieces of `later`."""
    held: list[Tensor] = []
    wanted = first
    for piece in pieces:
        held.append(piece)
        while (total := sum(part.shape[2] for part in held)) >= wanted:
            joined = torch.cat(held, dim=2) if len(held) > 1 else held[0]
            yield joined[:, :, :wanted]
            held = [joined[:, :, wanted:]] if total > wanted else []
            wanted = later
    if held:
        yield torch.cat(held, dim=2)
