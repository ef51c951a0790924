"""train/reporting/figures.py and planar.py: every picture shows its data, or says why it cannot."""

import json

import pytest
import run_folders
import torch

from train.reporting import figures, planar
from train.reporting.sources import Source

HISTORY = [json.loads(line) for line in run_folders.METRICS.splitlines()]
EYE = torch.eye(4)


def source(h, name="run", **parts):
    return Source(name, torch.as_tensor(h, dtype=torch.float32), **({"summary": {}} | parts))


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def matrices(figure):
    return [torch.as_tensor(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def said(axes):
    return " ".join(text.get_text().replace("\n", " ") for text in axes.texts)


def test_each_loss_is_drawn_with_its_own_levels_and_a_missing_one_says_so():
    levels, why = {"log c": 9.7, "floor": 4.9}, "an array has no history of training"
    other = [{"epoch": 1, "loss": 9.0}, {"epoch": 2, "loss": 8.0}]
    sources = [source(EYE, "a", history=HISTORY, levels=levels), source(EYE, "b", history=other)]
    first, second, third = figures.losses([*sources, source(EYE, "c", absent={"history": why})]).axes
    assert [set(line.get_ydata()) for line in first.get_lines()] == [{4.0, 3.0}, {9.7}, {4.9}]
    assert {"log c = 9.70", "floor = 4.90"} <= set(legend(first)) and first.get_title() == "a"
    assert [list(line.get_ydata()) for line in second.get_lines()] == [[9.0, 8.0]] and second.get_title() == "b"
    assert said(first) == "" and said(third) == why


def test_terms_are_drawn_by_name():
    (axes,) = figures.terms([source(EYE, history=HISTORY)]).axes
    found = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert found == {"prior": [1.0, 2.0], "invariance": [3.0, 2.0]}
    (axes,) = figures.terms([source(EYE, history=[{"epoch": 1, "loss": 2.0}])]).axes
    assert said(axes) == "the loss has no terms of its own"


def test_spectra_share_axes_and_evenly_spread_rows_are_flat_at_one():
    h = torch.cat([torch.eye(8), -torch.eye(8)])
    (axes,) = figures.spectra([source(h, "even"), source(torch.ones(16, 8), "point")]).axes
    even, point = (line.get_ydata() for line in axes.get_lines()[:2])
    assert list(even) == pytest.approx([1.0] * 8)
    assert point[0] == pytest.approx(8**0.5) and max(point[1:]) < 1e-6
    assert legend(axes)[:2] == ["even", "point"] and axes.get_ylim()[0] == pytest.approx(1e-4)


def test_usage_is_sorted_and_sums_to_one_for_each_run():
    clusters = torch.tensor([4, 4, 4, 1, 1, 9])
    sources = [
        source(torch.eye(6), "a", clusters=clusters, summary={"num_clusters": 64}),
        source(torch.eye(6), "b", clusters=torch.zeros(6, dtype=torch.int64), summary={"num_clusters": 2}),
        source(torch.eye(6), "without", absent={"clusters": "the array holds no clusters"}),
    ]
    (axes,) = figures.code_usage(sources).axes
    lines = axes.get_lines()
    assert list(lines[0].get_ydata()) == pytest.approx([3 / 6, 2 / 6, 1 / 6]) and list(lines[1].get_ydata()) == [1]
    assert [line.get_ydata()[0] for line in lines[2:]] == pytest.approx([1 / 6, 1 / 2])
    assert legend(axes)[:2] == ["a: 3 used of 64", "b: 1 used of 2"]
    low, high = axes.get_ylim()
    assert low < 1 / 6 and high > 1
    (axes,) = figures.code_usage(sources[2:]).axes
    assert said(axes) == "the array holds no clusters"


def test_products_of_coordinates_are_scaled_and_cut():
    h = torch.eye(2)[torch.arange(40) % 2] * 3
    wide = torch.randn(300, 400, generator=torch.Generator().manual_seed(0))
    figure = figures.feature_products([source(h, "a"), source(wide, "b")])
    first, second = matrices(figure)[:2]
    assert first.tolist() == [[1.0, 0.0], [0.0, 1.0]] and second.shape == (256, 256)
    # The scale is that of all coordinates: the diagonal of spread rows is about 1 wherever it is cut.
    assert float(second.diagonal().mean()) == pytest.approx(1, abs=0.05)
    assert figure.axes[1].get_xlabel() == "coordinate, the first 256 of 400"


def test_products_of_samples_are_sorted_by_class_or_else_by_cluster_or_refused():
    h, labels = torch.eye(2)[torch.arange(40) % 2] * 3, torch.arange(40) % 2
    reasons = {"labels": "the array holds no labels"}
    labelled = source(h, "a", labels=labels, classes=["odd", "even"])
    clustered = source(h, "b", clusters=labels + 5, absent=reasons)
    figure = figures.sample_products([labelled, clustered, source(h, "c", absent=reasons)])
    by_class, by_cluster = matrices(figure)[:2]
    for blocks in (by_class, by_cluster):
        assert blocks.shape == (40, 40) and blocks[:20, :20].min() == 1 and blocks[:20, 20:].max() == 0
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["odd", "even"]
    assert figure.axes[1].get_xlabel() == "test image, sorted by cluster (no labels)"
    assert said(figure.axes[2]) == "nothing to sort by: the array holds no labels, nor clusters"


def test_large_similarity_matrices_are_thinned_evenly():
    h, labels = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0)), torch.arange(5000) % 10
    axes = figures.sample_products([source(h, labels=labels, classes=list("abcdefghij"))]).axes[0]
    assert axes.images[0].get_array().shape == (figures.MOST_ROWS, figures.MOST_ROWS)
    step = figures.MOST_ROWS / 10
    assert list(axes.get_yticks()) == pytest.approx([step * (k + 0.5) for k in range(10)], abs=1)


