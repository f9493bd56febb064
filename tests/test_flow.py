import re
from pathlib import Path

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from seedvr2 import flow
from seedvr2.errors import ConfigError, ShapeError
from tests.conftest import golden_cases, load_golden, max_difference

diffusion = [pytest.mark.golden, pytest.mark.parametrize("path", golden_cases("diffusion/*.safetensors"))]


def golden(function):
    for mark in diffusion:
        function = mark(function)
    return function


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return max_difference(a, b) / max(1.0, float(b.abs().max()))


def channel_first(tokens: torch.Tensor) -> torch.Tensor:
    return rearrange(tokens, "... t h w c -> ... c t h w")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@golden
def test_interpolation_matches_the_reference(path: Path):
    tensors, _ = load_golden(path)
    result = flow.interpolate(tensors["schedule.x0"], tensors["schedule.xT"], tensors["schedule.t"])
    assert max_difference(result, tensors["schedule.forward"]) < 2e-6


@golden
def test_velocity_matches_the_reference(path: Path):
    tensors, _ = load_golden(path)
    result = flow.velocity(tensors["convert.x0"], tensors["convert.xT"])
    assert max_difference(result, tensors["convert.v_lerp.target_from_x0_xT"]) < 2e-6


@golden
def test_both_ends_of_the_path_match_the_reference(path: Path):
    tensors, _ = load_golden(path)
    predicted, sample, timestep = tensors["convert.pred"], tensors["convert.x_t"], tensors["convert.t"]
    latent = flow.latent_from_velocity(predicted, sample, timestep)
    noise = flow.noise_from_velocity(predicted, sample, timestep)
    assert max_difference(latent, tensors["convert.v_lerp.x0"]) < 2e-6
    assert max_difference(noise, tensors["convert.v_lerp.xT"]) < 2e-6


@golden
def test_trailing_timesteps_match_the_reference(path: Path):
    tensors, _ = load_golden(path)
    compared = 0
    for key, expected in tensors.items():
        if not (match := re.fullmatch(r"timesteps\.(\d+)(?:\.shift([\d.]+))?", key)):
            continue
        steps = int(match[1])
        if len(expected) == steps:  # the reference's list has an element too many at some counts
            compared += 1
            result = torch.tensor(flow.trailing_timesteps(steps, float(match[2] or 1)))
            assert max_difference(result, expected) < 1e-3
    assert compared


@golden
def test_timestep_shift_matches_the_reference(path: Path):
    tensors, _ = load_golden(path)
    for size, expected in zip(
        tensors["transform.latent_shapes"].tolist(), tensors["transform.t_out"], strict=True
    ):
        shift = flow.timestep_shift_for(tuple(size))
        assert relative(flow.shift_timestep(tensors["transform.t_in"], shift), expected) < 1e-6


@golden
def test_euler_sampling_matches_the_reference_step_by_step(path: Path):
    tensors, facts = load_golden(path)
    slope, offset, drift = map(float, re.findall(r"-?\d+(?:\.\d+)?", facts["sampler"]["model"])[:3])
    for key in tensors:
        if not (match := re.fullmatch(r"sampler\.(\d+)\.x_in", key)):
            continue
        prefix = f"sampler.{match[1]}"
        seen: list[float] = []
        visited: list[torch.Tensor] = []

        def predict(sample: torch.Tensor, timestep: float, seen=seen, visited=visited) -> torch.Tensor:
            seen.append(timestep)
            visited.append(sample)
            return slope * sample + offset + drift * timestep

        result = flow.sample_euler(predict, tensors[key], flow.trailing_timesteps(int(match[1])))
        assert max_difference(torch.tensor(seen), tensors[f"{prefix}.t_seen"]) < 1e-3
        assert max_difference(result, tensors[f"{prefix}.x_out"]) < 2e-5
        assert max_difference(torch.stack([*visited[1:], result]), tensors[f"{prefix}.xs"]) < 2e-5


@golden
def test_one_euler_step_matches_the_reference(path: Path):
    tensors, _ = load_golden(path)
    for row, expected in enumerate(tensors["step.out"]):
        timestep, following = float(tensors["step.t"][row]), float(tensors["step.next_t"][row])
        following = max(following, 0.0)  # the reference marks the end of the list by -1
        result = flow.euler_step(tensors["step.pred"][row], tensors["step.x_t"][row], timestep, following)
        assert max_difference(result, expected) < 2e-6


