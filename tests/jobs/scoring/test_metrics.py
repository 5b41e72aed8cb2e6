"""Figures of quality are those of their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.scoring.figures import caption_scores, cosine_similarities, frechet_distance, wilson


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    # By hand: the ends p solve (share - p)^2 = z^2 p (1 - p) / n.
    [(0.5, 10, 0.2366, 0.7634), (0.9, 200, 0.8506, 0.9343), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0)],
)
def test_intervals_are_those_of_wilson(share: float, count: int, low: float, high: float) -> None:
    assert wilson(share, count) == pytest.approx((low, high), abs=1e-4)


@given(st.floats(0, 1), st.integers(1, 10**6))
def test_an_interval_holds_its_share_and_solves_the_score_equation(share: float, count: int) -> None:
    low, high = wilson(share, count)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    for end in (low, high):
        assert (share - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / count, abs=1e-9)


def test_a_share_of_nothing_has_no_interval() -> None:
    with pytest.raises(ValueError, match="of 0 trials"):
        wilson(0.5, 0)
    with pytest.raises(ValueError, match="at least one"):
        wilson(1.5, 3)


@given(st.integers(0, 1000), st.integers(1, 4), st.floats(0.1, 3), st.floats(-3, 3))
def test_of_stretched_and_moved_samples_the_distance_is_known(seed: int, dim: int, by: float, to: float) -> None:
    samples = np.random.default_rng(seed).standard_normal((20, dim))
    moved = by * samples + to
    apart = moved.mean(axis=0) - samples.mean(axis=0)
    expected = apart @ apart + (by - 1) ** 2 * np.cov(samples, rowvar=False).reshape(dim, dim).trace()
    assert frechet_distance(samples, moved) == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(moved, samples) == pytest.approx(expected, abs=1e-6)


def test_of_two_known_gaussians_the_distance_is_theirs() -> None:
    rng = np.random.default_rng(0)
    first = rng.standard_normal((100_000, 2)) * [1, 2]
    second = rng.standard_normal((100_000, 2)) * [3, 1] + [1, 0]
    # Diagonal covariances commute: |m|^2 + the sum of (s1 - s2)^2.
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + 1, rel=0.02)


def test_equal_sets_are_at_no_distance_even_where_they_are_few() -> None:
    few = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="at least two items"):
        frechet_distance(few[:1], few)


def test_cosines_do_not_depend_on_length() -> None:
    first, second = np.array([[1.0, 0], [2, 0], [0, 0]]), np.array([[3.0, 0], [0, 1], [1, 1]])
    assert cosine_similarities(first, second).tolist() == [1, 0, 0]


def test_captions_are_scored_of_one() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    texts = ["a big red circle at the left", "the low mi on the flute"]
    assert caption_scores(texts, texts) == pytest.approx({"bleu_4": 1, "chrf": 1, "rouge_l": 1})
    assert caption_scores(["x"], ["a big red circle"])["rouge_l"] == 0
    # Of three words each, two are common in order: precision and recall are 2/3.
    assert caption_scores(["a red circle"], ["a blue circle"])["rouge_l"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no texts"):
        caption_scores([], [])


def test_a_text_is_as_near_as_the_nearest_of_its_references() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    texts = ["a big red circle at the left", "the low mi on the flute"]
    several = [["nothing of it", "a big red circle at the left", "nor this"], [texts[1]]]
    assert caption_scores(texts, several) == pytest.approx({"bleu_4": 1, "chrf": 1, "rouge_l": 1})
    alone = ["a red circle to the left", "a low mi"]
    assert caption_scores(texts, [[text] for text in alone]) == caption_scores(texts, alone)
