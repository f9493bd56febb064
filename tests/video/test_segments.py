from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seedvr2.errors import ConfigError, ShapeError
from seedvr2.video.segments import Segment, cross_fade_weights, plan_segments


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int, int]:
    """Shots, max_frames and a legal overlap."""
    edges = [draw(st.integers(0, 50))]
    for length in draw(st.lists(st.integers(1, 200), min_size=1, max_size=5)):
        edges.append(edges[-1] + length)
    max_frames = draw(st.integers(5, 60))
    overlap = draw(st.integers(0, (max_frames - 1) // 4 * 4 - 3))
    return list(pairwise(edges)), max_frames, overlap


def of_shot(segments: list[Segment], shot: int) -> list[Segment]:
    return [segment for segment in segments if segment.shot == shot]


@given(plans())
def test_every_frame_is_owned_once_and_in_order(plan):
    shots, max_frames, overlap = plan
    owned = [frame for segment in plan_segments(shots, max_frames, overlap) for frame in segment.owned]
    assert owned == list(range(shots[0][0], shots[-1][1]))


@given(plans())
def test_segments_stay_in_their_shot_and_within_the_limit(plan):
    shots, max_frames, overlap = plan
    segments = plan_segments(shots, max_frames, overlap)
    assert [segment.index for segment in segments] == list(range(len(segments)))
    for segment in segments:
        first, end = shots[segment.shot]
        assert first <= segment.start < segment.owned_stop <= segment.stop <= end
        assert segment.padded <= max_frames


@given(plans())
def test_only_the_last_segment_of_a_shot_is_padded_and_by_little(plan):
    shots, max_frames, overlap = plan
    segments = plan_segments(shots, max_frames, overlap)
    for shot in range(len(shots)):
        *others, last = of_shot(segments, shot)
        assert all(segment.length % 4 == 1 and segment.length >= 5 for segment in others)
        assert last.padded - last.length <= 3
        lengths = [segment.padded for segment in (*others, last)]
        assert max(lengths) - min(lengths) <= 4


@given(plans())
def test_consecutive_segments_share_the_overlap(plan):
    shots, max_frames, overlap = plan
    segments = plan_segments(shots, max_frames, overlap)
    for one, other in pairwise(segments):
        shared = one.stop - other.start
        if one.shot != other.shot:
            assert shared == other.overlap == 0
            continue
        assert shared == other.overlap == one.stop - one.owned_stop
        assert overlap <= shared <= overlap + 3
        assert other.length > shared
        if overlap:
            assert (other.start - shots[other.shot][0]) % 4 == 0


@given(plans())
def test_no_plan_has_fewer_segments(plan):
    shots, max_frames, overlap = plan
    segments = plan_segments(shots, max_frames, overlap)
    longest = (max_frames - 1) // 4 * 4 + 1
    for shot, (start, stop) in enumerate(shots):
        mine = of_shot(segments, shot)
        shared = max(segment.overlap for segment in mine)
        one_less = len(mine) - 1
        assert one_less * longest - max(0, one_less - 1) * shared < stop - start


@given(plans())
def test_plans_are_deterministic_and_move_with_the_shot(plan):
    shots, max_frames, overlap = plan
    segments = plan_segments(shots, max_frames, overlap)
    assert plan_segments(tuple(shots), max_frames, overlap) == segments
    moved = plan_segments([(start + 4, stop + 4) for start, stop in shots], max_frames, overlap)
    assert [(s.start - 4, s.stop - 4) for s in moved] == [(s.start, s.stop) for s in segments]


@settings(max_examples=60, deadline=None)
@given(plans())
def test_joining_segments_that_agree_gives_the_video_back(plan):
    shots, max_frames, overlap = plan
    video = torch.arange(float(shots[-1][1]), dtype=torch.float64)
    written, tail = [], torch.empty(0)
    for segment in plan_segments(shots, max_frames, overlap):
        result = video[segment.start : segment.stop].clone()
        weights = cross_fade_weights(segment.overlap).double()
        head = result[: segment.overlap]
        assert segment.overlap in (0, len(tail))
        result[: segment.overlap] = weights * tail[: segment.overlap] + (1 - weights) * head
        written.append(result[: len(segment.owned)])
        tail = result[len(segment.owned) :]
    assert torch.allclose(torch.cat(written), video[shots[0][0] :])


def test_lengths_are_balanced_instead_of_leaving_a_tail():
    segments = plan_segments([(0, 49)], max_frames=45, overlap=5)
    assert [(segment.start, segment.stop) for segment in segments] == [(0, 25), (20, 49)]
    assert [list(segment.owned)[-1] for segment in segments] == [19, 48]


def test_a_shot_that_fits_is_one_segment():
    (segment,) = plan_segments([(7, 28)], max_frames=22)
    assert segment == Segment(index=0, shot=0, start=7, stop=28, overlap=0, owned_stop=28)
    assert segment.padded == segment.length == 21


@pytest.mark.parametrize(("length", "padded"), [(1, 1), (2, 5), (5, 5), (6, 9)])
def test_short_shots_are_padded_by_repetition(length: int, padded: int):
    (segment,) = plan_segments([(0, length)], max_frames=45)
    assert segment.length == length
    assert segment.padded == padded


def test_segments_abut_without_overlap():
    segments = plan_segments([(0, 20)], max_frames=9, overlap=0)
    assert [(segment.start, segment.stop) for segment in segments] == [(0, 5), (5, 14), (14, 20)]
    assert {segment.overlap for segment in segments} == {0}


def test_the_tightest_overlap_still_moves_on():
    segments = plan_segments([(0, 17)], max_frames=9, overlap=5)
    assert [(segment.start, segment.stop) for segment in segments] == [(0, 9), (4, 13), (8, 17)]


def test_no_shots_are_no_segments():
    assert plan_segments([], max_frames=5, overlap=0) == []


@pytest.mark.parametrize(
    ("max_frames", "overlap", "message"),
    [
        (4, 0, "at least 5 frames"),
        (21, -1, "at least 0 frames"),
        (5, 5, "overlap of 0 to 1"),
        (23, 18, "overlap of 0 to 17.*at least 25 frames"),
    ],
)
def test_limits_that_do_not_fit_are_refused_with_legal_values(max_frames: int, overlap: int, message: str):
    with pytest.raises(ConfigError, match=message):
        plan_segments([(0, 100)], max_frames, overlap)


@pytest.mark.parametrize("shots", [[(0, 0)], [(5, 3)], [(0, 5), (6, 9)], [(0, 5), (4, 9)], [(5, 9), (0, 5)]])
def test_shots_that_do_not_cover_a_video_are_refused(shots: list[tuple[int, int]]):
    with pytest.raises(ShapeError, match="expected shots"):
        plan_segments(shots, 21)


def test_cross_fade_holds_then_turns_then_holds():
    weights = cross_fade_weights(13)
    assert torch.equal(weights[:5], torch.ones(5))
    assert float(weights[6]) == pytest.approx(0.5)
    assert float(weights[8:].abs().max()) < 1e-6
    assert bool((weights.diff() <= 1e-6).all())


@pytest.mark.parametrize(
    ("overlap", "expected"), [(0, []), (1, [1.0]), (2, [1.0, 0.0]), (3, [1.0, 0.5, 0.0])]
)
def test_short_cross_fades_are_lines(overlap: int, expected: list[float]):
    assert cross_fade_weights(overlap).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_negative_cross_fade_is_refused():
    with pytest.raises(ConfigError, match="overlap"):
        cross_fade_weights(-1)
