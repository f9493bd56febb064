import numpy as np
import pytest

from seedvr2.errors import ConfigError, ShapeError
from seedvr2.video.shots import ShotDetector, detect_shots, thumbnail

HEIGHT, WIDTH = 36, 64


def scene(seed: int, width: int = WIDTH) -> np.ndarray:
    """A smooth random picture, float (36, width, 3) in 0..255, with colours of its own."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:HEIGHT, 0:width] / HEIGHT
    image = np.empty((HEIGHT, width, 3))
    for channel in range(3):
        waves = sum(
            np.sin(rng.uniform(1, 5) * rows + rng.uniform(1, 5) * columns + rng.uniform(0, 6))
            for _ in range(4)
        )
        image[..., channel] = rng.uniform(70, 180) + 25 * waves
    return image.clip(0, 255)


def hold(image: np.ndarray, length: int, noise: float = 1.5, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    grain = [rng.normal(0, noise, image.shape) for _ in range(length)]
    return [(image + g).round().clip(0, 255).astype(np.uint8) for g in grain]


def pan(image: np.ndarray, length: int, speed: int) -> list[np.ndarray]:
    return [image[:, t * speed : t * speed + WIDTH].astype(np.uint8) for t in range(length)]


def test_hard_cuts_are_found_to_the_frame():
    film = hold(scene(1), 30) + hold(scene(2), 17) + hold(scene(3), 40)
    assert detect_shots(film) == [(0, 30), (30, 47), (47, 87)]


def test_a_cut_between_moving_shots_is_found():
    first, second = scene(4, WIDTH + 3 * 25), scene(5, WIDTH + 2 * 25)
    assert detect_shots(pan(first, 25, 3) + pan(second, 25, 2)) == [(0, 25), (25, 50)]


def test_a_cut_in_dark_film_is_found():
    film = hold(scene(1) * 0.4, 20, noise=1) + hold(scene(2) * 0.4, 20, noise=1)
    assert detect_shots(film) == [(0, 20), (20, 40)]


def test_a_pan_is_no_cut():
    image = scene(6, WIDTH + 6 * 50)
    assert detect_shots(pan(image, 50, 6)) == [(0, 50)]


def test_noise_is_no_cut():
    assert detect_shots(hold(scene(7), 40, noise=25)) == [(0, 40)]


@pytest.mark.parametrize("length", [1, 2])
def test_a_flash_is_no_cut(length: int):
    film = hold(scene(8), 40)
    film[20 : 20 + length] = [np.full((HEIGHT, WIDTH, 3), 250, np.uint8)] * length
    assert detect_shots(film) == [(0, 40)]


def test_a_damaged_frame_is_no_cut():
    film = hold(scene(8), 40)
    film[11] = hold(scene(9), 1)[0]
    assert detect_shots(film) == [(0, 40)]


def test_a_flash_beside_a_cut_does_not_hide_it():
    film = hold(scene(1), 20) + hold(scene(2), 20)
    film[20] = np.full((HEIGHT, WIDTH, 3), 250, np.uint8)
    found = detect_shots(film)
    assert len(found) == 2
    assert found[1][0] in (20, 21)


def test_a_fade_is_no_cut():
    image = scene(10)
    film = [(image * level).astype(np.uint8) for level in np.linspace(1, 0, 30)]
    assert detect_shots(film + film[::-1]) == [(0, 60)]


def test_shots_are_never_shorter_than_asked():
    film = hold(scene(1), 3) + hold(scene(2), 20) + hold(scene(3), 6) + hold(scene(4), 20) + hold(scene(5), 2)
    assert detect_shots(film) == [(0, 23), (23, 29), (29, 51)]
    lengths = [stop - start for start, stop in detect_shots(film, min_length=10)]
    assert min(lengths) >= 10
    assert sum(lengths) == len(film)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_short_film_is_one_shot(length: int):
    assert detect_shots(hold(scene(1), length)) == [(0, length)]


def test_no_frames_are_no_shots():
    assert detect_shots([]) == []


def test_shots_can_be_asked_for_while_frames_come():
    detector = ShotDetector()
    film = hold(scene(1), 12) + hold(scene(2), 12)
    for count, image in enumerate(film, start=1):
        detector.push(image)
        shots = detector.shots()
        assert shots[0][0] == 0
        assert shots[-1][1] == count
    assert shots == detect_shots(film)


def test_thumbnails_of_any_size_and_depth_agree():
    image = np.repeat(np.repeat(scene(1).round().astype(np.uint8), 20, axis=0), 20, axis=1)
    small = thumbnail(image)
    assert small.shape == (HEIGHT, WIDTH, 3)
    assert np.array_equal(small, image[::20, ::20])
    assert np.array_equal(thumbnail(image.astype(np.uint16) << 2, bit_depth=10), small)
    assert thumbnail(image[:1, :1]).shape == (HEIGHT, WIDTH, 3)


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="at least 1 frame"):
        ShotDetector(min_length=0)
    with pytest.raises(ShapeError, match=r"\(36, 64, 3\)"):
        ShotDetector().push(np.zeros((36, 64), np.uint8))
