"""Names and shapes of the released checkpoints, mapped to ours one to one.

The released files are flat state dicts without a prefix. Every tensor in them is used exactly once and
every parameter of ours is filled, or the mapping fails and says by how much. Nothing here reads a file, and
everything also works on meta tensors.

Source: the released 3B, 7B and autoencoder checkpoints.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from seedvr2.config import AutoencoderConfig, GeneratorConfig
from seedvr2.errors import CheckpointError
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.models.generator import Generator
from seedvr2.models.rope import RopeKind, rope_frequencies

_Rule: TypeAlias = tuple[str, str | Callable[[re.Match[str]], str]]

_MODALITIES = {"video": "vid", "text": "txt", "both": "all"}

_GENERATOR_RULES: tuple[_Rule, ...] = (
    (r"^patch_(in|out)\.", r"vid_\1.proj."),
    (r"^text_in\.", r"txt_in."),
    (r"^time_in\.proj_hidden\.", r"emb_in.proj_hid."),
    (r"^time_in\.", r"emb_in."),
    (r"^output_norm\.weight$", r"vid_out_norm.weight"),
    (r"^output_norm\.(shift|scale)$", r"vid_out_ada.out_\1"),
    (r"\.attention\.(qkv|out)\.(\w+)\.", r".attn.proj_\1.\2."),
    (r"\.attention\.(query|key)_norm\.(\w+)\.", lambda m: f".attn.norm_{m[1][0]}.{m[2]}."),
    (r"\.branches\.(\w+)\.attention_(shift|scale|gate)$", r".ada.\1.attn_\2"),
    (r"\.branches\.(\w+)\.mlp_(shift|scale|gate)$", r".ada.\1.mlp_\2"),
    (r"\.branches\.(\w+)\.mlp\.gate\.", r".mlp.\1.proj_in_gate."),
    (r"\.branches\.(\w+)\.mlp\.", r".mlp.\1."),
    (r"\.(video|text|both)\.", lambda m: f".{_MODALITIES[m[1]]}."),
)

_AUTOENCODER_RULES: tuple[_Rule, ...] = (
    (r"\.down\.(\d+)\.resize\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.resize\.expand\.", r".up_blocks.\1.upsamplers.0.upscale_conv."),
    (r"\.up\.(\d+)\.resize\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.(down|up)\.(\d+)\.", r".\1_blocks.\2."),
    (r"\.shortcut\.", r".conv_shortcut."),
    (r"\.middle\.resnet([12])\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}."),
    (r"\.middle\.attention\.norm\.", r".mid_block.attentions.0.group_norm."),
    (r"\.middle\.attention\.out\.", r".mid_block.attentions.0.to_out.0."),
    (r"\.middle\.attention\.(\w)\w+\.", r".mid_block.attentions.0.to_\1."),
    (r"\.norm_out\.", r".conv_norm_out."),
)

_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names that older files use inside `attentions`."""


def autoencoder_from_released(state: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """The state dict of our `Autoencoder` from a released one; old names of attention weights are understood.

    Args:
        state: Released tensors by name; the tensors are passed on, not copied.
        config: Sizes of the autoencoder, see `autoencoder_config_from_released`.

    Raises:
        CheckpointError: Tensors are missing, extra or misshaped.
    """
    state = {_modern_name(name): tensor for name, tensor in state.items()}
    with torch.device("meta"):
        expected = Autoencoder(config).state_dict()
    names = {ours: _rename(ours, _AUTOENCODER_RULES) for ours in expected}
    _require_equal_shapes(state, {names[ours]: tensor.shape for ours, tensor in expected.items()})
    return {ours: state[name] for ours, name in names.items()}


def autoencoder_config_from_released(state: Mapping[str, Tensor], norm_groups: int = 32) -> AutoencoderConfig:
    """Sizes of a released autoencoder, read off its names and shapes.

    Args:
        state: Released tensors by name.
        norm_groups: Leaves no trace in the weights.

    Raises:
        CheckpointError: The tensors are not those of an autoencoder.
    """
    try:
        ends = [state[f"encoder.down_blocks.{i}.resnets.0.conv2.weight"] for i in range(4)]
        latent_channels = state["decoder.conv_in.weight"].shape[1]
    except KeyError as error:
        raise CheckpointError(
            f"expected the tensors of a released autoencoder, found {len(state)} others; no {error}"
        ) from error
    return AutoencoderConfig(
        channels=(ends[0].shape[0], ends[1].shape[0], ends[2].shape[0], ends[3].shape[0]),
        encoder_resnets=_count(state, "encoder.down_blocks.0.resnets"),
        decoder_resnets=_count(state, "decoder.up_blocks.0.resnets"),
        latent_channels=latent_channels,
        norm_groups=norm_groups,
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[1] for name in state if name.startswith(f"{prefix}.")})


