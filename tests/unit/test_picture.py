"""Pictures say what the numbers say, draw whatever the Hub names, and are the same each time."""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import StorageError, UsageError
from catalog.pictures import canvas
from catalog.pictures.adapter import MOST_ROWS, adapter_figure, adapter_picture
from catalog.pictures.map import MOST_NAMES, MOST_VECTORS, map_figure, map_picture
from catalog.pictures.merge import merge_figure, merge_picture

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TYPES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HOSTILE = [
    "$\\frac{1}{2}$",
    "$\\undefined{",
    "a_b^c$x$ \\$5",
    "作者/模型",
    "tab\tline\nbreak\x1b[31m\x00",
    "\u202eturned\u2066",
    "half a pair \ud800",
    "e" + "\u0301" * 200,
    "--> <script>alert(1)</script> <!--",
    "_starts_with_underscore",
    "%s{}%(name)s",
    "العربية עברית हिन्दी 🤗",
    "",
    " ",
    "x" * 1000,
    "W" * 1000,
    "\\input{/etc/passwd}",
]


def layers(count: int, types: Sequence[str] = TYPES) -> list[str]:
    return [f"model.layers.{layer}.block.{kind}" for layer in range(count) for kind in types]


def spectra(count: int, seed: int = 0, rank: int = 16) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = np.sort(np.random.default_rng(seed).gamma(2.0, 1.0, (count, rank)))[:, ::-1]
    norm = np.sqrt((values**2).sum(axis=1, keepdims=True))
    return np.concatenate([norm, values[:, :7]], axis=1).astype(np.float32)


def texts(figure: Any) -> list[str]:
    """Every text of a figure that is seen, as matplotlib will draw it."""
    return [text.get_text() for text in visible(figure)]


def visible(figure: Any) -> Iterator[Any]:
    from matplotlib.text import Text

    figure.canvas.draw()
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text() and np.any(text.get_window_extent().size > 0):
            yield text


def check_texts(figure: Any) -> None:
    """No text leaves the paper, and none covers another."""
    with canvas.settings():
        result = [(text.get_text(), text.get_window_extent()) for text in visible(figure)]
    width, height = figure.canvas.get_width_height()
    for text, box in result:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    for i, (text, box) in enumerate(result):
        for other, neighbour in result[:i]:
            shared = np.minimum(box.max, neighbour.max) - np.maximum(box.min, neighbour.min)
            # A pixel is what boxes of neighbouring lines share that nobody sees.
            assert shared.min() < 1.5, (text, other)


def cells(figure: Any) -> list[np.ndarray[Any, Any]]:
    """The values of the heat maps, column of no layer first; NaN where a cell has none."""
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import to_hex

    heat_maps = [axes for axes in figure.axes if to_hex(axes.get_facecolor()) == "#eeeeee"]
    meshes = [mesh for axes in heat_maps for mesh in axes.findobj(QuadMesh)]
    return [np.ma.filled(mesh.get_array(), np.nan) for mesh in meshes]


# One adapter.


def test_a_case_worked_by_hand() -> None:
    """Two layers, q and v; singular values (3, 1), so ||BA||^2 = 10 and the stable rank is 10 / 9."""
    row = [math.sqrt(10), 3, 1, 0, 0, 0, 0, 0]
    modules = layers(2, ("v_proj", "q_proj"))
    figure = adapter_figure("owner/name", modules, np.array([row] * 4), [1.0, 2.0, 3.0, -4.0])
    (norms,) = cells(figure)
    assert norms == pytest.approx(math.sqrt(10) * np.array([[2, 4], [1, 3]]))  # q_proj above v_proj
    written = texts(figure)
    assert written.index("q_proj") < written.index("v_proj")
    assert "4 modules  ·  2 layers  ·  scaling s from −4 to 3  ·  norm of the whole update 17.3" in written
    assert written.count("1.11 (1.11–1.11)") == 2
    # The ratios stop where the singular values do: 1 and 1/3 at the indices 1 and 2.
    spectrum = figure.axes[-1]
    assert list(spectrum.get_xticks()) == [1, 2]
    assert spectrum.lines[-1].get_ydata() == pytest.approx([1, 1 / 3])


