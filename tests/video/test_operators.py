import math
from typing import Any, get_args

import cv2
import numpy as np
import pytest

from seedvr2.video.degrade import sample_degradation
from seedvr2.video.degrade_config import Codec
from seedvr2.video.levels import as_levels
from seedvr2.video.operators import Blur, Jpeg, Noise, Resize, VideoCodec
from tests.benchmarks.bench_degrade import reference_codec, reference_kernel, reference_operator
from tests.video.synthetic import natural_clip

CODECS: tuple[Codec, ...] = get_args(Codec)
Array = np.ndarray[Any, Any]


def make_noise(**changes: Any) -> Noise:
    drawn = {"family": "gaussian", "grey": False, "strength": (20.0,), "clip": False, "seed": 9}
    return Noise.model_validate({"stage": 1, **drawn, **changes})


def make_codec(codec: Codec, size: tuple[int, int], bit_rate: int = 200_000) -> VideoCodec:
    return VideoCodec(
        stage=1, codec=codec, preset="veryfast", bit_rate=bit_rate, encoder_bit_rate=bit_rate, size=size
    )


def flat(value: float, height: int = 200, width: int = 200) -> Array:
    return np.full((height, width, 3), value, np.float32)


def detail(frame: Array) -> float:
    return float(cv2.Laplacian(frame.astype(np.float32), cv2.CV_32F).var())


def psnr(a: Array, b: Array) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


@pytest.mark.parametrize("sigma", [1.0, 30.0])
def test_gaussian_noise_has_its_deviation_in_8_bit_levels(sigma: float):
    (noisy,) = make_noise(strength=(sigma,)).apply(iter([flat(0.5)]))
    assert noisy.std() == pytest.approx(sigma / 255, rel=0.02)
    assert noisy.mean() == pytest.approx(0.5, abs=sigma / 255 / 50)


def test_poisson_noise_on_a_flat_frame_is_strong():
    (noisy,) = make_noise(family="poisson", strength=(0.3,)).apply(iter([flat(0.5)]))
    assert noisy.std() == pytest.approx(0.3 * math.sqrt(0.5), rel=0.02)


def test_poisson_noise_on_natural_content_is_weak():
    ramp = np.tile(np.arange(256, dtype=np.uint8)[:, None], (64, 64, 3))
    (noisy,) = make_noise(family="poisson", strength=(2.0,)).apply(iter([ramp]))
    grey = (ramp > 120) & (ramp < 136)
    residual = noisy[grey] - ramp[grey] / 255
    assert residual.std() == pytest.approx(2.0 * 0.044, rel=0.03)


@pytest.mark.parametrize("family", ["gaussian", "poisson"])
def test_grey_noise_is_shared_by_the_channels(family: str):
    frame = natural_clip(1, 64, 64, seed=1)[0] / np.float32(255)
    for grey in (True, False):
        (noisy,) = make_noise(family=family, grey=grey, strength=(2.0,)).apply(iter([frame]))
        residual = noisy - frame
        shared = np.allclose(residual[..., 0], residual[..., 1], atol=1e-6)
        assert shared == grey
        assert residual.std() > 1e-3


def test_each_frame_has_its_own_noise():
    first, second = make_noise(strength=(20.0, 20.0)).apply(iter([flat(0.5), flat(0.5)]))
    assert abs(np.corrcoef((first - 0.5).ravel(), (second - 0.5).ravel())[0, 1]) < 0.02


def test_noise_overshoots_unless_it_is_clipped():
    (free,) = make_noise().apply(iter([flat(1.0)]))
    (clipped,) = make_noise(clip=True).apply(iter([flat(1.0)]))
    assert free.max() > 1.05
    np.testing.assert_array_equal(clipped, np.clip(free, 0, 1))


def test_no_8_bit_wraparound_at_white_and_black():
    for value, far in ((1.0, 0), (0.0, 255)):
        noisy = list(make_noise(strength=(30.0,)).apply(iter([flat(value, 64, 64)])))
        outputs = [as_levels(noisy[0])]
        outputs += Jpeg(stage=1, quality=(95,)).apply(iter(noisy))
        outputs += make_codec("mpeg4", (64, 64)).apply(iter(noisy))
        outputs += make_codec("libx264", (64, 64)).apply(iter(noisy))
        for output in outputs:
            assert output.dtype == np.uint8
            assert np.abs(output.astype(int) - far).min() > 80


@pytest.mark.parametrize("color", [(220, 20, 30), (20, 200, 40), (30, 40, 210)])
def test_compression_keeps_the_order_of_the_channels(color: tuple[int, int, int]):
    frame = np.full((48, 64, 3), color, np.uint8)
    for operator in (Jpeg(stage=1, quality=(95,)), *(make_codec(codec, (48, 64)) for codec in CODECS)):
        (output,) = operator.apply(iter([frame]))
        assert np.abs(output.astype(int) - frame).max() <= 6


def test_jpeg_loses_more_at_lower_quality():
    clip = natural_clip(2, 96, 96, seed=2)
    low, high = Jpeg(stage=1, quality=(30, 95)).apply(iter([clip[0], clip[0]]))
    assert psnr(low, clip[0]) < psnr(high, clip[0]) - 3


