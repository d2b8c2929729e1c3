import numpy as np
import pytest

from statewise.drift.centroid import centroid
from statewise.drift.comparison import Comparison, draw_signs, permutation_p_value
from statewise.drift.features import StateFeatures
from statewise.drift.jaccard import jaccard
from statewise.drift.sliced_wasserstein import draw_projections, sliced_wasserstein


def on_vectors(x, y, projections=None):
    no_ngrams = (frozenset(),) * len(x)
    directions = np.eye(x.shape[-1]) if projections is None else projections
    return Comparison(StateFeatures(x, no_ngrams), StateFeatures(y, no_ngrams), 1.0, directions, np.arange(len(x)))


def on_ngrams(x, y):
    nowhere = np.zeros((len(x), 1, 1))
    samples = (StateFeatures(nowhere, tuple(frozenset(s) for s in sample)) for sample in (x, y))
    return Comparison(*samples, 1.0, np.ones((1, 1)), np.arange(len(x)))


def test_centroid_by_hand():
    # Mean of x: (0 + 2 + 4 + 6) / 4 = 3 and 0; of y: 0 and 4. Distance sqrt(9 + 16) = 5.
    # With pair 2 swapped: x holds (0, 2) and y2 = (0, 4)s: means (0.5, 2) and (2.5, 2). Distance 2.
    x = np.array([[[0.0, 0.0], [2.0, 0.0]], [[4.0, 0.0], [6.0, 0.0]]])
    y = np.full((2, 2, 2), [0.0, 4.0])
    assert centroid(on_vectors(x, y), np.array([[1.0, 1.0], [1.0, -1.0]])) == pytest.approx([5, 2])


def test_sliced_wasserstein_by_hand():
    # Directions (1, 0) and (0, 1). First: (0, 1) against (1, 3): ((0-1)^2 + (1-3)^2) / 2 = 2.5. Second: (0, 0) against
    # (2, 2): 4. sqrt((2.5 + 4) / 2) = sqrt(3.25).
    x, y = np.array([[[1.0, 0.0]], [[0.0, 0.0]]]), np.array([[[1.0, 2.0]], [[3.0, 2.0]]])
    assert sliced_wasserstein(on_vectors(x, y), np.ones((1, 2))) == pytest.approx([3.25**0.5])


# POT 0.9.7 has a docstring that Python warns about when it compiles the file.
@pytest.mark.filterwarnings("ignore:.*invalid escape sequence")
def test_sliced_wasserstein_equals_pot_for_every_swap():
    import ot

    x, y = np.random.default_rng(0).normal(size=(2, 12, 3, 5))
    projections, signs = draw_projections(5, 20, key=9), draw_signs(6, 12, key=9)
    expected = []
    for row in signs:
        swapped = (row < 0)[:, None, None]
        first, second = np.where(swapped, y, x), np.where(swapped, x, y)
        expected.append(
            ot.sliced_wasserstein_distance(first.reshape(-1, 5), second.reshape(-1, 5), projections=projections)
        )
    assert sliced_wasserstein(on_vectors(x, y, projections), signs) == pytest.approx(np.array(expected), abs=1e-12)


def test_projections_have_length_one_and_repeat_with_the_key():
    projections = draw_projections(256, 50, key=1)
    assert np.linalg.norm(projections, axis=0) == pytest.approx(np.ones(50))
    assert np.array_equal(projections, draw_projections(256, 50, key=1))
    assert not np.array_equal(projections, draw_projections(256, 50, key=2))


def test_jaccard_by_hand():
    # A = {1, 2, 3}, B = {2, 3, 4, 5}: 1 - 2/5. With pair 2 swapped: A = {1, 2} + {4, 5}, B = {2, 3} + {3}: 1 - 1/5.
    comparison = on_ngrams([{(1,), (2,)}, {(3,)}], [{(2,), (3,)}, {(4,), (5,)}])
    assert jaccard(comparison, np.array([[1.0, 1.0], [1.0, -1.0]])) == pytest.approx([0.6, 0.8])


def test_jaccard_of_disjoint_words_is_one_and_of_no_words_zero():
    assert jaccard(on_ngrams([{(1,)}, {(2,)}], [{(3,)}, set()]), np.ones((1, 2))) == pytest.approx([1])
    assert jaccard(on_ngrams([set(), set()], [set(), set()]), np.ones((3, 2))).tolist() == [0, 0, 0]


def test_jaccard_does_not_depend_on_memory_blocks(monkeypatch):
    from statewise.drift import jaccard as jaccard_module

    rng = np.random.default_rng(3)
    x, y = ([{(int(t),) for t in rng.integers(0, 40, size=5)} for _ in range(10)] for _ in range(2))
    signs = draw_signs(30, 10, key=0)
    whole = jaccard(on_ngrams(x, y), signs)
    monkeypatch.setattr(jaccard_module, "BLOCK_ENTRIES", 100)
    assert np.array_equal(jaccard(on_ngrams(x, y), signs), whole)


@pytest.mark.parametrize("distance", [centroid, sliced_wasserstein])
def test_test_has_its_level_on_dependent_data(distance):
    rng = np.random.default_rng(4)
    p_values = []
    for key in range(500):
        x, y = rng.normal(scale=3.0, size=(15, 1, 2)) + rng.normal(size=(2, 15, 1, 2)) + np.zeros((2, 15, 3, 2))
        p_values.append(permutation_p_value(distance(on_vectors(x, y), draw_signs(99, 15, key))))
    # 500 draws: the standard error at .05 is .01.
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.03)