def test_median_and_range_are_those_of_the_type() -> None:
    rows = np.array([[math.hypot(1, x), 1, x] for x in (0.2, 0.4, 0.9)])
    figure = adapter_figure("a", layers(3, ("q_proj",)), rows, [1.0] * 3)
    axes = figure.axes[-1]
    assert axes.lines[-1].get_ydata() == pytest.approx([1, 0.4])
    segments = axes.collections[0].get_segments()
    assert [tuple(segment[:, 1]) for segment in segments] == [(1, 1), pytest.approx((0.2, 0.9))]
    assert "1.16 (1.04–1.81)" in texts(figure)


def test_modules_that_share_a_cell_are_one_norm() -> None:
    modules = [f"model.layers.0.experts.{expert}.w1" for expert in range(2)]
    figure = adapter_figure("moe", modules, np.array([[3.0, 3.0], [4.0, 4.0]]), [1.0, 1.0])
    assert cells(figure)[0].tolist() == [[5.0]]
    assert any("together" in text for text in texts(figure))


def test_modules_without_a_layer_stand_apart() -> None:
    modules = ["lm_head", "model.embed_tokens", *layers(3)]
    figure = adapter_figure("heads", modules, spectra(len(modules)), [1.0] * len(modules))
    apart, inside = cells(figure)
    assert (apart.shape, inside.shape) == ((9, 1), (9, 3))
    assert np.isfinite(apart[-2:]).all()
    assert np.isnan(apart[:-2]).all()
    assert np.isnan(inside[-2:]).all()
    assert {"none", "no module"} <= set(texts(figure))


def test_rows_that_are_not_finite_are_hatched_and_counted() -> None:
    from matplotlib.patches import Rectangle

    rows = spectra(14)
    rows[3] = np.nan
    figure = adapter_figure("nan", layers(2), rows, [1.0] * 13 + [math.inf])
    hatched = [patch for patch in figure.axes[0].findobj(Rectangle) if patch.get_hatch()]
    assert [patch.get_xy() for patch in hatched] == [(-0.5, 2.5), (0.5, 5.5)]
    (norms,) = cells(figure)
    assert np.argwhere(np.isnan(norms)).tolist() == [[3, 0], [6, 1]]
    assert any("2 not finite" in text for text in texts(figure))
    assert "no module" not in texts(figure)
    # The one finite o_proj is left: its stable rank has no range.
    assert f"{(rows[10, 0] / rows[10, 1]) ** 2:.2f}" in texts(figure)


def test_zero_modules_are_counted_and_have_no_spectrum() -> None:
    rows = spectra(7)
    rows[0] = 0
    figure = adapter_figure("zero", layers(1), rows, [1.0] * 7)
    assert any("1 zero" in text for text in texts(figure))
    assert "–" in texts(figure)
    assert cells(figure)[0][0, 0] == 0


def test_the_rarer_of_many_types_share_the_last_row() -> None:
    letters = "abcdefghijklmnop"
    names = [f"model.layers.{i}.{kind}" for kind in letters for i in range(3 if kind == "k" else 2)]
    figure = adapter_figure("many", [*names, *layers(1)], spectra(len(names) + 7), [1.0] * (len(names) + 7))
    (norms,) = cells(figure)
    assert len(norms) == MOST_ROWS
    rows = [text for text in texts(figure) if text in (*TYPES, *letters) or "other" in text]
    assert rows == [*TYPES, "a", "k", "14 other types"]


def test_layers_far_apart_have_no_columns_between_them() -> None:
    names = ["layers.5.q_proj", "layers.900000.q_proj", "layers.6.q_proj"]
    figure = adapter_figure("gaps", names, spectra(3), [1.0] * 3)
    assert cells(figure)[0].shape == (1, 3)
    assert {"5", "6", "900000"} <= set(texts(figure))
    figure = adapter_figure("gap", ["layers.5.q_proj", "layers.8.q_proj"], spectra(2), [1.0] * 2)
    assert np.isnan(cells(figure)[0]).tolist() == [[False, True, True, False]]