@golden
def test_guidance_matches_the_reference_per_token(path: Path):
    tensors, _ = load_golden(path)
    positive, negative = (rearrange(tensors[f"cfg.{k}"], "l c -> c l 1 1") for k in ("pos", "neg"))
    for key, expected in tensors.items():
        if match := re.fullmatch(r"cfg\.scale([\d.]+?)\.rescale([\d.]+)", key):
            result = flow.guide(positive, negative, float(match[1]), float(match[2]))
            assert relative(rearrange(result, "c l 1 1 -> l c"), expected) < 1e-6


@golden
def test_condition_matches_the_reference(path: Path):
    tensors, _ = load_golden(path)
    keys = [key for key in tensors if re.fullmatch(r"cond\.\d+\.sr", key)]
    assert keys
    for key in keys:
        latent = channel_first(tensors[key.removesuffix("sr") + "latent_blur"])
        assert torch.equal(flow.build_condition(latent), channel_first(tensors[key]))


@golden
def test_noise_on_the_condition_has_the_level_the_reference_meant(path: Path):
    tensors, facts = load_golden(path)
    for row in facts["aug"]["rows"]:
        latent, noise, expected = (
            channel_first(tensors[f"aug.{row['case']}.{k}"]) for k in ("latent", "noise", "out")
        )
        assert max_difference(flow.interpolate(latent, noise, row["t_official"]), expected) < 2e-6
        meant = flow.interpolate(latent, noise, row["t_if_(t,h,w)_were_used"])
        assert max_difference(flow.noise_condition(latent, noise, row["cond_noise_scale"]), meant) < 2e-6


def test_anchors_of_the_timestep_shift_are_met():
    assert flow.timestep_shift_for((1, 32, 32)) == 1.0
    assert flow.timestep_shift_for((1, 128, 128)) == pytest.approx(3.2)
    assert flow.timestep_shift_for((10, 32, 32)) == pytest.approx(1.0)
    assert flow.timestep_shift_for((37, 90, 160)) == pytest.approx(5.0)


def test_timestep_shift_matches_published_values():
    assert flow.timestep_shift_for((1, 90, 160)) == pytest.approx(2.9158, abs=1e-4)
    assert flow.timestep_shift_for((6, 90, 160)) == pytest.approx(1.5161, abs=1e-4)
    assert flow.timestep_shift_for((26, 90, 160)) == pytest.approx(3.7638, abs=1e-4)
    assert flow.timestep_shift_for((1, 135, 240)) == pytest.approx(5.4940, abs=1e-4)


def test_timestep_shift_of_an_empty_latent_is_refused():
    with pytest.raises(ShapeError, match="at least 1"):
        flow.timestep_shift_for((1, 0, 4))


@given(st.floats(0, 1000), st.floats(0.5, 8))
def test_shifting_keeps_ends_and_order(timestep: float, shift: float):
    assert flow.shift_timestep(0.0, shift) == 0
    assert flow.shift_timestep(1000.0, shift) == pytest.approx(1000)
    assert flow.shift_timestep(timestep, 1.0) == pytest.approx(timestep)
    moved = flow.shift_timestep(timestep, shift)
    assert (moved >= timestep - 1e-9) if shift >= 1 else (moved <= timestep + 1e-9)


@pytest.mark.parametrize("steps", [1, 3, 49, 98, 103, 107, 1000])
def test_every_step_count_gets_that_many_timesteps(steps: int):
    timesteps = flow.trailing_timesteps(steps)
    assert len(timesteps) == steps
    assert timesteps[0] == 1000
    assert timesteps[-1] == pytest.approx(1000 / steps)
    assert timesteps == sorted(set(timesteps), reverse=True)


@pytest.mark.parametrize(("steps", "shift"), [(0, 1.0), (-1, 1.0), (2, 0.0), (2, float("nan"))])
def test_impossible_step_counts_and_shifts_are_refused(steps: int, shift: float):
    with pytest.raises(ConfigError):
        flow.trailing_timesteps(steps, shift)


def test_ends_of_the_path_are_recovered_from_any_point():
    latent, noise = normal(2, 4, 3, 5, 6), normal(2, 4, 3, 5, 6, seed=1)
    timestep = torch.tensor([250.0, 990.0])
    sample, v = flow.interpolate(latent, noise, timestep), flow.velocity(latent, noise)
    assert max_difference(flow.latent_from_velocity(v, sample, timestep), latent) < 2e-6
    assert max_difference(flow.noise_from_velocity(v, sample, timestep), noise) < 2e-6


def test_sampling_a_straight_path_is_exact_for_any_number_of_steps():
    latent, noise = normal(4, 2, 3, 3), normal(4, 2, 3, 3, seed=1)
    for steps in (1, 2, 7):
        result = flow.sample_euler(lambda x, t: noise - latent, noise, flow.trailing_timesteps(steps))
        assert max_difference(result, latent) < 2e-6


