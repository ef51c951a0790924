"""train/report.py and train/figures.py: every picture shows its data, and the page needs nothing else."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from train import collapse, evaluate, figures, methods, report
from train.backbones import ResNet8
from train.checkpoint import Progress
from train.data import load

HISTORY = [{"epoch": i, "step": 3 * i, "lr": 0.1, "loss": 5.0 - i, "prior": 1.0 * i, "invariance": 4.0 - i} for i in (1, 2)]


@pytest.fixture
def page(tiny_config):
    config = tiny_config(prior="cross_entropy")
    config.output_dir.mkdir()
    data, method = load(config), methods.build(config, ResNet8(config.widths, config.stem_stride))
    summary, test = evaluate.judge(config, data, method)
    summary |= {"images_per_second": 12.0, "seconds_training": 3.0, "loss_fraction_of_step": 0.25}
    report.write(config, data, method, Progress(step=6, history=HISTORY), test, summary)
    return (config.output_dir / report.FILE).read_text(encoding="utf-8"), summary


class References(HTMLParser):
    """Collects everything a page would fetch, and checks that each tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_other_file(page):
    text, _ = page
    parser = References()
    parser.feed(text)
    assert parser.open == [] and len(parser.found) == 7
    assert all(reference.startswith("data:image/png;base64,") for reference in parser.found)
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    for reference in parser.found:
        image = Image.open(io.BytesIO(base64.b64decode(reference.split(",")[1])))
        image.load()
        assert min(image.size) > 200 and len(image.convert("L").getcolors()) > 10


def test_the_page_states_the_measures_and_when_the_levels_do_not_hold(page):
    text, summary = page
    for name in ("linear_probe", "knn", "nmi", "perplexity", "effective_rank", "embedding_std"):
        assert f"<td>{summary[name]:.4g}</td>" in text, name
    assert "this run has cross_entropy" in text and "1/√f = 0.2500" in text


def test_the_loss_is_drawn_with_both_levels():
    axes = figures.loss_curve(HISTORY, {"log c": 9.7, "floor": 4.9}).axes[0]
    heights = [set(line.get_ydata()) for line in axes.get_lines()]
    assert heights == [{4.0, 3.0}, {9.7}, {4.9}]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "log c = 9.70" in labels and "floor = 4.90" in labels


def test_terms_are_drawn_by_name():
    axes = figures.term_curves(HISTORY).axes[0]
    assert {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()} == {
        "prior": [1.0, 2.0], "invariance": [3.0, 2.0]}


def test_spectrum_of_evenly_spread_rows_is_flat_at_one():
    h = torch.cat([torch.eye(8), -torch.eye(8)])
    values = figures.spectrum(h).axes[0].get_lines()[0].get_ydata()
    assert torch.as_tensor(values).tolist() == pytest.approx([1.0] * 8)


def test_code_usage_is_sorted_and_sums_to_one():
    clusters = torch.tensor([4, 4, 4, 1, 1, 9])
    line = figures.code_usage(clusters, 64).axes[0].get_lines()[0]
    assert torch.as_tensor(line.get_ydata()).tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    assert collapse.code_counts(clusters).tolist() == [3, 2, 1]


def test_products_are_scaled_and_sorted_by_class():
    h, labels = torch.eye(2)[torch.arange(40) % 2] * 3, torch.arange(40) % 2
    across = figures.feature_products(h).axes[0].images[0].get_array()
    assert across.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    blocks = torch.as_tensor(figures.sample_products(h, labels, ["a", "b"]).axes[0].images[0].get_array())
    assert blocks.shape == (40, 40) and blocks[:20, :20].min() == 1 and blocks[:20, 20:].max() == 0


def test_large_similarity_matrices_are_thinned_evenly():
    h, labels = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0)), torch.arange(5000) % 10
    axes = figures.sample_products(h, labels, list("abcdefghij")).axes[0]
    assert axes.images[0].get_array().shape == (figures.MOST_ROWS, figures.MOST_ROWS)
    assert list(axes.get_yticks()) == pytest.approx(list(range(30, 600, 60)), abs=1)
