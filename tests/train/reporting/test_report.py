"""train/report.py, train/reporting/page.py and tables.py: one file that says what the runs' files say."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import run_folders
import torch
from matplotlib.figure import Figure
from PIL import Image

from train import report
from train.reporting import page, planar, tables
from train.reporting.sources import Source

NAMES = ["loss", "terms", "singular_values", "cluster_usage", "mixture_scatter", "hth", "hht_sorted_by_class", "map"]


class Parsed(HTMLParser):
    """Collects everything a page would fetch and the cells of its tables; checks that each tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.rows, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def row(self, label):
        """The cells beside a label, of the only row with it."""
        (found,) = [cells for cells in self.rows if label in cells[:2]]
        return found[found.index(label) + 1 :]

    def verdict(self, collapse):
        """The cells of the verdicts on a collapse, which come before its measures."""
        return next(cells for cells in self.rows if cells[0] == collapse)[1:]


@pytest.fixture
def one_picture(monkeypatch):
    """For tests that look at files and words only: drawing takes longer than the rest."""
    monkeypatch.setattr(report, "pictures", lambda found: [page.Picture("loss", Figure((2, 2)), "A loss.")])


@pytest.fixture
def two(tmp_path):
    good = run_folders.write_run(tmp_path / "good", run_folders.spread())
    summary = {"linear_probe": 0.4375, "linear_probe_converged": False, "effective_rank": 1.5, "perplexity": None}
    summary |= {"mixture_scatter_10": 0.0625, "levels": {}}
    bad, config = tmp_path / "bad", {"lr": 0.25}
    return good, run_folders.write_run(bad, run_folders.collapsed(), method="swav", config=config, summary=summary)


def write(*options):
    """The report of a command line, read."""
    output = options[options.index("--output") + 1]
    assert report.main(list(map(str, options))) == 0
    return Parsed(output.read_text(encoding="utf-8"))


def test_a_finished_run_gets_its_own_page(two):
    folder, sample = two[0], torch.zeros(3, 3, 8, 8)
    report.write(folder, (sample.to(torch.uint8), sample, sample + 1))
    text = (folder / "report.html").read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert "<title>cplearn on digits</title>" in text and len(parsed.found) == len(NAMES) + 1
    assert all(reference.startswith("data:image/png;base64,") for reference in parsed.found)
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    for reference in parsed.found:
        image = Image.open(io.BytesIO(base64.b64decode(reference.split(",")[1])))
        image.load()
        assert min(image.size) > 200 and len(image.convert("L").getcolors()) > 5
    assert parsed.row("linear probe accuracy") == ["0.9125", "0.3333"]
    assert parsed.row("perplexity of the assignments") == ["3.125", "1", "min(c, N) = 60"]
    assert parsed.row("standard deviation of unit-length embeddings") == ["0.3475", "0", "1/√f = 0.3536"]
    assert parsed.row("images per second") == ["12.5"] and parsed.row("batch_size") == ["32"]
    assert parsed.verdict("representation")[0].startswith("not collapsed")
    assert "2 of 2 epochs of 32 images" in parsed.text and not list(folder.glob("*.part"))


