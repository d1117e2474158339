"""TSV-M, Iso-C and Iso-CTS against the papers' algorithms on dense matrices in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.merging.adapters import dense, gap, product, random_stack, rotate, run, stack_of


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vh


def orthonormal(columns: Tensor) -> Tensor:
    u, _, vh = svd(columns)
    return u @ vh


def dense_tsv(deltas: list[Tensor], k: int) -> Tensor:
    parts = [svd(delta) for delta in deltas]
    u, v = (
        orthonormal(torch.cat([p[0][:, :k] for p in parts], 1)),
        orthonormal(torch.cat([p[2][:k] for p in parts]).T),
    )
    return u * torch.cat([p[1][:k] for p in parts]) @ v.T


def dense_iso_cts(deltas: list[Tensor], total: int, fraction: float) -> Tensor:
    u, s, vh = svd(torch.stack(deltas).sum(0))
    values = min(total // len(deltas), round((total - int(total * fraction)) / len(deltas)))
    common = total - values * len(deltas)
    us, ss, vs = [u[:, :common]], [s[:common]], [vh[:common]]
    for delta in deltas:
        own = svd(delta - us[0] @ us[0].T @ delta)
        us.append(own[0][:, :values])
        ss.append(own[1][:values])
        vs.append(own[2][:values])
    return torch.cat(ss).mean() * orthonormal(torch.cat(us, 1)) @ orthonormal(torch.cat(vs).T).T


def test_cases_worked_by_hand() -> None:
    # 3 e1 e1^T and 4 e2 e2^T: nothing interferes. TSV-M is the sum; Iso-C has the mean 3.5 twice.
    stack = stack_of(([[3.0, 0.0]], [[1.0], [0.0]]), ([[0.0, 2.0]], [[0.0], [2.0]]))
    torch.testing.assert_close(product(run("tsv-m", stack)).diagonal(), torch.tensor([3.0, 4.0]).double())
    torch.testing.assert_close(product(run("iso-c", stack)), 3.5 * torch.eye(2).double())
    # Two updates with one left vector e1 and right vectors e1, e2: U = [e1 e1] becomes e1 [1 1] / sqrt 2.
    shared = stack_of(([[2.0, 0.0]], [[1.0], [0.0]]), ([[0.0, 2.0]], [[1.0], [0.0]]))
    expected = torch.tensor([[2**0.5, 2**0.5], [0.0, 0.0]]).double()
    torch.testing.assert_close(product(run("tsv-m", shared)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("components", [0, 1, 2])
def test_tsv_is_the_algorithm_on_dense_matrices(components: int) -> None:
    stack = random_stack([3, 2, 4], 40, 30)
    # 0: width 30 over 3 members is 10, more than any of them has.
    expected = dense_tsv(dense(stack), components) if components else None
    if expected is None:
        parts = [svd(delta) for delta in dense(stack)]
        u = orthonormal(torch.cat([p[0][:, :r] for p, r in zip(parts, (3, 2, 4), strict=True)], 1))
        v = orthonormal(torch.cat([p[2][:r] for p, r in zip(parts, (3, 2, 4), strict=True)]).T)
        values = torch.cat([p[1][:r] for p, r in zip(parts, (3, 2, 4), strict=True)])
        expected = u * values @ v.T
    assert gap(run("tsv-m", stack, components=components), expected) < 1e-5


def test_iso_c_is_the_algorithm_on_dense_matrices() -> None:
    stack = random_stack([3, 2], 40, 30)
    u, s, vh = svd(2 * dense(stack)[0] - dense(stack)[1])
    isotropic = u[:, :5] @ vh[:5]
    assert gap(run("iso-c", stack, [2, -1]), isotropic * s[:5].mean()) < 1e-5
    assert gap(run("iso-c", stack, [2, -1], over="width"), isotropic * s[:5].sum() / 30) < 1e-5
    cut = run("iso-c", stack, [2, -1], rank=2)
    assert gap(cut, u[:, :2] @ vh[:2] * s[:5].mean()) < 1e-5
    assert cut.discarded == pytest.approx(3 * float(s[:5].mean()) ** 2, rel=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.8, 1.0])
def test_iso_cts_is_the_algorithm_on_dense_matrices(fraction: float) -> None:
    stack = random_stack([4, 4], 40, 30)
    expected = dense_iso_cts(dense(stack), 8, fraction)
    assert gap(run("iso-cts", stack, common=fraction), expected) < 1e-5
    for total in (6, 3, 1):
        result = run("iso-cts", stack, rank=total, common=fraction)
        assert result.a.shape[0] <= total
        assert gap(result, dense_iso_cts(dense(stack), total, fraction)) < 1e-5


@pytest.mark.parametrize("method", ["tsv-m", "iso-c", "iso-cts"])
def test_neither_gauge_nor_order_matters(method: str) -> None:
    stack = random_stack([3, 2, 4], 40, 30)
    first, second, third = stack.ranges()
    turned = stack_of(*[(stack.a[p], stack.b[:, p]) for p in (third, first, second)])
    left = run(method, stack, [1, 2, -0.5], scale=0.7)
    assert gap(run(method, rotate(stack, orthogonal=False), [1, 2, -0.5], scale=0.7), product(left)) < 1e-3
    assert gap(run(method, turned, [-0.5, 1, 2], scale=0.7), product(left)) < 1e-4


def test_copies_and_single_members() -> None:
    """TSV-M gives one adapter back, alone or in copies; the isotropic methods flatten it."""
    item = random_stack([3], 40, 30)
    many = stack_of(*[(item.a, item.b)] * 4)
    u, s, vh = svd(dense(item)[0])
    flat = s[:3].mean() * u[:, :3] @ vh[:3]
    assert gap(run("tsv-m", item), dense(item)[0]) < 1e-5
    assert gap(run("tsv-m", many), dense(item)[0]) < 1e-5
    assert run("tsv-m", many).a.shape[0] == 3
    for method in ("iso-c", "iso-cts"):
        assert gap(run(method, item), flat) < 1e-5
        assert gap(run(method, many, [0.25] * 4), flat) < 1e-5


def authors_iso_cts(deltas: list[Tensor], fraction: float) -> Tensor:
    """The published code on dense matrices: spaces and the mean count the layer's width."""
    width, count = min(deltas[0].shape), len(deltas)
    specific = round((width - int(width * fraction)) / count) * count
    u, s, vh = svd(torch.stack(deltas).sum(0))
    common, values = width - specific, specific // count
    us, ss, vs = [], [], []
    for delta in deltas:
        own = svd(delta - u[:, :common] @ u[:, :common].T @ delta)
        us.append(own[0][:, :values])
        ss.append(own[1][:values])
        vs.append(own[2][:values])
    us, ss, vs = [*us, u[:, :common]], [*ss, s[:common]], [*vs, vh[:common]]
    return torch.cat(ss).mean() * orthonormal(torch.cat(us, 1)) @ orthonormal(torch.cat(vs).T).T


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8, 1.0])
def test_iso_cts_over_the_width_is_the_published_code(fraction: float) -> None:
    # The members' ranks add up to the width, so that no direction of the dense SVD is arbitrary.
    stack = random_stack([5, 5], 14, 10)
    result = run("iso-cts", stack, common=fraction, over="width")
    assert gap(result, authors_iso_cts(dense(stack), fraction)) < 1e-5
    # The default is the same where rank and width are.
    assert gap(run("iso-cts", stack, common=fraction), product(result)) < 1e-5