def test_mixtures_are_drawn_against_the_number_of_components():
    scatters = {"mixture_scatter_100": 0.3, "mixture_scatter_10": 0.6, "mixture_scatter_50": 0.4}
    other = source(EYE, "b", summary={"mixture_scatter_10": 0.05})
    sources = [source(EYE, "a", summary=scatters | {"mixture_entropy_10": -9.0}), other]
    (axes,) = figures.mixture_scatters(sources, 0.1).axes
    first, second, level = axes.get_lines()
    assert list(first.get_xdata()) == [10, 50, 100] and list(first.get_ydata()) == [0.6, 0.4, 0.3]
    assert list(second.get_ydata()) == [0.05] and set(level.get_ydata()) == {0.1}
    (axes,) = figures.mixture_scatters([source(EYE)], None).axes
    assert said(axes) == "a mixture of 10 takes at least 50 rows, and there are 4"


@pytest.mark.parametrize("count, shape", [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3)), (7, (3, 3))])
def test_panels_fill_rows(count, shape):
    figure, axes = figures.panels(count)
    assert len(axes) == count == len(figure.axes)
    assert axes[0].get_gridspec().get_geometry() == shape


def test_long_names_keep_their_ends():
    short = figures.short("begin" + "x" * 50 + "end")
    assert figures.short("a" * 20) == "a" * 20
    assert len(short) == 30 and short.startswith("begin") and short.endswith("end")


def test_the_map_puts_each_class_apart_and_in_its_colour():
    labels = torch.as_tensor(run_folders.labels())
    noise = 0.05 * torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    one = source(torch.as_tensor(run_folders.collapsed()) + noise, labels=labels, classes=run_folders.CLASSES)
    (axes,) = planar.maps([one]).axes
    groups = [torch.as_tensor(points.get_offsets().data) for points in axes.collections]
    assert [len(group) for group in groups] == [20, 20, 20] and legend(axes) == run_folders.CLASSES
    assert len({tuple(points.get_facecolor()[0]) for points in axes.collections}) == 3
    for k, group in enumerate(groups):
        centre = group.mean(0)
        own = (group - centre).norm(dim=1).max()
        assert all(own < (other - centre).norm(dim=1).min() for j, other in enumerate(groups) if j != k)
    again = planar.project(one.embeddings)[1]
    assert (again == planar.project(one.embeddings)[1]).all()


def test_a_map_of_many_rows_takes_some_evenly(monkeypatch):
    monkeypatch.setattr(planar, "MOST_ROWS", 40)
    rows, places = planar.project(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)))
    assert places.shape == (40, 2) and rows[0] == 0 and rows[-1] == 199 and set(rows.diff().tolist()) == {5, 6}


def test_what_has_no_map_says_so():
    assert planar.obstacle(torch.ones(20, 4)) == "all embeddings are one point: there is nothing to map"
    # Multiples of a row are one point on the sphere, and so are rows that differ by rounding.
    assert planar.obstacle(torch.ones(20, 4) * torch.arange(1, 21)[:, None] / 7) is not None
    assert planar.obstacle(EYE) == "a map takes at least 5 embeddings, and there are 4"
    assert planar.obstacle(torch.ones(9, 1)) == "embeddings of one coordinate need no map"
    assert planar.obstacle(torch.eye(9)) is None
    (axes,) = planar.maps([source(torch.ones(20, 4))]).axes
    assert said(axes) == "all embeddings are one point: there is nothing to map"


def test_a_map_without_labels_says_why_it_has_one_colour():
    (axes,) = planar.maps([source(torch.eye(12), absent={"labels": "the array holds no labels"})]).axes
    assert len(axes.collections) == 1 and axes.get_xlabel() == "no colours: the array holds no labels"
