"""The causal autoencoder: equal to the reference, and equal to itself however a video is cut."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from seedvr2.config import AutoencoderConfig, load_preset
from seedvr2.errors import ConfigError, ShapeError
from seedvr2.models.autoencoder import Autoencoder, Posterior
from seedvr2.models.causal_conv import CausalCache
from seedvr2.released import autoencoder_config_from_released, autoencoder_from_released
from tests.conftest import golden_cases, load_golden, max_difference

TINY = AutoencoderConfig(channels=(8, 8, 16, 16), encoder_resnets=1, decoder_resnets=1, norm_groups=4)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def tiny() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(TINY).eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(1, 3, 13, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def reference_model(case) -> Autoencoder:
    weights, description = load_golden(case.parent / "weights.safetensors")
    config = autoencoder_config_from_released(weights, description["config"]["norm_num_groups"])
    model = Autoencoder(config).eval()
    model.load_state_dict(autoencoder_from_released(weights, config))
    return model


@pytest.mark.golden
@pytest.mark.parametrize("case", golden_cases("vae_*/case_*.safetensors"))
def test_encodes_and_decodes_as_the_reference(case):
    model, (tensors, _) = reference_model(case), load_golden(case)
    posterior = model.encode(tensors["in.x"])
    assert max_difference(posterior.mean, tensors["enc.mean"]) <= 1e-5
    assert max_difference(posterior.log_variance, tensors["enc.logvar"]) <= 1e-5
    assert max_difference(posterior.sample(noise=tensors["enc.eps"]), tensors["enc.sample"]) <= 1e-5
    scaling = model.config.scaling_factor
    assert max_difference(model.decode(tensors["dec.z"] * scaling), tensors["dec.out"]) <= 5e-5
    if "rec.out" in tensors:
        assert max_difference(model.decode(model.to_latent(posterior.mode())), tensors["rec.out"]) <= 5e-5


@pytest.mark.golden
@pytest.mark.parametrize("case", golden_cases("vae_*/case_*.safetensors"))
def test_streams_as_the_reference_slices(case):
    model, (tensors, _) = reference_model(case), load_golden(case)
    posteriors = list(model.encode_stream(iter(tensors["in.x"].split(1, dim=2))))
    moments = torch.cat([torch.cat([p.mean, p.log_variance], dim=1) for p in posteriors], dim=2)
    latent = tensors["dec.z"] * model.config.scaling_factor
    pixels = torch.cat(list(model.decode_stream(iter(latent.split(1, dim=2)))), dim=2)
    expected = torch.cat([tensors["enc.mean"], tensors["enc.logvar"]], dim=1)
    assert max_difference(moments, tensors.get("sliced.enc.params", expected)) <= 2e-5
    assert max_difference(pixels, tensors.get("sliced.dec.out", tensors["dec.out"])) <= 2e-5


@pytest.mark.parametrize("slice_frames", [4, 8])
@pytest.mark.parametrize("piece", [1, 3, 13])
def test_streamed_encoding_equals_the_whole_clip_for_any_arrival(tiny, pixels, slice_frames, piece):
    whole = tiny.encode(pixels)
    parts = list(tiny.encode_stream(iter(pixels.split(piece, dim=2)), slice_frames))
    assert max_difference(torch.cat([p.mean for p in parts], dim=2), whole.mean) <= 2e-5
    assert max_difference(torch.cat([p.log_variance for p in parts], dim=2), whole.log_variance) <= 2e-5


@pytest.mark.parametrize("slice_frames", [1, 2])
def test_streamed_decoding_equals_the_whole_clip(tiny, pixels, slice_frames):
    latent = tiny.to_latent(tiny.encode(pixels).mode())
    whole = tiny.decode(latent)
    parts = list(tiny.decode_stream(iter(latent.split(1, dim=2)), slice_frames))
    assert whole.shape == pixels.shape
    assert max_difference(torch.cat(parts, dim=2), whole) <= 2e-5


def test_two_videos_may_be_encoded_by_turns(tiny, pixels):
    other = pixels.flip(2)
    caches = [CausalCache(), CausalCache()]
    means = [[], []]
    for start, stop in ((0, 5), (5, 9), (9, 13)):
        for which, video in enumerate((pixels, other)):
            posterior, caches[which] = tiny.encode_slice(video[:, :, start:stop], caches[which])
            means[which].append(posterior.mean)
    for which, video in enumerate((pixels, other)):
        assert max_difference(torch.cat(means[which], dim=2), tiny.encode(video).mean) <= 2e-5


def test_a_latent_frame_does_not_see_the_future(tiny, pixels):
    changed = pixels.clone()
    changed[:, :, 9:] = 0
    assert torch.equal(tiny.encode(changed[:, :, :9]).mean, tiny.encode(pixels[:, :, :9]).mean)
    assert max_difference(tiny.encode(changed).mean[:, :, :3], tiny.encode(pixels).mean[:, :, :3]) <= 1e-6


def test_the_cache_does_not_grow_with_the_video(tiny, pixels):
    def size(cache: CausalCache) -> int:
        return sum(state.untyped_storage().nbytes() for state in cache.states)

    _, first = tiny.encode_slice(pixels[:, :, :5], CausalCache())
    _, second = tiny.encode_slice(pixels[:, :, 5:13], first)
    assert size(first) == size(second) > 0


def test_an_image_costs_a_third_of_a_frame_and_gives_the_same(tiny):
    image = torch.rand(1, 3, 1, 32, 32) * 2 - 1
    with FlopCounterMode(display=False) as of_image:
        moments = tiny.encode(image).mean
    with FlopCounterMode(display=False) as of_clip:
        clip = tiny.encode(image.expand(-1, -1, 5, -1, -1)).mean
    assert max_difference(moments, clip[:, :, :1]) <= 1e-5
    full = tiny.encoder.down[0].resnets[0]
    assert full.conv1.weight.shape[2] == 3
    assert of_image.get_total_flops() * 5 <= of_clip.get_total_flops() / 2


def test_images_and_clips_work_in_batches(tiny):
    batch = torch.rand(3, 3, 5, 16, 16) * 2 - 1
    alone = torch.cat([tiny.encode(one).mean for one in batch.split(1)])
    assert max_difference(tiny.encode(batch).mean, alone) <= 1e-5


@pytest.mark.parametrize(
    "shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 3, 5, 16, 20), (1, 3, 0, 16, 16)]
)
def test_sizes_that_do_not_fit_are_refused(tiny, shape):
    with pytest.raises(ShapeError, match="expected"):
        tiny.encode(torch.zeros(shape))


def test_later_slices_are_multiples_of_four(tiny, pixels):
    _, cache = tiny.encode_slice(pixels[:, :, :5], CausalCache())
    with pytest.raises(ShapeError, match="multiple of 4"):
        tiny.encode_slice(pixels[:, :, 5:8], cache)


def test_a_posterior_is_drawn_from_an_explicit_source():
    posterior = Posterior(torch.zeros(1, 16, 2, 4, 4), torch.full((1, 16, 2, 4, 4), -2.0))
    first = posterior.sample(torch.Generator().manual_seed(3))
    assert torch.equal(first, posterior.sample(torch.Generator().manual_seed(3)))
    assert abs(first.std().item() - torch.tensor(-1.0).exp().item()) < 0.05
    assert torch.equal(posterior.mode(), posterior.mean)
    with pytest.raises(ValueError, match="either"):
        posterior.sample()


def test_bfloat16_stays_near_fp32(tiny, pixels):
    half = Autoencoder(TINY).eval()
    half.load_state_dict(tiny.state_dict())
    half.to(torch.bfloat16)
    assert (half.encode(pixels.bfloat16()).mean.float() - tiny.encode(pixels).mean).abs().mean() < 0.02


def test_the_released_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = Autoencoder(load_preset("3b").autoencoder)
    assert sum(p.numel() for p in model.encoder.parameters()) == 100_046_496
    assert sum(p.numel() for p in model.decoder.parameters()) == 150_601_731


def test_the_released_size_has_the_right_shapes_on_the_meta_device():
    with torch.device("meta"):
        model = Autoencoder(load_preset("3b").autoencoder)
        posterior = model.encode(torch.empty(1, 3, 9, 64, 48))
        assert posterior.mean.shape == (1, 16, 3, 8, 6)
        assert model.decode(posterior.mode()).shape == (1, 3, 9, 64, 48)


def test_channels_must_suit_the_norm_groups():
    from seedvr2.config import parse_config

    with pytest.raises(ConfigError, match="norm_groups"):
        parse_config(AutoencoderConfig, {"channels": [8, 8, 12, 16], "norm_groups": 8}, "recipe")
