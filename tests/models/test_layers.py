import pytest
import torch

from seedvr2.config import GeneratorConfig
from seedvr2.models.layers import (
    SEPARATE,
    SHARED,
    Branch,
    PerModality,
    SwiGlu,
    TimeEmbedding,
    add_gated,
    linear,
    modulate,
    patchify,
    rms_norm,
    unpatchify,
)
from tests.conftest import max_difference


@pytest.mark.parametrize("lengths", [(7,), (3, 3, 3), (2, 5, 1), (0, 4)])
def test_modulation_is_broadcast_over_the_tokens_of_a_sample(lengths):
    torch.manual_seed(0)
    tokens, residual = torch.randn(sum(lengths), 6), torch.randn(sum(lengths), 6)
    shift, scale = torch.randn(len(lengths), 6), torch.randn(len(lengths), 6)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    expected = tokens * scale[owner] + shift[owner]
    assert max_difference(modulate(tokens, shift, scale, lengths), expected) <= 1e-6
    expected = residual + tokens * scale[owner]
    assert max_difference(add_gated(residual, tokens, scale, lengths), expected) <= 1e-6


@pytest.mark.parametrize("lengths", [(4, 4), (3, 5)])
def test_short_tokens_are_modulated_by_float32_vectors_and_stay_short(lengths):
    tokens = torch.randn(8, 6).bfloat16().requires_grad_()
    shift, scale = torch.randn(2, 6), torch.randn(2, 6, requires_grad=True)
    modulated = modulate(tokens, shift, scale, lengths)
    modulated.float().sum().backward()
    assert modulated.dtype == tokens.grad.dtype == torch.bfloat16
    assert scale.grad.dtype == torch.float32
    exact = modulate(tokens.detach().float(), shift, scale.detach(), lengths)
    assert torch.equal(modulated.detach(), exact.bfloat16())


def test_norm_statistics_are_float32():
    tokens = 300 * torch.randn(4, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = tokens.double() * (tokens.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    normed = rms_norm(tokens, 1e-5)
    assert normed.dtype == torch.bfloat16
    assert max_difference(normed, exact.bfloat16()) <= 2**-7


def test_patches_are_undone_and_have_channels_fastest():
    video = torch.arange(3 * 2 * 4 * 6.0).view(3, 2, 4, 6)
    patches = patchify(video)
    assert patches.shape == (12, 12)
    assert patches[0, :6].tolist() == [*video[:, 0, 0, 0].tolist(), *video[:, 0, 0, 1].tolist()]
    assert torch.equal(unpatchify(patches, (2, 2, 3)), video)


def test_swiglu_width_is_a_multiple_of_256():
    with torch.device("meta"):
        assert SwiGlu(2560).gate.weight.shape == (6912, 2560)


def test_modulation_starts_near_the_identity():
    torch.manual_seed(0)
    branch = Branch(GeneratorConfig(width=1024, heads=8, head_dim=128))
    assert abs(branch.attention_scale.mean() - 1) < 0.01
    assert abs(branch.mlp_gate.mean()) < 0.01
    for vector in (branch.attention_shift, branch.mlp_scale, branch.attention_gate):
        assert abs(vector.std() * 1024**0.5 - 1) < 0.1


def test_timestep_embedding_has_the_channel_as_slow_index():
    torch.manual_seed(0)
    time = TimeEmbedding(8)
    flat = []
    time.proj_out.register_forward_hook(lambda module, inputs, output: flat.append(output))
    embedding = time(torch.tensor([1000.0, 31.25]), torch.float32)
    assert embedding.shape == (2, 3, 2, 8)
    for channel, site, kind in ((0, 0, 0), (5, 1, 2), (7, 0, 1)):
        assert torch.equal(embedding[site, kind, :, channel], flat[0][:, channel * 6 + site * 3 + kind])


def test_shared_weights_are_one_module_for_both_modalities():
    shared, separate = (PerModality(lambda: linear(2, 2), names) for names in (SHARED, SEPARATE))
    assert shared.of("video") is shared.of("text")
    assert separate.of("video") is not separate.of("text")
