import json

import numpy as np
import pytest
import torch

from seedvr2.errors import ShapeError
from seedvr2.models.windows import WindowLayout, window_layout, window_size, windows
from tests.conftest import golden_cases

CPU = torch.device("cpu")
GRIDS = [(1, 1, 1), (1, 21, 21), (6, 45, 80), (3, 7, 90), (40, 9, 5), (2, 60, 34)]


def edges(cuts):
    return sorted({(part.start, part.stop) for part in cuts})


def test_window_matches_720p_training_at_1080p():
    assert window_size((25, 68, 120)) == (7, 15, 27)


def test_window_stops_growing_after_thirty_latent_frames():
    assert window_size((300, 45, 80)) == window_size((30, 45, 80)) == (8, 15, 27)


def test_window_never_shrinks_below_one_token():
    assert window_size((1, 1, 100_000)) >= (1, 1, 1)


def test_empty_grid_is_refused():
    with pytest.raises(ShapeError, match="at least 1x1x1"):
        window_size((0, 4, 4))


def test_shift_moves_cuts_by_half_a_window():
    boxes = windows((26, 67, 120), shifted=True)
    assert edges(t for t, _, _ in boxes) == [(0, 3), (3, 10), (10, 17), (17, 24), (24, 26)]
    assert edges(w for _, _, w in boxes) == [(0, 13), (13, 40), (40, 67), (67, 94), (94, 120)]


def test_axis_with_one_window_is_not_shifted():
    assert (
        windows((1, 16, 16), shifted=True)
        == windows((1, 16, 16))
        == [(slice(0, 1), slice(0, 16), slice(0, 16))]
    )


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("windows/*.json"))
def test_windows_equal_the_released_ones(path):
    for row in json.loads(path.read_text())["rows"]:
        grid, num_windows = tuple(row["shape"]), tuple(row["num_windows"])
        for method, expected in row.items():
            if method in ("shape", "num_windows"):
                continue
            boxes = windows(grid, num_windows, shifted="swin" in method)
            got = [[[part.start, part.stop] for part in box] for box in boxes]
            assert got == expected, (grid, num_windows, method)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_windows_cover_each_token_once(grid, shifted):
    covered = np.zeros(grid, dtype=int)
    for box in windows(grid, shifted=shifted):
        covered[box] += 1
    assert (covered == 1).all()


def layout_of(grids, text_lengths, shifted=False) -> WindowLayout:
    return window_layout(tuple(grids), tuple(text_lengths), (4, 3, 3), shifted, CPU)


@pytest.mark.parametrize("shifted", [False, True])
def test_layout_sequences_are_windows_followed_by_the_text_of_their_sample(shifted):
    grids, text_lengths = [(2, 30, 40), (5, 9, 70), (1, 3, 3)], [4, 0, 7]
    layout = layout_of(grids, text_lengths, shifted)
    sequences = {
        tuple(layout.sources[a:b].tolist())
        for a, b in zip(layout.offsets[:-1], layout.offsets[1:], strict=True)
    }
    expected = set()
    start, text_start = 0, sum(int(np.prod(grid)) for grid in grids)
    for grid, length in zip(grids, text_lengths, strict=True):
        rows = start + np.arange(np.prod(grid)).reshape(grid)
        text = tuple(range(text_start, text_start + length))
        expected |= {(*rows[box].ravel().tolist(), *text) for box in windows(grid, shifted=shifted)}
        start, text_start = start + rows.size, text_start + length
    assert sequences == expected


def test_layout_leads_every_token_back():
    layout = layout_of([(2, 30, 40), (5, 9, 70)], [4, 6], shifted=True)
    total = sum(layout.video_lengths)
    first, second = layout.window_counts
    texts = [
        token for token in range(total, total + 10) for _ in range(first if token < total + 4 else second)
    ]
    assert layout.sources[layout.results].tolist() == [*range(total), *texts]


def test_layout_groups_tell_the_sequences():
    layout = layout_of([(2, 30, 40), (5, 9, 70)], [4, 6], shifted=True)
    lengths = [length for count, length in layout.groups for _ in range(count)]
    assert layout.offsets.diff().tolist() == lengths
    assert layout.offsets.dtype == torch.int32
    assert layout.longest == max(lengths)
    assert len({length for _, length in layout.groups}) == len(layout.groups)


def test_layout_is_kept_by_value():
    first = layout_of([(1, 8, 8)], [3])
    assert layout_of([(1, 8, 8)], [3]) is first
    assert layout_of([(1, 8, 8)], [4]) is not first
    assert layout_of([(1, 8, 8)], [3], shifted=True) is not first
    assert layout_of([(1, 8, 9)], [3]) is not first


def test_layout_made_in_inference_mode_serves_training():
    with torch.inference_mode():
        layout = layout_of([(1, 5, 11)], [3])
    tokens = torch.randn(58, 2, requires_grad=True)
    tokens.index_select(0, layout.sources).sum().backward()
    assert tokens.grad is not None
