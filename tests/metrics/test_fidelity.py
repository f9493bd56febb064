import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from seedvr2.errors import ShapeError
from seedvr2.metrics.fidelity import psnr, psnr_y, ssim


def video(seed: int = 0, frames: int = 3, height: int = 24, width: int = 30) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (frames, height, width, 3))
    return gaussian_filter(noise, (0, 2, 2, 0)).round().astype(np.uint8)


def noisy(frames: np.ndarray, strength: float, seed: int = 1) -> np.ndarray:
    grain = np.random.default_rng(seed).normal(0, strength, frames.shape)
    return (frames + grain).round().clip(0, 255).astype(np.uint8)


def test_psnr_of_a_known_error_is_exact():
    dark = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(dark, dark + 1) == pytest.approx(20 * np.log10(255))
    assert psnr(dark, dark + 255) == pytest.approx(0)


def test_psnr_is_the_mean_over_frames():
    one, other = video(), noisy(video(), 9)
    expected = np.mean(
        [peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(one, other, strict=True)]
    )
    assert psnr(one, other) == pytest.approx(expected)
    assert psnr(one, other) == pytest.approx(psnr(other, one))


def test_equal_frames_get_the_largest_psnr():
    frames = video()
    assert psnr(frames, frames.copy()) == pytest.approx(100)
    assert psnr_y(frames, frames.copy()) == pytest.approx(100)
    half_right = frames.copy()
    half_right[0] ^= 1
    assert psnr(frames[:2], half_right[:2]) == pytest.approx((100 + 20 * np.log10(255)) / 2)


def test_luma_follows_bt601():
    dark = np.zeros((1, 4, 4, 3), np.uint8)
    for channel, weight in enumerate((65.481, 128.553, 24.966)):
        light = dark.copy()
        light[..., channel] = 255
        assert psnr_y(dark, light) == pytest.approx(20 * np.log10(255 / weight))
    assert psnr_y(dark, dark + 255) == pytest.approx(20 * np.log10(255 / 219))


def test_ssim_matches_its_definition():
    one, other = video(frames=1), noisy(video(frames=1), 12)
    a, b = one[0].astype(float), other[0].astype(float)

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, (1.5, 1.5, 0), truncate=3.5)

    mean_a, mean_b = blur(a), blur(b)
    covariance = blur(a * b) - mean_a * mean_b
    spread = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity /= (mean_a**2 + mean_b**2 + c1) * (spread + c2)
    assert ssim(one, other) == pytest.approx(similarity[5:-5, 5:-5].mean(), abs=1e-6)


def test_ssim_falls_with_noise_and_is_one_for_equal_frames():
    frames = video()
    assert ssim(frames, frames.copy()) == pytest.approx(1)
    assert 1 > ssim(frames, noisy(frames, 4)) > ssim(frames, noisy(frames, 16)) > 0


@pytest.mark.parametrize("metric", [psnr, psnr_y, ssim])
def test_videos_that_do_not_match_are_refused(metric):
    frames = video()
    with pytest.raises(ShapeError, match="one shape"):
        metric(frames, frames[:2])
    with pytest.raises(ShapeError, match="uint8 frames"):
        metric(frames.astype(np.float32), frames)
    with pytest.raises(ShapeError, match="uint8 frames"):
        metric(frames[0], frames[0])
    with pytest.raises(ShapeError, match="uint8 frames"):
        metric(frames[:0], frames[:0])


def test_frames_smaller_than_the_window_have_no_ssim():
    with pytest.raises(ShapeError, match="11x11"):
        ssim(video(height=10), video(height=10))
    assert ssim(video(height=11, width=11), video(height=11, width=11)) == pytest.approx(1)