def test_iso_cts_over_the_width_has_the_scale_of_the_width() -> None:
    """Of members far below the width all directions of the sum are common, and the mean is over the width."""
    stack = random_stack([3, 2], 40, 30)
    u, s, vh = svd(torch.stack(dense(stack)).sum(0))
    expected = u[:, :5] @ vh[:5] * s[:5].sum() / 30
    assert gap(run("iso-cts", stack, over="width"), expected) < 1e-5
    assert gap(run("iso-cts", stack, over="width"), product(run("iso-c", stack, over="width"))) < 1e-5
    cut = run("iso-cts", stack, rank=2, over="width")
    assert gap(cut, u[:, :2] @ vh[:2] * s[:5].sum() / 30) < 1e-5
    assert cut.discarded == pytest.approx(3 * float(s[:5].sum() / 30) ** 2, rel=1e-5)


def test_more_directions_than_the_width_are_truncated() -> None:
    """Opposite members: the sum is 0 but for the third, each has directions of its own, 3 + 3 + 4 of 4."""
    item, other = random_stack([3], 8, 4), random_stack([4], 8, 4, seed=1)
    stack = stack_of((item.a, item.b), (item.a, -item.b), (other.a, 1e-3 * other.b))
    result = run("iso-cts", stack, common=0.0, over="width", rank=2)
    assert result.a.shape[0] == 2
    assert torch.isfinite(product(result)).all()
    assert 0 < result.discarded < (result.energy or 0)


def test_a_member_that_is_zero_has_no_directions() -> None:
    # 3 e1 e1^T, and two members whose update is 0: by B, and by rows of A where B is 0.
    item = ([[3.0, 0.0]], [[1.0], [0.0]])
    zeros = ([[5.0, 7.0]], [[0.0], [0.0]]), ([[0.0, 0.0], [1.0, 2.0]], [[4.0, 0.0], [6.0, 0.0]])
    expected = torch.tensor([[3.0, 0.0], [0.0, 0.0]]).double()
    for method in ("tsv-m", "iso-c", "iso-cts"):
        torch.testing.assert_close(product(run(method, stack_of(item, *zeros))), expected)