@pytest.mark.slow
def test_runs_stand_side_by_side(two, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(planar, "maps", lambda found: Figure())  # of the first test; t-SNE is the slowest part
    out = tmp_path / "made" / "both.html"
    parsed = write(*two, "--output", out, "--png", tmp_path / "png", "--num-threads", "1")
    assert parsed.row("linear probe accuracy") == ["0.9125", "0.4375 (not converged)", "0.3333"]
    assert parsed.row("perplexity of the assignments")[:2] == ["3.125", "not measured"]
    assert ["lr", "0.005", "0.25"] in parsed.rows and ["seed", "0", "0"] in parsed.rows
    first, second = parsed.verdict("dimensional")
    assert first.startswith("not collapsed") and "7.125; collapsed below 2, a quarter of the 8 dimensions" in first
    assert second.startswith("collapsed") and "1.5; collapsed below 2" in second
    assert [cell.split("S")[0] for cell in parsed.verdict("intracluster")] == ["not collapsed", "collapsed"]
    assert parsed.verdict("cluster")[1].startswith("not judged") and "perplexity" in parsed.verdict("cluster")[1]
    assert sorted(path.stem for path in (tmp_path / "png").iterdir()) == sorted(NAMES)
    printed = capsys.readouterr().out
    assert "bad: representation not collapsed, cluster not judged, dimensional collapsed, intra" in printed
    assert str(out) in printed and str(tmp_path / "png" / "hht_sorted_by_class.png") in printed


def test_arrays_stand_beside_runs_and_what_they_lack_is_said(two, tmp_path, one_picture):
    np.save(tmp_path / "mine.npy", run_folders.collapsed())
    np.save(tmp_path / "y.npy", run_folders.labels())
    parsed = write(two[0], tmp_path / "mine.npy", "--labels", tmp_path / "y.npy", "--output", tmp_path / "r.html")
    assert parsed.row("share of the variance within classes")[:2] == ["0.9525", "0"]
    assert parsed.row("weighted k-NN accuracy")[:2] == ["0.8625", "not measured"]
    cluster = parsed.verdict("cluster")[1]
    assert cluster.startswith("not judged") and "the array holds no clusters" in cluster
    assert "mine.npy: linear probe accuracy; weighted k-NN accuracy: it learns from the training images" in parsed.text
    assert "mine.npy: loss and its terms, per epoch: an array has no history of training." in parsed.text
    # Three points have a rank of three, and a quarter of the eight dimensions is two.
    assert parsed.verdict("dimensional")[1].startswith("not collapsed")
    assert parsed.verdict("intracluster")[1].startswith("collapsed")


def test_only_pictures_where_only_they_are_asked_for(two, tmp_path, monkeypatch, one_picture):
    monkeypatch.chdir(tmp_path)
    assert report.main([str(two[0]), "--png", "png"]) == 0
    assert not (tmp_path / "report.html").exists()
    assert [path.name for path in (tmp_path / "png").iterdir()] == ["loss.png"]
    assert report.main([str(two[0])]) == 0
    assert (tmp_path / "report.html").exists()


def test_levels_that_do_not_hold_are_pointed_out(tmp_path):
    def caption(**config):
        one = Source("a", torch.eye(4), {}, {"method": "cplearn"} | config, levels={"log c": 1.0})
        return report._levels([one])

    assert "not for cross_entropy" in caption(prior="cross_entropy")
    assert "log c is an encoder" in caption(prior="reverse_kl") and "not for" not in caption(prior="reverse_kl")
    assert caption(method="swav", prior="cross_entropy") == ""


def test_bad_input_is_one_sentence(two, tmp_path, fails):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.html").mkdir()
    for options, words in (
        ([two[0], "--output", "x.npz"], "--output was x.npz"),
        ([two[0], "--num-threads", "0"], "--num-threads was 0"),
        ([two[0], "--output", tmp_path / "file" / "x.html"], "--output was"),
        ([two[0], "--output", tmp_path / "taken.html"], "--output was"),
        ([two[0], "--png", tmp_path / "file"], "--png was"),
    ):
        fails(report.main, options, words)


def test_help_explains_what_a_run_is(capsys):
    with pytest.raises(SystemExit) as caught:
        report.main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "examples:" in text
    options = ("--output FILE.html", "--png DIR", "--labels FILE.npy", "--data-dir DIR", "--device", "--num-threads N")
    for words in (*options, "checkpoint file", '"embeddings"'):
        assert words in text, words


def test_text_is_escaped_and_markup_is_not():
    name = '<script>"'
    sources = [Source(name, torch.eye(4), {"num_features": 4}, {"<a>": "b & c"}), Source("b", torch.eye(4), {}, {})]
    text = report.document(name, sources, [page.Picture("a", Figure((2, 2)), '"<b>"')])
    parsed = Parsed(text)
    assert "<script" not in text and "<a>" not in text and "&lt;a&gt;" in text and "b &amp; c" in text
    assert "<th>&lt;script&gt;&#34;</th>" in text and ["<a>", "b & c", "–"] in parsed.rows
    assert [reference[:22] for reference in parsed.found] == ["data:image/png;base64,"]
    assert 'alt="&#34;&lt;b&gt;&#34;"' in text and '<b class="unknown">not judged</b>' in text
    with pytest.raises(AssertionError):
        Parsed("<p><b>not well formed</p></b>")
    assert Parsed('<p><img src="http://x/y.png"></p>').found == ["http://x/y.png"]


def test_png_files_keep_their_colours():
    figure = Figure(figsize=(1, 1))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow([[0, 1], [2, 3]], cmap="RdBu_r", aspect="auto")
    axes.set_axis_off()
    exact, fewer = (
        np.asarray(Image.open(io.BytesIO(page.Picture("a", figure, "", photo=photo).png)).convert("RGB"))
        for photo in (True, False)
    )
    assert np.array_equal(exact, fewer) and len(np.unique(exact.reshape(-1, 3), axis=0)) >= 4


def test_differing_bounds_are_both_named():
    found = [
        Source("a", torch.zeros(9, 4), {"num_clusters": 5, "num_classes": 2}),
        Source("b", torch.zeros(9, 4), {"num_clusters": 50}),
        Source("c", torch.zeros(9, 4), {}),
    ]
    last = {row[-3 - len(found)]: row[-1] for row in tables.collapse(found)}
    last |= {row[0]: row[-1] for row in tables.quality(found)}
    assert last["clusters used"] == "min(c, N) = 5 / 9" and last["weighted k-NN accuracy"] == "0.5"
    assert tables.number(True) == "True" and tables.number(12345) == "12,345"
