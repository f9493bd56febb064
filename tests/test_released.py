import json

import pytest
import torch

from seedvr2.config import AutoencoderConfig, GeneratorConfig
from seedvr2.errors import CheckpointError
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.models.generator import Generator
from seedvr2.models.rope import rope_frequencies
from seedvr2.released import (
    _AUTOENCODER_RULES,
    _released_name,
    _rename,
    autoencoder_config_from_released,
    autoencoder_from_released,
    generator_config_from_released,
    generator_from_released,
)
from tests.conftest import golden_cases, load_golden


def manifest_state(path):
    """The full-size released state dict on the meta device."""
    tensors = json.loads(path.read_text())["tensors"]
    return {
        t["name"]: torch.empty(t["shape"], dtype=getattr(torch, t["dtype"]), device="meta") for t in tensors
    }


def tiny_state(path):
    weights, _ = load_golden(path)
    return weights, generator_config_from_released(weights)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("manifest_dit_*.json"))
def test_released_generators_map_one_to_one(path):
    state = manifest_state(path)
    config = generator_config_from_released(state)
    mapped = generator_from_released(state, config)
    with torch.device("meta"):
        expected = Generator(config).state_dict()
    assert {name: tensor.shape for name, tensor in mapped.items()} == {
        n: t.shape for n, t in expected.items()
    }
    used = {id(tensor) for tensor in mapped.values()}
    unused = [name for name, tensor in state.items() if id(tensor) not in used]
    assert unused == [f"blocks.{i}.attn.rope.rope.freqs" for i in range(1, config.layers)]
    facts = json.loads(path.read_text())
    parameters = sum(tensor.numel() for name, tensor in mapped.items() if name != "rope.frequencies")
    assert parameters == facts["n_params"]


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("manifest_dit_*.json"))
def test_configuration_of_released_generators_is_read_off_their_shapes(path):
    config = generator_config_from_released(manifest_state(path))
    released = json.loads(path.read_text())["hyperparameters"]
    assert config.width == released["vid_dim"]
    assert (config.heads, config.head_dim) == (released["heads"], released["head_dim"])
    assert config.layers == released["num_layers"]
    assert config.separate_layers == released.get("mm_layers", released["num_layers"])
    assert config.text_channels == released["txt_in_dim"]
    assert (config.mlp == "swiglu") == (released["mlp_type"] == "swiglu")
    assert (config.rope == "language") == (released.get("rope_type") == "mmrope3d")
    assert config.output_norm == config.video_only_last_layer == ("vid_out_norm" in released)
    assert config.num_windows == tuple(released["window"][0])
    if path.name == "manifest_dit_3b.json":
        assert config == GeneratorConfig()


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("dit_*/weights.safetensors"))
def test_mapped_weights_load_strictly(path):
    state, config = tiny_state(path)
    Generator(config).load_state_dict(generator_from_released(state, config), strict=True)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("dit_*/weights.safetensors"))
def test_misfit_is_counted_and_named(path):
    state, config = tiny_state(path)
    state["blocks.0.surprise"] = state.pop("txt_in.bias")
    state["vid_in.proj.bias"] = state["vid_in.proj.bias"][1:]
    with pytest.raises(CheckpointError) as error:
        generator_from_released(state, config)
    for complaint in (
        "1 missing, first 'txt_in.bias'",
        "1 extra, first 'blocks.0.surprise'",
        "1 misshaped, first 'vid_in.proj.bias'",
    ):
        assert complaint in str(error.value)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("dit_*/weights.safetensors"))
def test_short_frequencies_are_replaced_by_the_canonical_ones(path):
    state, config = tiny_state(path)
    short = {name: tensor.bfloat16() for name, tensor in state.items()}
    frequencies = generator_from_released(short, config)["rope.frequencies"]
    assert torch.equal(frequencies, rope_frequencies(config.rope, config.head_dim))


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("dit_*/weights.safetensors"))
def test_foreign_frequencies_are_refused(path):
    state, config = tiny_state(path)
    name = f"blocks.{config.layers - 1}.attn.rope.rope.freqs"
    state[name] = state[name] * 1.001
    with pytest.raises(CheckpointError, match=f"{name}' is not the canonical table"):
        generator_from_released(state, config)


def test_configuration_of_something_else_is_refused():
    with pytest.raises(CheckpointError, match="expected the tensors of a released generator"):
        generator_config_from_released({"weight": torch.zeros(2)})


@pytest.mark.parametrize("output_norm", [False, True])
@pytest.mark.parametrize("video_only", [False, True])
def test_configuration_survives_a_separate_last_layer(video_only, output_norm):
    config = GeneratorConfig(
        width=24, heads=3, head_dim=12, layers=2, separate_layers=2, text_channels=10, latent_channels=4,
        output_norm=output_norm, video_only_last_layer=video_only,
    )  # fmt: skip
    ours = Generator(config).state_dict()
    state = {_released_name(name): tensor for name, tensor in ours.items() if name != "rope.frequencies"}
    state |= {f"blocks.{i}.attn.rope.rope.freqs": ours["rope.frequencies"] for i in range(2)}
    assert generator_config_from_released(state) == config
    mapped = generator_from_released(state, config)
    assert all(torch.equal(mapped[name], tensor) for name, tensor in ours.items())


@pytest.mark.golden
@pytest.mark.parametrize("manifest", golden_cases("manifest_vae*.json"))
def test_every_released_autoencoder_tensor_is_used_once_and_every_parameter_filled(manifest):
    released = manifest_state(manifest)
    groups = json.loads(manifest.read_text())["hyperparameters"]["norm_num_groups"]
    config = autoencoder_config_from_released(released, groups)
    ours = autoencoder_from_released(released, config)
    assert len({id(tensor) for tensor in ours.values()}) == len(released)
    with torch.device("meta"):
        Autoencoder(config).load_state_dict(ours, assign=True)


def test_old_names_of_attention_weights_are_understood():
    config = AutoencoderConfig(channels=(8, 8, 8, 8), encoder_resnets=1, decoder_resnets=1, norm_groups=4)
    model = Autoencoder(config)
    released = {_rename(name, _AUTOENCODER_RULES): tensor for name, tensor in model.state_dict().items()}
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in released.items():
        for new, former in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        renamed[name] = tensor
    assert renamed.keys() != released.keys()
    assert autoencoder_config_from_released(released, 4) == config
    assert autoencoder_from_released(renamed, config).keys() == model.state_dict().keys()


def test_an_autoencoder_with_a_wrong_tensor_is_refused():
    config = AutoencoderConfig(channels=(8, 8, 8, 8), encoder_resnets=1, decoder_resnets=1, norm_groups=4)
    released = {
        _rename(name, _AUTOENCODER_RULES): tensor for name, tensor in Autoencoder(config).state_dict().items()
    }
    with pytest.raises(CheckpointError, match=r"1 missing, first 'encoder\.conv_in\.bias'"):
        autoencoder_from_released({k: v for k, v in released.items() if k != "encoder.conv_in.bias"}, config)
    with pytest.raises(CheckpointError, match=r"1 extra, first 'quant_conv\.weight'"):
        autoencoder_from_released(released | {"quant_conv.weight": torch.zeros(1)}, config)
    with pytest.raises(CheckpointError, match="expected the tensors of a released autoencoder"):
        autoencoder_config_from_released({"conv.weight": torch.zeros(1)})
