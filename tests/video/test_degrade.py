import math
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest

from seedvr2.errors import ShapeError
from seedvr2.video.degrade import Degradation, degrade_clip, sample_degradation
from seedvr2.video.degrade_config import DegradationConfig
from seedvr2.video.operators import Blur, Jpeg, Noise, Resize, VideoCodec
from tests.video.synthetic import natural_clip

SIZE = (64, 96)
RECORDS = pytest.mark.parametrize("count", [3_000, pytest.param(20_000, marks=pytest.mark.slow)])


@lru_cache(maxsize=2)
def video_records(count: int) -> tuple[Degradation, ...]:
    return tuple(sample_degradation(seed, (720, 1280), 3) for seed in range(count))


def drawn(records: tuple[Degradation, ...], kind: type, stage: int) -> list[Any]:
    return [o for record in records for o in record.operators if isinstance(o, kind) and o.stage == stage]


def assert_frequencies(observed: Counter[Any], weights: dict[Any, float]) -> None:
    """Chi-square test at about 1 in 10,000 (Wilson and Hilferty's approximation)."""
    count = observed.total()
    assert set(observed) <= {key for key, weight in weights.items() if weight > 0}
    expected = {key: count * weight / sum(weights.values()) for key, weight in weights.items() if weight > 0}
    statistic = sum((observed[key] - value) ** 2 / value for key, value in expected.items())
    freedom = len(expected) - 1
    spread = 2 / (9 * freedom)
    assert statistic < freedom * (1 - spread + 3.72 * math.sqrt(spread)) ** 3, (observed, expected)


def assert_uniform(values: list[float], low: float, high: float) -> None:
    """Kolmogorov-Smirnov test at about 1 in 10,000."""
    ordered = np.sort(values)
    assert low <= ordered[0] <= ordered[-1] <= high
    positions = (np.arange(len(values)) + 0.5) / len(values)
    assert np.abs((ordered - low) / (high - low) - positions).max() < 2.23 / math.sqrt(len(values))


FAMILIES = {
    "isotropic": 0.405,
    "anisotropic": 0.225,
    "generalized-isotropic": 0.108,
    "generalized-anisotropic": 0.027,
    "plateau-isotropic": 0.108,
    "plateau-anisotropic": 0.027,
    "sinc": 0.10,
}


@RECORDS
def test_blurs_follow_the_table(count: int):
    records = video_records(count)
    for stage, probability, sigma in ((1, 1.0, 3.0), (2, 0.8, 1.5)):
        blurs: list[Blur] = drawn(records, Blur, stage)
        assert len(blurs) == pytest.approx(count * probability, abs=4 * math.sqrt(count * 0.16) + 0.5)
        assert stage != 1 or len(blurs) == count
        assert_frequencies(Counter(blur.family for blur in blurs), FAMILIES)
        assert_frequencies(Counter(blur.size for blur in blurs), dict.fromkeys(range(7, 22, 2), 1.0))
        assert_uniform([blur.sigma_x[0] for blur in blurs if blur.sigma_x], 0.2, sigma)
        assert_uniform([blur.sigma_y[0] for blur in blurs if blur.sigma_y], 0.2, sigma)
        assert_uniform([blur.theta[0] for blur in blurs if blur.theta], -math.pi, math.pi)
        assert_uniform([blur.beta[0] for blur in blurs if "generalized" in blur.family], 0.5, 4)
        assert_uniform([blur.beta[0] for blur in blurs if "plateau" in blur.family], 1, 2)
        sinc = [blur for blur in blurs if blur.family == "sinc"]
        assert_uniform([blur.cutoff[0] for blur in sinc if blur.size < 13], math.pi / 3, math.pi)
        assert_uniform([blur.cutoff[0] for blur in sinc if blur.size >= 13], math.pi / 5, math.pi)


