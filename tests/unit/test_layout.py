"""Points for vectors, and places for names: who is near is near, and nothing covers a name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import UsageError
from catalog.pictures.positions import FEWEST, layout, layout_blocks, leader, name_places

pytestmark = pytest.mark.slow


def groups(count: int, of: int, dimensions: int = 64, noise: float = 0.5, seed: int = 0) -> tuple[Any, Any]:
    """Vectors in groups around random directions, of very different lengths; and the group of each."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(of, dimensions))
    group = np.arange(count) % of
    vectors = centres[group] + noise * generator.normal(size=(count, dimensions))
    return vectors * np.exp(2 * generator.normal(size=(count, 1))), group


def nearest(points: Any, count: int) -> Any:
    apart = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    np.fill_diagonal(apart, np.inf)
    return apart.argsort(axis=1)[:, :count]


def test_few_vectors_keep_their_distances() -> None:
    """Three unit vectors lie in a plane: their points are as far apart as 2 - 2 cos says."""
    vectors = np.array([[3.0, 0, 0], [0, 0.2, 0], [1, 1, 1]])
    points = layout(vectors)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    squares = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    assert squares == pytest.approx(2 - 2 * units @ units.T, abs=1e-6)


def test_few_vectors_are_where_scikit_learn_projects_them() -> None:
    from sklearn.decomposition import PCA

    vectors, _ = groups(FEWEST - 1, of=FEWEST - 1)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = PCA(2).fit_transform(units)
    points = layout(vectors)
    assert np.abs(points) == pytest.approx(np.abs(expected), abs=1e-6)
    assert (np.abs(points).max(axis=0) == points.max(axis=0)).all()


def test_neighbours_on_the_map_are_neighbours_by_cosine() -> None:
    vectors, group = groups(80, of=8)
    result = group[nearest(layout(vectors), 5)]
    assert (result == group[:, None]).mean() > 0.98


def test_twins_stand_together_among_unrelated_vectors() -> None:
    """Two of a pair have a cosine of about 0.4, all others about 0, as adapters of one task and two seeds."""
    generator = np.random.default_rng(1)
    shared = np.repeat(generator.normal(size=(30, 512)), 2, axis=0)
    vectors = 0.8 * shared + generator.normal(size=(60, 512))
    assert (nearest(layout(vectors), 1)[:, 0] == np.arange(60) ^ 1).mean() > 0.9


def test_only_directions_count() -> None:
    vectors, _ = groups(30, of=3)
    powers = 2.0 ** np.random.default_rng(0).integers(-90, 90, (30, 1))
    assert (layout(vectors * powers) == layout(vectors)).all()


def test_the_same_each_time_and_other_with_another_seed() -> None:
    vectors, _ = groups(40, of=4)
    before = vectors.copy()
    first = layout(vectors, seed=3)
    assert (layout(vectors, seed=3) == first).all()
    assert (vectors == before).all()
    assert first.dtype == np.float64


def test_vectors_without_a_direction_have_no_place_and_move_nobody() -> None:
    vectors, _ = groups(20, of=2)
    spoilt = np.insert(vectors, [0, 7, 7, 20], 0, axis=0)
    spoilt[8, 3] = np.nan
    spoilt[9, 3] = np.inf
    points = layout(spoilt)
    placed = np.isfinite(points).all(axis=1)
    assert np.flatnonzero(~placed).tolist() == [0, 8, 9, 23]
    assert (points[placed] == layout(vectors)).all()


