"""Starts for the training of small models that already work: a linear block codec, and the identity.

From random weights a small autoencoder spends most of a short training on what a linear transform does at
once. So its weights are set to compute one: 2x2 blocks through the principal components of the training
crops, level by level, averages over time, and the transposed steps back. Every residual branch starts at
zero. Two normalised activations lie in the way; a value passes them as the pair (+x, -x), because
silu(x) - silu(-x) = x, in a group that also holds large constants, so that its standard deviation, by which
the norm divides, hardly depends on x. A one-step generator likewise starts by giving its source back.

Source: own construction.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from seedvr2.errors import StageError
from seedvr2.models.autoencoder import Autoencoder, Downsample, FrameAttention, Resnet, Upsample
from seedvr2.models.causal_conv import CausalConv3d
from seedvr2.models.generator import Generator

CONSTANT = 6.0
"""Height of the constants beside values of unit size."""


@torch.no_grad()
def start_linear(model: Autoencoder, crops: Tensor) -> None:
    """Set the weights of `model` so that it codes 8x8 blocks by principal components.

    Args:
        model: Changed in place.
        crops: Pictures (N, 3, H, W) in [-1, 1] with sides that are multiples of 8.

    Raises:
        StageError: The model is too narrow for the construction.
    """
    config = model.config
    first, second, third, last = config.channels
    latents = config.latent_channels
    if (
        third != last
        or last < 4 * latents
        or first < 12
        or first // config.norm_groups < 4
        or config.norm_groups < 3
    ):
        raise StageError(
            "a linear start needs channels[0] of at least 12, channels[2] = channels[3] of at least 4 times the "
            f"latent's, and 3 or more norm groups of 4 or more, got {config.channels} in {config.norm_groups}"
        )
    for module in model.modules():
        if isinstance(module, Resnet):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.shortcut is not None:
                _pass_through(module.shortcut)
        elif isinstance(module, FrameAttention):
            nn.init.zeros_(module.out.weight)
            nn.init.zeros_(module.out.bias)

    bases = []  # (4 * channels, kept): columns are components of a 2x2 block
    features = crops
    for kept in (min(12, first), min(48, second), latents):
        blocks = rearrange(features, "n c (h y) (w x) -> (y x c) (n h w)", y=2, x=2)
        _, basis = torch.linalg.eigh(blocks @ blocks.T)
        bases.append(basis.flip(1)[:, :kept])
        spatial = {"n": features.shape[0], "h": features.shape[2] // 2}
        features = rearrange(bases[-1].T @ blocks, "c (n h w) -> n c h w", **spatial)
    size = rearrange(features, "n c h w -> c (n h w)").square().mean(dim=1).sqrt()

    down = [module.conv for module in model.encoder.modules() if isinstance(module, Downsample)]
    up = [module for module in model.decoder.modules() if isinstance(module, Upsample)]
    _pass_through(model.encoder.conv_in, 3)
    _code(down[0], bases[0])
    _code(down[1], bases[1])
    to_pairs, constants = _pair_layout(latents, last, config.norm_groups)
    _code(down[2], (bases[2] / size) @ to_pairs.T)
    down[2].bias.copy_(constants)
    _read_pairs(model.encoder.norm_out, model.encoder.conv_out, to_pairs / config.scaling_factor)
    model.encoder.conv_out.bias[latents:] = -6.0  # a posterior of small, equal variance

    _pass_through(model.decoder.conv_in, latents)
    model.decoder.conv_in.weight.mul_(config.scaling_factor)
    for resize, basis in zip(up, (bases[2] * size, bases[1], bases[0]), strict=True):
        _decode(resize, basis)
    narrow = model.decoder.up[3].resnets[0].shortcut  # type: ignore[union-attr,index]
    to_pairs, constants = _pair_layout(3, first, config.norm_groups)
    if narrow is None:
        raise StageError("a linear start needs channels[0] other than channels[1]")
    narrow.weight.zero_()
    narrow.weight[:, :3, 0, 0, 0] = to_pairs
    narrow.bias.copy_(constants)
    _read_pairs(model.decoder.norm_out, model.decoder.conv_out, to_pairs)


@torch.no_grad()
def start_identity(generator: Generator) -> None:
    """Set the weights of `generator` so that one step gives the source back: velocity = noise - source.

    The patches of noise and source stand side by side in the residual stream, all blocks add nothing yet,
    and one large constant keeps the output norm from depending on them.

    Args:
        generator: Changed in place.

    Raises:
        StageError: It is too narrow, or has no output norm.
    """
    config, norm = generator.config, generator.output_norm
    values = 4 * config.latent_channels
    if norm is None or config.width < 2 * values + 1:
        raise StageError(
            f"an identity start needs an output norm and a width above {2 * values}, got {config.width}"
        )
    taken, height = 2 * values, 4.0 * values**0.5
    size = ((taken + height**2) / config.width) ** 0.5  # root mean square of a token
    for block in generator.blocks:
        for name, parameter in block.named_parameters():
            if ".out." in name or ".proj_out." in name:
                parameter.zero_()
            elif name.endswith("_gate"):
                parameter.fill_(1.0)
            elif name.endswith("_scale"):  # blocks see values of unit size and not the constant
                parameter.fill_(size)
                parameter[taken] = 0
    generator.time_in.proj_out.weight.zero_()
    patch_in = rearrange(generator.patch_in.weight, "d (p c) -> d p c", p=4)
    patch_in[:taken] = 0
    noise, source = torch.eye(values), torch.eye(values)
    channels = config.latent_channels
    patch_in[:values, :, :channels] = rearrange(noise, "d (p c) -> d p c", p=4)
    patch_in[values:taken, :, channels : 2 * channels] = rearrange(source, "d (p c) -> d p c", p=4)
    generator.patch_in.weight[taken] = 0
    generator.patch_in.bias.zero_()
    generator.patch_in.bias[taken] = height
    norm.weight.fill_(size)
    norm.weight[taken] = 0
    norm.shift.zero_()
    norm.scale.fill_(1.0)
    generator.patch_out.weight.zero_()
    generator.patch_out.bias.zero_()
    generator.patch_out.weight[:, :values] = noise
    generator.patch_out.weight[:, values:taken] = -source


def _pass_through(conv: CausalConv3d, used: int | None = None) -> None:
    """Copy channels unchanged; outputs beyond the `used` ones keep a faint random start."""
    kept = min(conv.weight.shape[:2])
    _fade(conv)
    conv.weight[: used or kept] = 0
    centre = conv.weight.shape[3] // 2
    for channel in range(kept if used is None else min(kept, used)):
        conv.weight[channel, channel, -1, centre, centre] = 1


def _fade(conv: CausalConv3d) -> None:
    conv.weight.mul_(0.1)
    nn.init.zeros_(conv.bias)


def _code(conv: CausalConv3d, basis: Tensor) -> None:
    """Let a strided convolution project 2x2 blocks, averaged over the frames that it merges."""
    _fade(conv)
    kept = basis.shape[1]
    taps = rearrange(basis, "(y x c) k -> k c y x", y=2, x=2)
    conv.weight[:kept] = 0
    for frame in (-1, -2)[: 1 if conv.weight.shape[2] == 1 else 2]:
        share = 1.0 if conv.weight.shape[2] == 1 else 0.5
        conv.weight[:kept, : taps.shape[1], frame, :2, :2] = share * taps


def _decode(resize: Upsample, basis: Tensor) -> None:
    """Let an upsampler put the components back into 2x2 blocks, the same for each frame."""
    expand, conv = resize.expand, resize.conv
    _fade(expand)
    taps = rearrange(basis, "(y x c) k -> y x c k", y=2, x=2)
    weight = rearrange(expand.weight, "(y x z c) k 1 1 1 -> y x z c k", y=2, x=2, c=conv.weight.shape[1])
    used = taps.shape[2]
    weight[:, :, :, :used] = 0
    weight[:, :, :, :used, : taps.shape[3]] = taps[:, :, None]
    _pass_through(conv, used)


def _pair_layout(values: int, channels: int, groups: int) -> tuple[Tensor, Tensor]:
    """Where values and constants go: a matrix (channels, values) of +1 and -1, and a bias (channels,)."""
    size = channels // groups
    pairs, constants = torch.zeros(channels, values), torch.zeros(channels)
    per_group = size // 4
    for value in range(values):
        at = (value // per_group) * size + 2 * (value % per_group)
        pairs[at, value], pairs[at + 1, value] = 1, -1
    for group in range(groups):
        constants[group * size + 2 * per_group : (group + 1) * size : 2] = CONSTANT
        constants[group * size + 2 * per_group + 1 : (group + 1) * size : 2] = -CONSTANT
    return pairs, constants


def _read_pairs(norm: nn.GroupNorm, conv: CausalConv3d, pairs: Tensor) -> None:
    """Let the last convolution take silu(x) - silu(-x) of every pair."""
    size = norm.num_channels // norm.num_groups
    constants = size - 2 * (size // 4)
    # The constants end here: as inputs they would make the convolution's weights far too sensitive.
    norm.weight.copy_(CONSTANT * (constants / size) ** 0.5 * pairs.abs().sum(dim=1).clamp(max=1))
    _fade(conv)
    values = pairs.shape[1]
    centre = conv.weight.shape[3] // 2
    conv.weight[:] = 0
    conv.weight[:values, :, -1, centre, centre] = pairs.T