@RECORDS
def test_resizes_follow_the_table(count: int):
    records = video_records(count)
    for stage, modes, (low, high) in (
        (1, {"up": 0.2, "down": 0.7, "keep": 0.1}, (0.15, 1.5)),
        (2, {"up": 0.3, "down": 0.4, "keep": 0.3}, (0.3, 1.2)),
    ):
        resizes: list[Resize] = drawn(records, Resize, stage)
        assert_frequencies(Counter(resize.mode for resize in resizes), modes)
        assert_frequencies(
            Counter(resize.interpolation for resize in resizes), {"bilinear": 1, "area": 1, "bicubic": 1}
        )
        assert_uniform([resize.scale[0] for resize in resizes if resize.mode == "up"], 1, high)
        assert_uniform([resize.scale[0] for resize in resizes if resize.mode == "down"], low, 1)
        assert all(resize.scale[0] == 1 for resize in resizes if resize.mode == "keep")
        assert all(side % 2 == 0 for resize in resizes for size in resize.sizes for side in size)


@RECORDS
def test_noise_and_compression_follow_the_table(count: int):
    records = video_records(count)
    for stage, sigma, scale in ((1, 30, 3), (2, 25, 2.5)):
        noises: list[Noise] = drawn(records, Noise, stage)
        assert_frequencies(Counter(noise.family for noise in noises), {"gaussian": 1, "poisson": 1})
        assert_frequencies(Counter(noise.grey for noise in noises), {True: 0.4, False: 0.6})
        assert_uniform([noise.strength[0] for noise in noises if noise.family == "gaussian"], 1, sigma)
        assert_uniform([noise.strength[0] for noise in noises if noise.family == "poisson"], 0.05, scale)
        assert len({noise.seed for noise in noises}) == count
        jpegs: list[Jpeg] = drawn(records, Jpeg, stage)
        assert_frequencies(Counter(jpeg.quality[0] for jpeg in jpegs), dict.fromkeys(range(30, 96), 1.0))
    for stage in (1, 3):
        codecs: list[VideoCodec] = drawn(records, VideoCodec, stage)
        assert len(codecs) == count
        assert_frequencies(Counter(codec.codec for codec in codecs), {"libx264": 1, "h264": 1, "mpeg4": 1})
        assert_uniform([codec.bit_rate for codec in codecs], 10_000, 100_000)


@RECORDS
def test_last_stage_follows_the_table(count: int):
    records = video_records(count)
    blurs: list[Blur] = drawn(records, Blur, 3)
    assert_frequencies(
        Counter(filtered=len(blurs), plain=count - len(blurs)), {"filtered": 0.8, "plain": 0.2}
    )
    assert {blur.family for blur in blurs} == {"sinc"}
    assert_uniform([blur.cutoff[0] for blur in blurs], math.pi / 3, math.pi)
    assert_frequencies(
        Counter(next(o.kind for o in record.operators if o.stage == 3) for record in records),
        {"codec": 1, "resize": 1},
    )


def walks(record: Degradation, config: DegradationConfig) -> Iterator[tuple[tuple[float, ...], float, Any]]:
    """(values over frames, largest step, range) of everything that drifts."""
    for operator in record.operators:
        stage = config.first if operator.stage == 1 else config.second
        match operator:
            case Blur(family="sinc"):
                low = math.pi / 3 if operator.stage == 3 or operator.size < 13 else math.pi / 5
                yield operator.cutoff, 0.0628, (low, math.pi)
            case Blur():
                beta = (0.05, (0.5, 4)) if "generalized" in operator.family else (0.1, (1, 2))
                yield operator.sigma_x, 0.02, stage.blur.sigma
                yield operator.sigma_y, 0.02, stage.blur.sigma
                yield operator.theta, 0.31416, (-math.pi, math.pi)
                yield operator.beta, *beta
            case Resize(mode="up" | "down" | "keep"):
                yield operator.scale, 0.015 if operator.stage == 1 else 0.03, stage.resize.scale
            case Noise(family="gaussian"):
                yield operator.strength, 0.1, stage.noise.gaussian_sigma
            case Noise():
                yield operator.strength, 0.005, stage.noise.poisson_scale
            case Jpeg():
                yield operator.quality, 3, (30, 95)


def test_drift_is_bounded_by_its_step_and_clipped_to_its_range():
    moved = clipped = 0
    for seed in range(150):
        record = sample_degradation(seed, SIZE, 33)
        for values, step, (low, high) in walks(record, DegradationConfig()):
            assert len(values) in (0, 33)
            assert all(low <= value <= high for value in values)
            assert all(abs(b - a) <= step + 1e-12 for a, b in pairwise(values))
            moved += len(set(values)) > 10
            clipped += any(a == b in (low, high) for a, b in pairwise(values))
    assert moved > 500
    assert clipped > 5