@pytest.mark.parametrize(
    "vectors",
    [
        pytest.param(np.zeros((0, 5)), id="none"),
        pytest.param(np.ones((1, 5)), id="one"),
        pytest.param(np.eye(2), id="two"),
        pytest.param(np.ones((30, 5)), id="equal"),
        pytest.param(np.repeat(np.eye(2), 20, axis=0), id="two-places"),
        pytest.param(np.linspace(-1, 1, 30)[:, None], id="one-dimension"),
        pytest.param(np.eye(30), id="orthogonal"),
        pytest.param(groups(30, of=3)[0].astype(np.float32) * np.float32(1e30), id="large"),
        pytest.param(groups(30, of=3)[0] * 1e300, id="huge"),
        pytest.param(groups(30, of=3)[0] * 1e-300, id="tiny"),
        pytest.param(groups(30, of=3)[0].astype(np.float16), id="half-precision"),
        pytest.param(np.arange(60).reshape(30, 2) + 1, id="integers"),
    ],
)
def test_every_matrix_has_a_layout(vectors: Any) -> None:
    points = layout(vectors)
    assert points.shape == (len(vectors), 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("vectors", [np.zeros(3), np.zeros((2, 2, 2))])
def test_anything_but_a_matrix_is_refused(vectors: Any) -> None:
    with pytest.raises(UsageError):
        layout(vectors)


def test_equal_vectors_of_few_are_one_point() -> None:
    assert layout(np.ones((FEWEST - 1, 4))).tolist() == [[0.0, 0.0]] * (FEWEST - 1)


def test_more_vectors_than_landmarks_join_their_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.pictures.positions.LANDMARKS", 60)
    monkeypatch.setattr("catalog.pictures.positions._CHUNK", 7)
    vectors, group = groups(300, of=6)
    vectors[150] = vectors[151]
    points = layout(vectors)
    assert points[150] == pytest.approx(points[151], abs=1e-3)
    assert (group[nearest(points, 5)] == group[:, None]).mean() > 0.98
    assert (layout(vectors) == points).all()
    # The sample is drawn by the seed.
    assert not (layout(vectors, seed=1) == points).all()


@pytest.mark.parametrize("count", [1, 9, 40, 90])
def test_blocks_have_the_layout_of_their_matrix(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("catalog.pictures.positions.LANDMARKS", 60)
    vectors, _ = groups(count, of=6)
    vectors[0] = 0
    blocks = iter([vectors[:5], vectors[5:5], vectors[5:8], vectors[8:]])
    assert np.array_equal(layout_blocks(blocks), layout(vectors), equal_nan=True)


def test_no_blocks_have_no_points() -> None:
    assert layout_blocks(iter(())).shape == (0, 2)


# Names.

BOX = (400.0, 300.0)


@given(
    st.lists(
        st.tuples(st.floats(0, BOX[0]), st.floats(0, BOX[1]), st.floats(1, 110), st.floats(5, 12)),
        max_size=14,
    )
)
def test_names_cover_neither_each_other_nor_the_edge(drawn: list[tuple[float, float, float, float]]) -> None:
    points = np.array([row[:2] for row in drawn]).reshape(-1, 2)
    sizes = [(row[2], row[3]) for row in drawn]
    corners = name_places(points, sizes, BOX)
    assert len(corners) == len(drawn)
    placed = [(np.array(c), np.array(s), p) for c, s, p in zip(corners, sizes, points, strict=True) if c]
    for i, (corner, size, _) in enumerate(placed):
        assert (corner >= 0).all()
        assert (corner + size <= BOX).all()
        for other, extent, _ in placed[:i]:
            assert (np.minimum(corner + size, other + extent) - np.maximum(corner, other)).min() <= 1e-9
    for i, (corner, size, point) in enumerate(placed):
        end = leader(point, np.array([*corner, *(corner + size)]))
        along = point + np.linspace(0.001, 0.999, 400)[:, None] * (end - point)
        for j, (other, extent, _) in enumerate(placed):
            inside = ((along > other + 1e-6) & (along < other + extent - 1e-6)).all(axis=1)
            assert i == j or not inside.any()


def test_a_name_alone_stands_at_the_right_of_its_point() -> None:
    ((x, y),) = [place for place in name_places(np.array([[100.0, 100]]), [(60, 8)], BOX) if place]
    assert (x, y) == pytest.approx((104.5, 96))


def test_a_name_at_the_right_edge_stands_at_the_left() -> None:
    ((x, _),) = [place for place in name_places(np.array([[395.0, 100]]), [(60, 8)], BOX) if place]
    assert x + 60 == pytest.approx(390.5)


def test_spread_points_all_have_their_names() -> None:
    points = np.stack(np.meshgrid(np.linspace(20, 380, 5), np.linspace(10, 290, 12)), axis=-1).reshape(-1, 2)
    assert None not in name_places(points, [(55.0, 8.4)] * 60, BOX)


def test_a_name_wider_than_the_box_is_left_out() -> None:
    assert name_places(np.array([[100.0, 100.0]]), [(500.0, 8.0)], BOX) == [None]


def test_points_at_one_place_have_as_many_names_as_there_is_room_for() -> None:
    corners = name_places(np.full((60, 2), 150.0), [(80.0, 8.4)] * 60, BOX)
    assert 3 <= sum(corner is not None for corner in corners) < 60