ADAPTERS: dict[str, tuple[list[str], Any, list[float]]] = {
    "8b": (["lm_head", "model.embed_tokens", *layers(32)], spectra(226), [2.0] * 226),
    "405b": (layers(126), spectra(882), [0.25] * 882),
    "one-module": (["model.layers.3.self_attn.q_proj"], spectra(1), [1.0]),
    "one-layer": ([name.replace(".0.", ".17.") for name in layers(1)], spectra(7), [1.0] * 7),
    "no-layer": (["lm_head", "embed_tokens"], spectra(2), [1.0] * 2),
    "nothing-finite": (layers(2), np.full((14, 8), np.nan), [1.0] * 14),
    "nothing-but-zero": (layers(2), np.zeros((14, 8)), [1.0] * 14),
    "alpha-zero": (layers(2), spectra(14), [0.0] * 14),
    "rank-one": (layers(4), spectra(28, rank=7) * [1, 1, 0, 0, 0, 0, 0, 0], [1.0] * 28),
    "only-the-largest": (layers(4), spectra(28)[:, :2], [1.0] * 28),
    "huge": (layers(4), spectra(28) * 1e30, [1e6] * 28),
    "beyond-float": (layers(4), spectra(28).astype(float) * 1e300, [1e300] * 28),
    "tiny": (layers(4), spectra(28) * 1e-30, list(np.geomspace(1e-9, 1, 28))),
    "negative-scalings": (layers(4), spectra(28), [-2.0] * 28),
    "900-modules": (
        [f"m.{i}.{HOSTILE[i % 14].replace('.', '')}" for i in range(900)],
        spectra(900) * np.geomspace(1, 1e4, 900)[:, None],
        [1.0] * 900,
    ),
    "900-types": ([f"m.3.{'type' * 30}{i}x" for i in range(900)], spectra(900), [1.0] * 900),
    "names-of-nothing": (["", ".", "..", "7", "7.7", "½.²"], spectra(6), [1.0] * 6),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_every_adapter_has_a_picture_without_overlaps(case: str, tmp_path: Path) -> None:
    modules, rows, scalings = ADAPTERS[case]
    figure = adapter_figure("someone/adapter", modules, rows, scalings)
    check_texts(figure)
    path = tmp_path / "picture.svg"
    canvas.save(figure, path, "someone/adapter")
    ElementTree.parse(path)
    assert path.stat().st_size < 3_000_000


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_drawn_as_they_are(name: str) -> None:
    from matplotlib.text import Text

    modules = [f"layers.0.{name}", "layers.0.q_proj"]
    for figure in (
        adapter_figure(name, modules, spectra(2), [1.0] * 2),
        map_figure(np.eye(2), [name] * 2, [name] * 2, name, name, True),
    ):
        check_texts(figure)
        for text in figure.findobj(Text):
            assert text.get_text().isprintable()
            assert text.get_parse_math() is False or "$" not in text.get_text()


@pytest.mark.parametrize("suffix", canvas.SUFFIXES)
def test_hostile_names_are_saved_in_every_format(suffix: str, tmp_path: Path) -> None:
    places = np.random.default_rng(0).normal(size=(len(HOSTILE), 2))
    path = tmp_path / f"map{suffix}"
    for title in (HOSTILE[4] + HOSTILE[6] + HOSTILE[8], HOSTILE[11]):
        map_picture(places, HOSTILE, HOSTILE, title, HOSTILE[0], path, True)
    if suffix == ".svg":
        written = path.read_text(encoding="utf-8")
        tags = {str(node.tag).rpartition("}")[2] for node in ElementTree.fromstring(written).iter()}
        assert {"svg", "path"} <= tags
        assert "script" not in tags
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\u2066\ud800]", written)


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("owner/name-1.0_x", "owner/name-1.0_x"),
        ("$x$ \\n", "$x$ \\n"),
        ("a\nb\x1b\x00", "a\\nb\\x1b\\x00"),
        ("模", "\\u6a21"),
        ("\u202ex\u200b", "\\u202ex\\u200b"),
        ("e\u0301", "é"),
        ("x\u0336", "x\\u0336"),
        ("\ud800", "\\ud800"),
        ("🤗", "\\U0001f917"),
        ("ÄÖß Жш αβ ‖", "ÄÖß Жш αβ ‖"),
    ],
)
def test_what_cannot_be_drawn_is_escaped(text: str, drawn: str) -> None:
    assert canvas.plain(text) == drawn