def test_zero_steps_give_constant_parameters_and_the_same_first_frame():
    still = {
        "blur": {
            "sigma_step": 0, "theta_step": 0, "beta_generalized_step": 0, "beta_plateau_step": 0, "cutoff_step": 0,
        },
        "resize": {"scale_step": 0},
        "noise": {"gaussian_step": 0, "poisson_step": 0},
        "jpeg": {"quality_step": 0},
    }  # fmt: skip
    config = DegradationConfig.model_validate({"first": still, "second": still, "final": {"cutoff_step": 0}})
    for seed in range(100):
        record = sample_degradation(seed, SIZE, 9, config)
        for values, _, _ in walks(record, config):
            assert len(set(values)) <= 1
        drifting = sample_degradation(seed, SIZE, 9)
        for constant, moving in zip(walks(record, config), walks(drifting, config), strict=True):
            assert constant[0][:1] == moving[0][:1]


def test_bit_rate_is_scaled_to_the_encoded_frame_unless_raw():
    raw_config = DegradationConfig.model_validate({"codec": {"scale_bit_rate": False}})
    for seed in range(20):
        scaled = sample_degradation(seed, (720, 1280), 5)
        raw = sample_degradation(seed, (720, 1280), 5, raw_config)
        for a, b in zip(scaled.operators, raw.operators, strict=True):
            if isinstance(a, VideoCodec) and isinstance(b, VideoCodec):
                assert b.encoder_bit_rate == b.bit_rate == a.bit_rate
                expected = a.bit_rate * a.size[0] * a.size[1] / 65_536
                assert a.encoder_bit_rate == pytest.approx(max(expected, 1000), abs=1)


def test_video_operators_come_in_the_published_order():
    for seed in range(50):
        record = sample_degradation(seed, SIZE, 5)
        kinds = [operator.kind for operator in record.operators if operator.stage == 1]
        assert kinds == ["blur", "resize", "noise", "jpeg", "codec"]
        kinds = [
            operator.kind for operator in record.operators if operator.stage == 2 and operator.kind != "blur"
        ]
        assert kinds == ["resize", "noise", "jpeg"]
        kinds = [
            operator.kind for operator in record.operators if operator.stage == 3 and operator.kind != "blur"
        ]
        assert sorted(kinds) == ["codec", "resize"]
        assert [operator.stage for operator in record.operators] == sorted(o.stage for o in record.operators)


def test_pictures_follow_real_esrgan():
    orders: Counter[str] = Counter()
    below = plateau_at_one = 0
    for seed in range(400):
        record = sample_degradation(seed, (720, 1280), 1)
        assert record.model == "real-esrgan"
        kinds = [operator.kind for operator in record.operators if operator.kind != "blur"]
        orders[" ".join(kinds)] += 1
        for operator in record.operators:
            match operator:
                case Noise():
                    assert operator.clip
                case Resize(stage=2):
                    assert operator.sizes[0][0] <= 1.2 * 180
                    assert operator.sizes[0][1] == int(320 * operator.scale[0]) // 2 * 2
                case Blur(family="generalized-isotropic"):
                    below += operator.beta[0] < 1
                    below -= operator.beta[0] >= 1
                case Blur(family="plateau-isotropic"):
                    plateau_at_one += operator.beta[0] == 1
    first = "resize noise jpeg resize noise "
    assert_frequencies(orders, {first + "resize jpeg": 1, first + "jpeg resize": 1})
    assert abs(below) < 4 * math.sqrt(400 * 1.8 * 0.108)
    assert plateau_at_one > 20


def test_pictures_can_follow_the_video_model():
    config = DegradationConfig(image_mode="video")
    record = sample_degradation(0, SIZE, 1, config)
    assert record.model == "video"
    assert degrade_clip(natural_clip(1, *SIZE, seed=0), record).shape == (1, 16, 24, 3)


