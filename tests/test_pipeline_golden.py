"""The rooms in a row give the published results, stage by stage, from uint8 frames to uint8 frames.

Each stage gets what ours before it made, so the tolerances hold for the whole chain. Noise is the stored one.
"""

import json
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from seedvr2.checkpoint import TextEmbedding
from seedvr2.flow import build_condition, guide, noise_condition, sample_euler, trailing_timesteps
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.models.generator import Generator
from seedvr2.released import (
    autoencoder_config_from_released,
    autoencoder_from_released,
    generator_from_released,
)
from seedvr2.restore import (
    Decoder,
    Encoder,
    OneStepGenerator,
    Plan,
    RestoreOptions,
    plan_restore,
    source_pixels,
)
from seedvr2.video.resize import crop_to_multiple, frames_to_pixels, pixels_to_frames, resize_pixels
from seedvr2.video.segments import Segment, plan_segments
from tests.conftest import golden_cases, load_golden, max_difference, released_generator_config

pytestmark = pytest.mark.golden

CASES = golden_cases("pipeline/*.safetensors")
MULTI_STEP = re.compile(r"x0_latent\.steps(\d+)\.cfg([\d.]+)\.rescale([\d.]+)")


@dataclass(frozen=True)
class Case:
    """A reference run, and ours up to the restored latent."""

    tensors: dict[str, Tensor]
    facts: dict[str, object]
    autoencoder: Autoencoder
    room: OneStepGenerator
    plan: Plan
    segment: Segment
    pixels: Tensor
    """What the encoder reads (1, 3, T, H, W)."""
    latent: Tensor
    """(16, T', h, w)."""

    @property
    def noise(self) -> Tensor:
        return channels_first(self.tensors["noise"])

    @property
    def x0(self) -> Tensor:
        return self.room([self.latent], [self.noise])[0]


def assert_same_draw(latent: Tensor, expected: Tensor) -> None:
    """Within 1e-5, and 2 parts in a million of large draws, which is what another convolution kernel rounds."""
    torch.testing.assert_close(latent.contiguous(), expected, rtol=2e-6, atol=1e-5)


def channels_first(tokens: Tensor) -> Tensor:
    return rearrange(tokens, "t h w c -> c t h w").contiguous()


def tokens(latent: Tensor) -> Tensor:
    return rearrange(latent, "c t h w -> t h w c")


def reference_generator(folder: Path) -> Generator:
    weights, facts = load_golden(folder / "weights.safetensors")
    config = released_generator_config(facts["config"])
    generator = Generator(config).eval()
    generator.load_state_dict(generator_from_released(weights, config), strict=True)
    return generator


def reference_autoencoder(folder: Path) -> Autoencoder:
    weights, facts = load_golden(folder / "weights.safetensors")
    config = autoencoder_config_from_released(weights, facts["config"]["norm_num_groups"])
    autoencoder = Autoencoder(config).eval()
    autoencoder.load_state_dict(autoencoder_from_released(weights, config), strict=True)
    return autoencoder


def weight_folders(path: Path, facts: dict[str, object]) -> tuple[Path, Path]:
    """Folders of the autoencoder's and the generator's weights, as the case names them."""
    named = re.findall(r"\b((?:vae|dit)_\w+)/", str(facts["what"]))
    folders = [path.parent.parent / name for name in named]
    autoencoder = [folder for folder in folders if folder.name.startswith("vae")]
    generator = [folder for folder in folders if folder.name.startswith("dit")]
    if not autoencoder:
        autoencoder = sorted(path.parent.parent.glob("vae_*"))
    if not generator:
        generator = sorted(path.parent.parent.glob(f"dit_{facts['variant']}_*"))
    return autoencoder[0], generator[0]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = request.param
    tensors, facts = load_golden(path)
    vae_folder, dit_folder = weight_folders(path, facts)
    autoencoder = reference_autoencoder(vae_folder)
    text = TextEmbedding(tensors["text_pos"], tensors["text_neg"])

    source = tmp_path_factory.mktemp("frames")
    frames = rearrange(tensors["frames_u8"], "t c h w -> t h w c").numpy()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(source / f"{index:04d}.png")
    area = facts["res_h"] * facts["res_w"]
    options = RestoreOptions(area=area, fit="crop", color="none", posterior="mode")
    plan = plan_restore(source, options)
    segments = plan_segments([(0, len(frames))], max_frames=len(frames) + 4, overlap=0)
    plan = replace(plan, segments=tuple(segments))
    (segment,) = segments

    with torch.inference_mode():
        pieces = list(source_pixels(plan, segment))
        posteriors = list(autoencoder.encode_stream(iter(pieces)))
        draws, first = [], 0
        for posterior in posteriors:
            count = posterior.mean.shape[2]
            draws.append(posterior.sample(noise=tensors["vae_eps"][:, :, first : first + count]))
            first += count
        latent = autoencoder.to_latent(torch.cat(draws, dim=2))[0]
    return Case(
        tensors,
        facts,
        autoencoder,
        OneStepGenerator(reference_generator(dit_folder), text),
        plan,
        segment,
        torch.cat(pieces, dim=2),
        latent,
    )