@given(st.text(max_size=500), st.floats(15, 300))
def test_a_fitted_text_fits_and_keeps_both_ends(text: str, width: float) -> None:
    fitted = canvas.fit_text(text, width)
    assert canvas.extent(fitted, canvas.TEXT)[0] <= width
    assert fitted.isprintable()
    complete = canvas.plain(text)
    if fitted != complete:
        head, _, tail = fitted.rpartition("…")
        assert complete.startswith(head)
        assert complete.endswith(tail)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"),
        (4, "4"),
        (128, "128"),
        (0.5, "0.5"),
        (-7.25, "−7.25"),
        (3.14159, "3.14"),
        (9.996, "10"),
        (0.00123, "0.00123"),
        (12345, "12,300"),
        (949000, "949,000"),
        (1e9, "10⁹"),
        (1.234e-12, "1.23×10⁻¹²"),
        (1e150, "10¹⁵⁰"),
    ],
)
def test_numbers_have_three_figures(value: float, written: str) -> None:
    assert canvas.number(value) == written


@pytest.mark.parametrize(
    ("values", "logarithmic", "arrow", "limits"),
    [
        pytest.param([1, 2, 4], False, "neither", (0, 4), id="narrow"),
        pytest.param([1, 2, 8], True, "neither", (1, 8), id="wide"),
        pytest.param([0, 1, 8], True, "min", (1, 8), id="zero-and-wide"),
        pytest.param([-1, 0.01, 9], False, "neither", (-1, 9), id="signs"),
        pytest.param([0, 0], False, "neither", (0, 1), id="zero"),
        pytest.param([4, 4], False, "neither", (0, 4), id="one-value"),
        pytest.param([-1e308, 1e308], False, "neither", (-1e150, 1e150), id="huge"),
        pytest.param([5e-324, 1e308], True, "min", (1e-150, 1e150), id="widest"),
    ],
)
def test_colour_scales(
    values: list[float], logarithmic: bool, arrow: str, limits: tuple[float, float]
) -> None:
    output, scale, at = canvas.colour_scale(np.array(values))
    assert (type(scale).__name__ == "LogNorm", at) == (logarithmic, arrow)
    assert (scale.vmin, scale.vmax) == pytest.approx(limits)
    placed = np.asarray(scale(output))
    assert np.all((placed >= 0) & (placed <= 1))
    assert np.all(np.diff(placed) >= 0)


# Many adapters.