def test_one_step_is_noise_minus_velocity():
    noise, predicted = normal(4, 2, 3, 3), normal(4, 2, 3, 3, seed=1)
    seen = []
    result = flow.sample_euler(lambda x, t: seen.append(t) or predicted, noise, flow.trailing_timesteps(1))
    assert torch.equal(result, noise - predicted)
    assert seen == [1000.0]


def test_half_precision_inputs_are_mixed_in_float32():
    latent, noise = normal(4, 1, 2, 2).bfloat16(), normal(4, 1, 2, 2, seed=1).bfloat16()
    result = flow.interpolate(latent, noise, 333.0)
    assert result.dtype == torch.float32
    assert torch.equal(result, flow.interpolate(latent.float(), noise.float(), 333.0))
    assert flow.interpolate(latent.double(), noise.double(), torch.tensor([333.0])).dtype == torch.float64


def test_timesteps_that_do_not_fit_the_batch_are_refused():
    with pytest.raises(ShapeError, match="one per sample"):
        flow.interpolate(normal(2, 4, 1, 2, 2), normal(2, 4, 1, 2, 2), torch.tensor([1.0, 2.0, 3.0]))


def test_guidance_of_scale_one_needs_no_negative_prediction():
    positive = normal(1, 16, 1, 2, 2)
    assert flow.guide(positive, None, 1.0, rescale=0.7) is positive
    with pytest.raises(ConfigError, match="negative"):
        flow.guide(positive, None, 6.5)


def test_full_rescale_restores_the_spread_of_every_token():
    positive, negative = normal(2, 16, 3, 2, 2), normal(2, 16, 3, 2, 2, seed=1)
    result = flow.guide(positive, negative, 7.5, rescale=1.0)
    assert max_difference(result.std(dim=1), positive.std(dim=1)) < 1e-5


def test_condition_without_noise_is_the_latent_itself():
    latent = normal(16, 2, 4, 4)
    assert flow.noise_condition(latent, normal(16, 2, 4, 4, seed=1), 0.0) is latent
    with pytest.raises(ConfigError, match="noise scale"):
        flow.noise_condition(latent, latent, 1.5)


def test_condition_has_one_channel_more_with_or_without_a_batch():
    latent = normal(3, 16, 2, 4, 6)
    batched = flow.build_condition(latent.bfloat16())
    assert batched.shape == (3, 17, 2, 4, 6)
    assert batched.dtype == torch.bfloat16
    assert torch.equal(batched[1], flow.build_condition(latent[1].bfloat16()))
    assert (batched[:, 16] == 1).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 6), st.integers(1, 6), st.integers(1, 6))
def test_segments_that_share_frames_share_their_noise(start: int, ahead: int, length: int, other: int):
    shape = (4, 3, 2)
    first = flow.keyed_latent_noise(7, "clip", "noise", start, (shape[0], ahead + length, *shape[1:]))
    second = flow.keyed_latent_noise(7, "clip", "noise", start + 4 * ahead, (shape[0], other, *shape[1:]))
    shared = min(length, other)
    assert torch.equal(first[:, ahead : ahead + shared], second[:, :shared])


def test_noise_differs_with_every_part_of_its_key():
    shape = (16, 4, 4)
    draws = [
        flow.keyed_noise(1, "a", "noise", 8, shape),
        flow.keyed_noise(2, "a", "noise", 8, shape),
        flow.keyed_noise(1, "b", "noise", 8, shape),
        flow.keyed_noise(1, "a", "posterior", 8, shape),
        flow.keyed_noise(1, "a", "noise", 12, shape),
    ]
    for i, one in enumerate(draws):
        assert all(not torch.equal(one, other) for other in draws[:i])


def test_noise_is_the_same_after_other_draws_and_touches_no_global_state():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = flow.keyed_noise(-5, "a", "noise", 0, (3, 5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(9)
    assert torch.equal(flow.keyed_noise(-5, "a", "noise", 0, (3, 5)), first)


def test_noise_is_pinned_so_that_archives_can_be_resumed_by_later_releases():
    drawn = flow.keyed_noise(666, "source", "noise", 4, (16, 2, 2)).flatten()
    expected = torch.tensor([-0.3929387, -0.3422574, 0.0774984, 2.3983164])
    assert drawn.dtype == torch.float32
    assert max_difference(drawn[:4], expected) < 1e-6


def test_noise_is_standard_normal():
    noise = flow.keyed_latent_noise(0, "a", "noise", 0, (16, 8, 24, 24))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