@pytest.mark.parametrize("shape", [(1, 64, 96), (5, 64, 96), (5, 20, 36), (9, 100, 60), (1, 4, 8)])
def test_output_is_a_quarter_of_the_size(shape: tuple[int, int, int]):
    clip = natural_clip(*shape, seed=1)
    for seed in range(12):
        output = degrade_clip(clip, sample_degradation(seed, shape[1:], shape[0]))
        assert output.shape == (shape[0], shape[1] // 4, shape[2] // 4, 3)
        assert output.dtype == np.uint8


def test_same_seed_draws_the_same_record_and_another_seed_another():
    assert sample_degradation(7, SIZE, 5) == sample_degradation(7, SIZE, 5)
    assert sample_degradation(7, SIZE, 5) != sample_degradation(8, SIZE, 5)


@pytest.mark.parametrize("num_frames", [1, 5])
def test_record_survives_json_and_gives_the_same_bytes(num_frames: int):
    clip = natural_clip(num_frames, *SIZE, seed=2)
    for seed in range(12):
        record = sample_degradation(seed, SIZE, num_frames)
        again = Degradation.model_validate_json(record.model_dump_json())
        assert again == record
        np.testing.assert_array_equal(degrade_clip(clip, record), degrade_clip(clip, again))


def test_result_does_not_depend_on_the_number_of_threads():
    clip = natural_clip(3, 256, 320, seed=3)
    threads = cv2.getNumThreads()
    try:
        for seed in range(8):
            record = sample_degradation(seed, (256, 320), 3)
            cv2.setNumThreads(1)
            single = degrade_clip(clip, record)
            cv2.setNumThreads(2)
            np.testing.assert_array_equal(degrade_clip(clip, record), single)
    finally:
        cv2.setNumThreads(threads)


def test_source_is_left_as_it_was_and_may_be_any_view():
    clip = natural_clip(5, 64, 96, seed=4)
    copy = clip.copy()
    record = sample_degradation(1, SIZE, 5)
    wide = np.concatenate([clip, clip], axis=2)
    np.testing.assert_array_equal(degrade_clip(wide[:, :, :96], record), degrade_clip(clip, record))
    np.testing.assert_array_equal(clip, copy)


def test_degraded_clips_resemble_their_sources():
    clip = natural_clip(5, 256, 256, seed=5)
    values = []
    for seed in range(16):
        small = degrade_clip(clip, sample_degradation(seed, (256, 256), 5))
        large = np.stack([cv2.resize(frame, (256, 256), interpolation=cv2.INTER_CUBIC) for frame in small])
        values.append(10 * math.log10(255**2 / np.mean((large.astype(float) - clip) ** 2)))
    assert 15 < np.mean(values) < 32
    assert min(values) > 8


def test_neighbouring_frames_get_similar_degradations():
    clip = np.repeat(natural_clip(1, 64, 96, seed=6), 5, axis=0)
    for seed in range(6):
        frames = degrade_clip(clip, sample_degradation(seed, SIZE, 5)).astype(float).mean(axis=(1, 2, 3))
        assert np.abs(np.diff(frames)).max() < 12


@pytest.mark.parametrize(("size", "num_frames"), [((66, 96), 5), ((64, 98), 5), ((0, 96), 5), ((64, 96), 0)])
def test_sizes_that_do_not_divide_are_refused(size: tuple[int, int], num_frames: int):
    with pytest.raises(ShapeError, match="multiples of 4"):
        sample_degradation(0, size, num_frames)


def test_frames_that_do_not_fit_the_record_are_refused():
    record = sample_degradation(0, SIZE, 5)
    with pytest.raises(ShapeError, match="drawn for"):
        degrade_clip(natural_clip(4, *SIZE, seed=0), record)
    with pytest.raises(ShapeError, match="drawn for"):
        degrade_clip(natural_clip(5, 96, 64, seed=0), record)
    with pytest.raises(ShapeError, match="uint8"):
        degrade_clip(natural_clip(5, *SIZE, seed=0).astype(np.uint16), record)


def test_record_with_a_missing_value_is_refused():
    tree = sample_degradation(0, SIZE, 5).model_dump()
    tree["num_frames"] = 6
    with pytest.raises(ValueError, match="values for 6 frames"):
        Degradation.model_validate(tree)