def clusters(count: int, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    centres = generator.normal(0, 8, (5, 2))
    return centres[generator.integers(0, 5, count)] + generator.normal(size=(count, 2))


def test_the_most_frequent_categories_have_a_colour_and_the_rest_is_grey() -> None:
    colours = [f"owner{i}" for i in range(12) for _ in range(12 - i)] + [None] * 3
    figure = map_figure(clusters(81), ["x"] * 81, colours, "Title", "owner", False)
    written = texts(figure)
    legend = written[written.index("owner") + 1 :]
    assert legend[:9] == [f"owner{i} ({12 - i})" for i in range(9)]
    assert legend[9:11] == ["3 others (6)", "unknown (3)"]
    samples = {
        tuple(group.get_facecolor()[0][:3]): len(group.get_offsets()) for group in figure.axes[0].collections
    }
    assert len(samples) == 11
    assert sorted(samples.values()) == sorted([*range(4, 13), 6, 3])


def test_numbers_have_a_bar_whose_ticks_are_the_ranks() -> None:
    ranks: list[float | None] = [4, 8, 16, 32, 64, 128, None, math.nan] * 3
    figure = map_figure(clusters(24), ["x"] * 24, ranks, "Title", "rank", False)
    assert {"4", "8", "16", "32", "64", "128", "unknown (6)"} <= set(texts(figure))
    unknown, names = figure.axes[0].collections
    assert (len(unknown.get_offsets()), len(names.get_offsets())) == (6, 18)


def test_a_colour_belongs_to_its_point() -> None:
    points = clusters(900)
    figure = map_figure(points, ["x"] * 900, (points[:, 0] - 100).tolist(), "Title", "x", False)
    names = figure.axes[0].collections[-1]
    samples, values = np.asarray(names.get_offsets())[:, 0], np.asarray(names.get_array())
    assert np.corrcoef(samples, values)[0, 1] == pytest.approx(1)
    middle = float(np.median(points[:, 0]))
    words = ["left" if x < middle else "right" for x in points[:, 0]]
    (both,) = map_figure(points, ["x"] * 900, words, "Title", "side", False).axes[0].collections
    left = np.asarray(both.get_offsets())[:, 0].argsort()[:450]
    reds = both.get_facecolor()[:, 0]
    assert len(set(reds[left].tolist())) == 1
    assert len(set(reds.tolist())) == 2


def test_a_map_has_one_scale_in_both_directions() -> None:
    points = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    axes = map_figure(points, list("abcd"), [None] * 4, "t", "", False).axes[0]
    origin, right, up, _ = axes.transData.transform(axes.collections[0].get_offsets())
    assert (right - origin).tolist() == pytest.approx([right[0] - origin[0], 0])
    assert (up - origin).tolist() == pytest.approx([0, (right[0] - origin[0]) / 3])
    assert axes.get_window_extent().contains(*origin)


MAPS: dict[str, tuple[Any, list[Any]]] = {
    "one": (np.zeros((1, 2)), ["word"]),
    "all-at-one-place": (np.zeros((60, 2)), [1.0] * 60),
    "tight": (clusters(60) * 1e-9 + 1e6, [f"o{i % 20}" for i in range(60)]),
    "far-and-near": (np.array([[0, 0], [1, 1], [1e140, 0.0]]), [1, 2, 3]),
    "some-without-a-place": (np.array([[0, 0], [np.nan, 1], [np.inf, 0], [1, 1]]), [1, 2, 3, None]),
    "nothing-known": (clusters(40), [None] * 40),
    "zero-and-huge": (clusters(40), [0, 1e-300, 1e300, *range(37)]),
    "long-names": (clusters(60), ["category " * 40] * 60),
    "one-value": (clusters(60), [16] * 60),
    "close-values": (clusters(60), [16, 16.0001, 17] * 20),
    "norms": (clusters(60), np.geomspace(0.31, 97654.3, 60).tolist()),
}


@pytest.mark.parametrize("case", MAPS)
def test_every_map_is_drawn_without_overlaps(case: str, tmp_path: Path) -> None:
    points, colours = MAPS[case]
    names = [f"owner{i}/{HOSTILE[i % 8]}-lora" for i in range(len(points))]
    figure = map_figure(points, names, colours, "Adapters of a base model", "colour", True)
    check_texts(figure)
    canvas.save(figure, tmp_path / "map.svg", "Adapters of a base model")
    ElementTree.parse(tmp_path / "map.svg")


def test_what_has_no_place_or_no_room_is_told() -> None:
    points, colours = MAPS["some-without-a-place"]
    assert "4 adapters, 2 of them without a place on the map" in texts(
        map_figure(points, list("abcd"), colours, "Title", "", True)
    )
    crowd = map_figure(
        np.zeros((60, 2)), [f"owner/a-rather-long-name-{i}" for i in range(60)], [None] * 60, "", "", True
    )
    output = [text for text in texts(crowd) if text.startswith("owner/")]
    (left_out,) = [text for text in texts(crowd) if "without room" in text]
    assert left_out.startswith(f"{60 - len(output)} names")


def test_names_stand_beside_few_points_only() -> None:
    for count in (MOST_NAMES, MOST_NAMES + 1):
        names = [f"name{i}" for i in range(count)]
        written = texts(map_figure(clusters(count), names, [None] * count, "Title", "", True))
        assert (set(names) & set(written) != set()) is (count == MOST_NAMES)
    assert "name0" not in texts(map_figure(clusters(3), ["name0"] * 3, [None] * 3, "Title", "", False))


def test_many_points_are_pixels(tmp_path: Path) -> None:
    for count, images in ((MOST_VECTORS, 0), (MOST_VECTORS + 1, 1)):
        path = tmp_path / f"{count}.svg"
        map_picture(clusters(count), [""] * count, [None] * count, "Title", "", path, True)
        assert path.read_text().count("<image") == images


@pytest.mark.slow
def test_a_hundred_thousand_points(tmp_path: Path) -> None:
    count = 100_000
    owners = [f"owner{i}" for i in np.random.default_rng(0).zipf(1.6, count)]
    map_picture(clusters(count), owners, owners, "Title", "owner", tmp_path / "map.svg", True)
    assert (tmp_path / "map.svg").stat().st_size < 3_000_000


# Files.

ONE: tuple[str, list[str], Any, list[float]] = ("a", ["layers.0.q_proj"], spectra(1), [1.0])


@pytest.mark.parametrize("name", ["picture", "picture.jpg", "picture.svgz", ".svg"])
def test_other_suffixes_are_refused_before_anything_is_done(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.svg, \.png, \.pdf"):
        adapter_picture(*ONE, tmp_path / name)
    with pytest.raises(UsageError, match=r"\.svg, \.png, \.pdf"):
        map_picture(np.zeros((1, 2)), ["a"], [None], "t", "l", tmp_path / name, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("modules", "rows", "scalings"),
    [
        ([], np.zeros((0, 8)), []),
        (["a"], np.zeros((2, 8)), [1.0]),
        (["a"], np.zeros((1, 8)), [1.0, 2.0]),
        (["a"], np.zeros(8), [1.0]),
        (["a"], np.zeros((1, 1)), [1.0]),
    ],
)
def test_nonsense_is_refused(modules: list[str], rows: Any, scalings: list[float], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        adapter_picture("a", modules, rows, scalings, tmp_path / "a.svg")


@pytest.mark.parametrize(
    ("points", "names", "colours"),
    [
        (np.zeros((0, 2)), [], []),
        (np.full((2, 2), np.nan), ["a", "b"], [None, None]),
        (np.zeros((2, 2)), ["a", "b"], ["word", 1.0]),
        (np.zeros((2, 3)), ["a", "b"], [None, None]),
        (np.zeros((2, 2)), ["a"], [None, None]),
        (np.zeros((2, 2)), ["a", "b"], [None]),
    ],
)
def test_nonsensical_maps_are_refused(points: Any, names: Any, colours: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        map_picture(points, names, colours, "t", "l", tmp_path / "a.svg", True)


def test_formats(tmp_path: Path) -> None:
    for suffix, magic in ((".svg", b"<?xml"), (".PNG", b"\x89PNG"), (".pdf", b"%PDF")):
        path = tmp_path / f"a{suffix}"
        adapter_picture(*ONE, path)
        content = path.read_bytes()
        assert content.startswith(magic)
        assert not re.search(rb"CreationDate|dc:date|tIME|[Mm]atplotlib (v|version)", content)
    assert struct.unpack(">I", (tmp_path / "a.PNG").read_bytes()[16:20]) == (1600,)


def test_a_picture_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    path.write_text("old")
    adapter_picture(*ONE, path)
    assert path.read_text().endswith("</svg>\n")
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_a_folder_that_takes_no_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        adapter_picture(*ONE, tmp_path / "missing" / "a.svg")
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        adapter_picture(*ONE, tmp_path / "folder.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.svg"]


def test_the_settings_of_matplotlib_are_as_before_and_do_not_matter(tmp_path: Path) -> None:
    import matplotlib

    adapter_picture(*ONE, tmp_path / "plain.svg")
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams.copy())
        adapter_picture(*ONE, tmp_path / "odd.svg")
        map_picture(np.eye(2), ["a", "b"], [1, 2], "t", "l", tmp_path / "map.svg", True)
        assert dict(matplotlib.rcParams.copy()) == before
    assert (tmp_path / "odd.svg").read_bytes() == (tmp_path / "plain.svg").read_bytes()


SCRIPT = """
import hashlib, sys
from pathlib import Path
import numpy as np
from catalog.pictures.positions import layout
from catalog.pictures.adapter import adapter_picture
from catalog.pictures.map import map_picture
from tests.unit.test_picture import layers, spectra

places = layout(np.random.default_rng(0).normal(size=(120, 64)))
print(hashlib.sha256(places.tobytes()).hexdigest())
words, numbers = [f"owner{i % 14}" for i in range(120)], [2.0 ** (i % 6) for i in range(120)]
for suffix in ("svg", "png", "pdf"):
    for name, colours in (("words", words), ("numbers", numbers)):
        map_picture(places, words, colours, "Title", name, Path(f"{name}.{suffix}"), True)
    map_picture(places[:50], words[:50], words[:50], "Title", name, Path(f"names.{suffix}"), True)
    adapter_picture("owner/adapter", layers(20), spectra(140), [2.0] * 140, Path(f"adapter.{suffix}"))
for path in sorted(Path().glob("*.*")):
    print(path, hashlib.sha256(path.read_bytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_same_bytes_in_every_process_without_a_display(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the hash seed, the number of threads, the folder and the user's own settings of matplotlib."""
    rc = tmp_path / "matplotlibrc"
    rc.write_text("font.family: serif\nsavefig.dpi: 33\nsvg.fonttype: none\nfigure.facecolor: red\n")
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    exec(SCRIPT, {})
    expected = capsys.readouterr().out.splitlines()
    hidden = {"DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "4", "PYTHONPATH": str(ROOT)}
    environment["MATPLOTLIBRC"] = str(rc)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + 'print("matplotlib.pyplot" in sys.modules)\n'],
        cwd=tmp_path / "elsewhere",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [*expected, "False"]
    assert len(expected) == 13


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    digests = set()
    for attempt in ("first", "second"):
        path = tmp_path / f"{attempt}.svg"
        map_picture(clusters(50), [f"n{i}" for i in range(50)], ["a", "b"] * 25, "Title", "l", path, True)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_points_of_an_svg_have_a_title_and_lead_to_the_hub(tmp_path: Path) -> None:
    names = ["ann/one", "ann/two:checkpoint 1", HOSTILE[8]]
    points = np.array([[0, 0], [1, 0], [0, 1]])
    map_picture(points, names, [4, 8, None], "t", "rank", tmp_path / "m.svg", labels=False)
    links = {}
    for link in ElementTree.parse(tmp_path / "m.svg").iter("{http://www.w3.org/2000/svg}a"):
        title = link.find("{http://www.w3.org/2000/svg}title")
        links[link.attrib["{http://www.w3.org/1999/xlink}href"]] = title is not None and title.text
    hub = "https://huggingface.co"
    assert links[f"{hub}/ann/one"] == "ann/one (rank 4)"
    assert links[f"{hub}/ann/two/tree/main/checkpoint%201"] == "ann/two:checkpoint 1 (rank 8)"
    assert links[f"{hub}/--%3E%20%3Cscript%3Ealert%281%29%3C/script%3E%20%3C%21--"] == HOSTILE[8]


def test_colours_of_cosines_are_the_same_whatever_the_members_are(tmp_path: Path) -> None:
    """A cosine of 0.2 has the colour of 0.2, also where it is the largest."""
    colours = []
    for other in (0.2, 0.9):
        cosines = np.array([[1, 0.2, other], [0.2, 1, 0], [other, 0, 1]])
        figure = merge_figure(["a", "b", "c"], cosines, [0.6, 1.0], {0.5: 1})
        image = figure.axes[0].images[0]
        colours.append(image.to_rgba(image.get_array())[0, 1])
        assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
        assert [text.get_text() for text in figure.axes[0].texts][1] == "0.20"
    assert (colours[0] == colours[1]).all()
    assert colours[0][:3].min() > 0.7


def test_a_picture_of_members_is_drawn_with_any_names(tmp_path: Path) -> None:
    names = HOSTILE[:14]
    for path in (tmp_path / "a.svg", tmp_path / "b.svg"):
        merge_picture(names, np.eye(14), [0.5, 1.0], {0.5: 1, 0.9: 2}, path)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "<script>" not in (tmp_path / "a.svg").read_text()
    with pytest.raises(UsageError, match="supported format"):
        merge_picture(names, np.eye(14), [], {}, tmp_path / "a.txt")
    with pytest.raises(UsageError, match="a row of cosines"):
        merge_picture(names, np.eye(3), [], {}, tmp_path / "c.svg")