@pytest.mark.parametrize("codec", CODECS)
def test_codec_lowers_bits_and_detail(codec: Codec):
    random = np.random.default_rng(0)
    clip = natural_clip(9, 144, 192, seed=4).astype(np.float32)
    noisy = np.clip(clip + random.normal(0, 8, clip.shape), 0, 255).astype(np.uint8)
    bits, details = [], []
    for rate in (5_000, 500_000):
        operator = make_codec(codec, (144, 192), rate)
        bits.append(8 * sum(packet.size for packet in operator.encode(iter(noisy))) / noisy[..., 0].size)
        details.append(np.mean([detail(frame) for frame in operator.apply(iter(noisy))]))
    assert bits[0] < 0.8 * bits[1] < 0.5 * 24
    assert details[0] < 0.8 * details[1]
    assert details[0] < 0.5 * np.mean([detail(frame) for frame in noisy])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(1, 45, 37), (5, 8, 8), (17, 50, 66)])
def test_codec_returns_every_frame_in_order_at_any_size(codec: Codec, shape: tuple[int, int, int]):
    num_frames, height, width = shape
    clip = np.stack([np.full((height, width, 3), 20 + 12 * index, np.uint8) for index in range(num_frames)])
    output = np.stack(list(make_codec(codec, (height, width)).apply(iter(clip))))
    assert output.shape == clip.shape
    np.testing.assert_allclose(output.mean(axis=(1, 2, 3)), clip.mean(axis=(1, 2, 3)), atol=5)


def test_codec_brings_frames_back_to_the_first_size():
    clip = natural_clip(3, 64, 64, seed=6)
    frames = [clip[0], cv2.resize(clip[1], (60, 58)), cv2.resize(clip[2], (70, 72))]
    output = list(make_codec("mpeg4", (64, 64), 2_000_000).apply(iter(frames)))
    assert [frame.shape for frame in output] == [(64, 64, 3)] * 3
    assert psnr(output[2], clip[2]) > 22


@pytest.mark.parametrize("codec", CODECS)
def test_codec_gives_the_same_bytes_again_and_again(codec: Codec):
    random = np.random.default_rng(1)
    clip = natural_clip(5, 60, 92, seed=8).astype(np.float32)
    noisy = np.clip(clip + random.normal(0, 10, clip.shape), 0, 255).astype(np.uint8)
    operator = make_codec(codec, (60, 92), 7_000)
    first = np.stack(list(operator.apply(iter(noisy))))
    for repeat in range(25):
        litter = [random.integers(0, 256, count, np.uint8) for count in (3_000, 20_000, 70_000 + repeat)]
        del litter  # dirty memory for the next encoder
        np.testing.assert_array_equal(np.stack(list(operator.apply(iter(noisy)))), first)


def test_resize_follows_its_sizes_and_keeps_8_bit():
    clip = natural_clip(2, 40, 60, seed=7)
    operator = Resize(
        stage=1, mode="down", interpolation="area", scale=(0.5, 0.4), sizes=((20, 30), (16, 24))
    )
    first, second = operator.apply(iter(clip))
    assert (first.shape, second.shape, first.dtype) == ((20, 30, 3), (16, 24, 3), np.uint8)
    mean = clip[0].reshape(20, 2, 30, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(first, mean, atol=0.76)


def test_blur_uses_the_kernel_of_each_frame():
    clip = natural_clip(2, 40, 40, seed=7)
    weak, strong = Blur(stage=1, family="isotropic", size=21, sigma_x=(0.2, 3.0)).apply(iter([clip[0]] * 2))
    np.testing.assert_allclose(weak, clip[0] / 255, atol=1e-4)
    assert detail(strong) < 0.2 * detail(weak)


def test_blur_and_resize_equal_the_published_pipeline():
    clip = [frame / np.float32(255) for frame in natural_clip(2, 64, 96, seed=9)]
    seen = set()
    for seed in range(120):
        for operator in sample_degradation(seed, (64, 96), 2).operators:
            if isinstance(operator, Blur | Resize):
                seen.add(getattr(operator, "family", None))
                pairs = zip(operator.apply(iter(clip)), reference_operator(clip, operator), strict=True)
                for ours, published in pairs:
                    np.testing.assert_allclose(ours, published, atol=1.2e-5)
            if isinstance(operator, Blur):
                np.testing.assert_allclose(operator.kernel(1), reference_kernel(operator, 1), atol=1e-12)
    assert len(seen) == 8


@pytest.mark.parametrize("codec", CODECS)
def test_codec_equals_the_way_through_an_mp4_file(codec: Codec):
    clip = natural_clip(5, 96, 128, seed=9)
    operator = make_codec(codec, (96, 128), 20_000)
    through_file = reference_codec([(frame + 0.25) / 255 for frame in clip], operator)
    for ours, published in zip(operator.apply(iter(clip)), through_file, strict=True):
        np.testing.assert_array_equal(ours, np.rint(published * 255))