def test_frames_become_the_same_input(case: Case) -> None:
    expected = case.tensors["input(c,t,h,w)"]
    length, encoded = expected.shape[1], case.facts["encoded_frames"]
    assert case.pixels.shape[2] == case.segment.padded == encoded
    assert length == case.segment.length == case.facts["ori_length"]
    assert max_difference(case.pixels[0, :, :length], expected) <= 2e-5
    padding = case.pixels[:, :, length:]
    assert torch.equal(padding, case.pixels[:, :, length - 1 : length].expand_as(padding))


def test_frames_are_resized_before_cropping_as_stored(case: Case) -> None:
    frames = rearrange(case.tensors["frames_u8"], "t c h w -> t h w c").numpy()
    resized = resize_pixels(frames_to_pixels(frames), case.plan.size)
    assert max_difference(crop_to_multiple(resized)[0], case.tensors["input(c,t,h,w)"]) <= 2e-5
    if "resized(t,c,h,w)" in case.tensors:
        expected = rearrange(case.tensors["resized(t,c,h,w)"], "t c h w -> c t h w")
        # Stored in [0, 1], before the clamp.
        assert max_difference(resized[0] * 0.5 + 0.5, expected.clamp(0, 1)) <= 2e-5


def test_the_posterior_draw_is_the_same_latent(case: Case) -> None:
    assert case.autoencoder.config.scaling_factor == case.facts["scaling_factor"]
    assert_same_draw(tokens(case.latent), case.tensors["latent"])


def test_the_encoder_room_gives_the_mode_of_the_same_posterior(case: Case) -> None:
    room = Encoder(case.autoencoder)(case.plan, case.segment)
    with torch.inference_mode():
        posterior = case.autoencoder.encode(case.pixels)
        draw = posterior.sample(noise=case.tensors["vae_eps"])[0] - posterior.mean[0]
    assert_same_draw(tokens(room + case.autoencoder.to_latent(draw)), case.tensors["latent"])


def test_the_condition_is_the_same(case: Case) -> None:
    noised = noise_condition(case.latent, channels_first(case.tensors["aug_noise"]), noise_scale=0.0)
    assert_same_draw(tokens(build_condition(noised)), case.tensors["condition"])


def test_one_step_gives_the_same_latent(case: Case) -> None:
    assert (case.facts["steps"], case.facts["cfg_scale"]) == (1, 1.0)
    assert trailing_timesteps(1) == [case.facts["timestep"]]
    assert max_difference(tokens(case.x0), case.tensors["x0_latent"]) <= 2e-5


def test_a_packed_batch_gives_the_same_latent(case: Case) -> None:
    together = case.room([case.latent[:, :1], case.latent], [case.noise[:, :1], case.noise])[1]
    assert max_difference(tokens(together), case.tensors["x0_latent"]) <= 2e-5


def test_decoding_gives_the_same_pixels(case: Case) -> None:
    expected = rearrange(case.tensors["decoded(t,c,h,w)"], "t c h w -> 1 c t h w")
    with torch.inference_mode():
        whole = case.autoencoder.decode(case.x0[None])
    room = torch.cat(list(Decoder(case.autoencoder).pixels(case.plan, case.segment, case.x0)), dim=2)
    assert max_difference(whole, expected) <= 5e-5
    assert max_difference(room, expected[:, :, : case.segment.length]) <= 5e-5


@pytest.mark.parametrize(("color", "key"), [("none", "out_u8.nofix"), ("wavelet", "out_u8.wavelet")])
def test_the_result_is_the_same_within_one_level(case: Case, color: str, key: str) -> None:
    plan = replace(case.plan, options=case.plan.options.model_copy(update={"color": color}))
    pixels = Decoder(case.autoencoder).pixels(plan, case.segment, case.x0)
    frames = np.concatenate([pixels_to_frames(piece) for piece in pixels])
    expected = case.tensors[key].numpy()
    assert frames.shape == expected.shape
    difference = np.abs(frames.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert np.count_nonzero(difference) < 5e-4 * difference.size


def test_several_guided_steps_give_the_same_latent(case: Case) -> None:
    runs = {key: match for key in case.tensors if (match := MULTI_STEP.fullmatch(key))}
    if not runs:
        pytest.skip("the case stores one step only")
    condition, text = build_condition(case.latent), case.room.text

    def predict(sample: Tensor, timestep: float, scale: float, rescale: float) -> Tensor:
        video = torch.cat([sample, condition])
        both = case.room.generator([video, video], torch.full((2,), timestep), [text.positive, text.negative])
        return guide(*both, scale=scale, rescale=rescale)

    for key, match in runs.items():
        guided = partial(predict, scale=float(match[2]), rescale=float(match[3]))
        with torch.inference_mode():
            x0 = sample_euler(guided, case.noise, trailing_timesteps(int(match[1])))
        assert max_difference(tokens(x0), case.tensors[key]) <= 1e-4, key


def test_every_reference_step_count_is_covered() -> None:
    """A key that is spelled in another way would be passed over without notice."""
    for parameter in CASES:
        (path,) = parameter.values
        if path is None:
            pytest.skip("no reference tensors")
        names = json.loads(path.with_suffix(".json").read_text())["tensors"]
        assert all(MULTI_STEP.fullmatch(name) for name in names if name.startswith("x0_latent."))