def _modern_name(name: str) -> str:
    return re.sub(
        r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.",
        lambda match: f"{match[1]}{_OLD_ATTENTION_NAMES[match[2]]}.",
        name,
    )


def generator_from_released(state: Mapping[str, Tensor], config: GeneratorConfig) -> dict[str, Tensor]:
    """The state dict of our `Generator` from a released one.

    Args:
        state: Released tensors by name; the tensors are passed on, not copied.
        config: Sizes of the generator, see `generator_config_from_released`.

    Raises:
        CheckpointError: Tensors are missing, extra or misshaped, or the rotary frequencies of the layers
            are not the canonical ones.
    """
    with torch.device("meta"):
        expected = Generator(config).state_dict()
    shapes = {
        _released_name(ours): tensor.shape for ours, tensor in expected.items() if ours != "rope.frequencies"
    }
    rope_names = [f"blocks.{index}.attn.rope.rope.freqs" for index in range(config.layers)]
    shapes |= dict.fromkeys(rope_names, expected["rope.frequencies"].shape)
    _require_equal_shapes(state, shapes)

    ours = {name: state[_released_name(name)] for name in expected if name != "rope.frequencies"}
    return ours | {"rope.frequencies": _shared_frequencies(state, rope_names, config)}


def generator_config_from_released(state: Mapping[str, Tensor]) -> GeneratorConfig:
    """Sizes and switches of a released generator, read off its names and shapes.

    Window counts and the norm's epsilon leave no trace in the weights and take their released values. That
    the last layer computes video only shows if its weights are separate, and else goes with the output norm.

    Raises:
        CheckpointError: The tensors are not those of a generator.
    """
    try:
        width = state["vid_in.proj.weight"].shape[0]
        text_channels = state["txt_in.weight"].shape[1]
        head_dim = next(tensor for name, tensor in state.items() if ".norm_q." in name).shape[0]
        inner = next(tensor for name, tensor in state.items() if ".proj_qkv." in name).shape[0] // 3
        frequencies = state["blocks.0.attn.rope.rope.freqs"].shape[0]
        latent_channels = state["vid_out.proj.weight"].shape[0] // 4
    except (KeyError, StopIteration) as error:
        raise CheckpointError(
            f"expected the tensors of a released generator, found {len(state)} others; no {error}"
        ) from error
    layers = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    separate = [i for i in range(layers) if f"blocks.{i}.attn.proj_qkv.vid.weight" in state]
    output_norm = "vid_out_norm.weight" in state
    last_is_separate = layers - 1 in separate
    last_has_text = any(name.startswith(f"blocks.{layers - 1}.mlp.txt.") for name in state)
    rope: RopeKind = "language" if frequencies == len(rope_frequencies("language", head_dim)) else "pixel"
    return GeneratorConfig(
        width=width,
        heads=inner // head_dim,
        head_dim=head_dim,
        layers=layers,
        separate_layers=len(separate),
        text_channels=text_channels,
        mlp="swiglu" if any(".proj_in_gate." in name for name in state) else "gelu",
        rope=rope,
        output_norm=output_norm,
        video_only_last_layer=not last_has_text if last_is_separate else output_norm,
        num_windows=(4, 3, 3),
        latent_channels=latent_channels,
        norm_eps=1e-5,
    )


def _released_name(ours: str) -> str:
    return _rename(ours, _GENERATOR_RULES)


def _rename(name: str, rules: Sequence[_Rule]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _require_equal_shapes(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    complaints = []
    for what, names in (
        ("missing", sorted(shapes.keys() - state.keys())),
        ("extra", sorted(state.keys() - shapes.keys())),
        ("misshaped", sorted(n for n in shapes.keys() & state.keys() if state[n].shape != shapes[n])),
    ):
        if names:
            complaints.append(f"{len(names)} {what}, first {names[0]!r}")
    if complaints:
        raise CheckpointError(
            f"expected {len(shapes)} released tensors, but {'; '.join(complaints)}; "
            "the file is incomplete or of another model"
        )


def _shared_frequencies(state: Mapping[str, Tensor], names: Sequence[str], config: GeneratorConfig) -> Tensor:
    """The one table of all layers; the canonical float32 one if the file holds a shorter dtype."""
    stored = state[names[0]]
    if stored.is_meta:
        return stored
    exact = stored.dtype == torch.float32
    canonical = rope_frequencies(config.rope, config.head_dim)
    for name in names:
        if not torch.equal(state[name], stored) or not torch.allclose(
            stored.float().cpu(), canonical, rtol=1e-6 if exact else 1e-2, atol=0.0
        ):
            raise CheckpointError(
                f"{name!r} is not the canonical table of {config.rope} frequencies; "
                "the file is incomplete or of another model"
            )
    return stored if exact else canonical
