"""bench.scaling: closed formulas against the simulation hop by hop, limits checked by hand, the documentation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # bench/ is used from the checkout and never installed

from bench import distributed, scaling, scaling_tables  # noqa: E402
from bench import scaling_formulas as formulas  # noqa: E402
from bench import scaling_simulation as simulation  # noqa: E402
from bench.scaling_cluster import Cluster  # noqa: E402
from bench.scaling_formulas import Shape, hadamard  # noqa: E402
from bench.scaling_predictions import behind_links, fits, predict, simulate, smallest_codes, work_on_gpu  # noqa: E402

ALPHA, BETA, SIZE = 3e-6, 2e9, 1e6
WORLDS = (2, 3, 8, 64)


@pytest.mark.parametrize("world", WORLDS)
def test_rings_on_even_links_take_what_the_formulas_say(world):
    links, ready = simulation.Links.even(world, ALPHA, BETA), np.zeros(world)
    hop = ALPHA + SIZE / world / BETA
    assert np.allclose(simulation.all_gather(ready, links, SIZE), (world - 1) * hop, rtol=1e-12)
    assert np.allclose(simulation.all_reduce(ready, links, SIZE), 2 * (world - 1) * hop, rtol=1e-12)
    exchange = simulation.all_to_all(ready, world, (ALPHA, BETA), (ALPHA, BETA), SIZE)
    assert np.allclose(exchange, ALPHA + (world - 1) / world * SIZE / BETA, rtol=1e-12)


@pytest.mark.parametrize("world", (3, 8))
def test_a_late_rank_holds_up_a_ring(world):
    """Its part has to go all the way round after it has come."""
    links, ready = simulation.Links.even(world, ALPHA, BETA), np.zeros(world)
    ready[1] = 1.0
    done = simulation.all_gather(ready, links, SIZE)
    hop = ALPHA + SIZE / world / BETA
    assert done.max() == pytest.approx(1.0 + (world - 1) * hop) and done.min() > 1.0
    # Its neighbour has its part one hop later, and with it everything.
    assert simulation.all_reduce(ready, links, SIZE).max() == pytest.approx(1.0 + 2 * (world - 1) * hop)


def test_a_slow_link_sets_the_pace_of_a_ring():
    world = 16
    links = simulation.Links.nodes(world, 8, (0.0, BETA), (0.0, BETA / 10))
    assert links.bandwidth.tolist().count(BETA / 10) == 2
    done = simulation.all_gather(np.zeros(world), links, SIZE).max()
    slow, fast = SIZE / world / (BETA / 10), SIZE / world / BETA
    assert (world - 1) * slow <= done <= (world - 1) * slow + world * fast


def test_an_exchange_is_bound_by_the_way_out_of_the_node():
    done = simulation.all_to_all(np.zeros(16), 8, (0.0, BETA), (0.0, BETA / 10), SIZE).max()
    assert done == pytest.approx(8 / 16 * SIZE / (BETA / 10), rel=0.02)


@pytest.mark.parametrize("f, c", [(2048, 1 << 28), (128, 1 << 24)])
@pytest.mark.parametrize("world", (8, 16, 64, 256))
def test_the_step_simulated_is_the_step_by_formulas(world, f, c):
    """They share constants and nothing else; between nodes a ring's pipeline costs the simulation a little more."""
    shape = hadamard(4096, f, c, world, 2)
    closed = predict(shape).all
    assert simulate(shape, 0.0) == pytest.approx(closed, rel=0.03)
    uneven = simulate(shape)
    assert closed < uneven < 1.2 * closed
    assert simulate(shape) == uneven != simulate(shape, seed=1)


def test_bytes_of_a_case_counted_by_hand():
    """N = 8, f = 4, two ranks, float32: each rank has 4 rows of 16 bytes in each view."""
    sent = formulas.sent(Shape(8, 4, 100, 2, 4, row_scalars=3))
    assert sent == {"agreement": 136, "rows": 2 * 4 * 16, "best logits": 0, "sums": 32 * 8,
                    "scalars": (16 * 3 + 1) * 8, "gradients": 2 * 4 * 16}  # fmt: skip
    assert formulas.gloo_messages(Shape(8, 4, 100, 2)) == 12
    # Asked and sent: 2 delays a hop; two hops of the all-reduce, one of the gathers, and of the two exchanges.
    assert sum(formulas.gloo_delays(Shape(8, 4, 100, 2)).values()) == 12


def test_traffic_does_not_know_the_codes_and_rises_with_rows_and_features():
    def all_sent(N, f, c, world=8):
        return sum(formulas.sent(hadamard(N, f, c, world)).values())

    assert all_sent(256, 128, 1 << 14) == all_sent(256, 128, 1 << 34)
    assert all_sent(512, 128, 1 << 14) == pytest.approx(2 * all_sent(256, 128, 1 << 14), rel=0.01)
    assert all_sent(256, 4096, 1 << 14) == pytest.approx(2 * all_sent(256, 2048, 1 << 14), rel=0.02)
    # However many ranks, a rank sends less than the rows and sums twice over.
    assert all_sent(4096, 128, 1 << 14, 1024) < 2 * all_sent(4096, 128, 1 << 14, 4) + 136 * 1024
    assert formulas.mean_assignment_sent(hadamard(256, 128, 1 << 24, 8)) > 7 / 8 * 4 * (1 << 24)


def test_ranges_of_codes():
    assert hadamard(64, 100, 5 * 128 + 7, 4).codes_per_rank == 2 * 128
    assert hadamard(64, 100, 200, 4).codes_per_rank == 128 and Shape(64, 100, 10, 4).codes_per_rank == 3
    assert hadamard(64, 128, 1 << 20, 8).logits_per_rank == 2 * 64 << 17
    assert fits(hadamard(1, 128, 1 << 34, 16)) and not fits(hadamard(1, 128, 1 << 34, 8))


@pytest.mark.parametrize("world, counts", [(3, [1, 3, 5]), (4, [4, 4, 4, 4])])
def test_ranges_are_those_of_the_library(world, counts):
    import cplearn_kernels as cpk
    from cplearn_kernels.distributed.ranges import code_ranges

    dictionary = cpk.HadamardDictionary(100, 5 * 128 + 7)
    longest = max(codes.num_codes for codes in code_ranges(dictionary, world) if codes is not None)
    assert hadamard(sum(counts), 100, dictionary.num_codes, world).codes_per_rank == longest


def test_alternatives():
    ways = formulas.alternatives(hadamard(4096, 2048, 1 << 30, 64, 2))
    ours, stay, everything = ways.values()
    assert stay["sent"] == pytest.approx(2 * 63 / 64 * 2 * 4 * 2**30) and stay["sent"] > 100 * ours["sent"]
    assert stay["logits"] == ours["logits"] and everything["logits"] == 64 * ours["logits"]
    assert [way["held"] for way in ways.values()] == [0, 8 << 30, 0]


def test_collectives_of_a_cluster():
    cluster = Cluster()
    assert cluster.all_gather(1, 1e9)[0] == cluster.all_reduce(1, 1e9) == cluster.all_to_all(1, 1e9) == 0
    # Large messages reach the bandwidth, small ones cost their latency.
    assert cluster.all_gather(8, 8e9)[0] == pytest.approx(7e9 / cluster.nvlink, rel=0.01)
    assert cluster.all_to_all(64, 8e9) == pytest.approx(56 / 64 * 8e9 / cluster.card, rel=0.01)
    assert cluster.all_gather(8, 64)[1].name == "LL" and cluster.all_gather(8, 8e9)[1].name == "Simple"
    assert 6e-6 < cluster.all_reduce(8, 64) < 30e-6 < cluster.all_reduce(64, 64) < 1e-3
    # An all-to-all has one card per GPU, rings have all eight of a node.
    assert cluster.all_to_all(64, 8e9) > 5 * cluster.reduce_scatter(64, 8e9)
    assert all(cluster.all_reduce(64, size) <= cluster.all_reduce(64, 2 * size) for size in (1e2, 1e4, 1e6, 1e8))


def test_predictions_move_the_right_way():
    small, large = predict(hadamard(4096, 2048, 1 << 20, 64, 2)), predict(hadamard(4096, 2048, 1 << 30, 64, 2))
    assert small.share_of_work < 0.5 < large.share_of_work and small.gradients == large.gradients
    fast = predict(hadamard(4096, 2048, 1 << 30, 64, 2), rate=1e15)
    assert fast.work == pytest.approx(hadamard(4096, 2048, 1 << 30, 64).logits_per_rank / 1e15)
    # Overlap hides a gather of one view or pass 1 of one, whichever is shorter.
    for t in (small, large, fast):
        assert t.rows - t.waits == pytest.approx(min(t.rows, t.pass_1) / 2)
    assert work_on_gpu(hadamard(256, 2048, 1 << 20, 1)).all == pytest.approx(2.7e-3, rel=0.1)  # docs/performance-gpu.md
    found = smallest_codes(4096, 2048, 64)
    assert predict(hadamard(4096, 2048, found, 64)).share_of_work >= 0.5
    assert predict(hadamard(4096, 2048, found // 2, 64)).share_of_work < 0.5
    assert smallest_codes(4096, 2048, 64, rate=1e18) is None


def test_behind_links():
    shape = hadamard(64, 128, 1 << 14, 2)
    assert behind_links(shape, 0.1, None, 0.0, 1.0) == 0.1
    assert behind_links(shape, 0.1, None, 1e-3, 1.0) == pytest.approx(0.1 + 12e-3)
    bits = 8 * formulas.sent_by_gloo(shape)
    assert behind_links(shape, 0.1, 1e6, 0.0, 0.0) == pytest.approx(0.1 + bits / 1e6)
    # Of two ranks' second gather all may hide behind pass 1, but no more than pass 1 takes.
    view = 8 * 32 * 128 * 4 / 1e6
    assert behind_links(shape, 0.1, 1e6, 0.0, 10.0) == pytest.approx(0.1 + bits / 1e6 - view)
    assert behind_links(shape, 0.1, 1e6, 0.0, 0.01) == pytest.approx(0.1 + bits / 1e6 - 0.01)


def test_commands(tmp_path, capsys):
    assert scaling.main(["sent", "crossover", "--rate", "1e12"]) == 0
    assert "agreement over NCCL" in capsys.readouterr().out
    assert scaling.main(["--shape", "256", "128", "20", "8"]) == 0 and "ms predicted" in capsys.readouterr().out
    for bad in (["nonsense"], ["--shape", "256", "128", "34", "8"], ["--update-docs", str(tmp_path / "none.md")]):
        assert scaling.main(bad) == 2 and capsys.readouterr().err.startswith("bench.scaling: ")
    page = tmp_path / "page.md"
    old, empty = "<!-- table: {} -->\nold\n<!-- end of table -->", "<!-- table: {} -->\n<!-- end of table -->"
    page.write_text(f"Before\n{empty.format('memory')}\nbetween\n{old.format('sent')}\nafter\n")
    assert scaling.main(["--update-docs", str(page)]) == 0
    text = page.read_text()
    new = "<!-- table: {} -->\n{}\n<!-- end of table -->"
    memory, sent = new.format("memory", scaling_tables.memory_table()), new.format("sent", scaling_tables.sent_table())
    assert text == f"Before\n{memory}\nbetween\n{sent}\nafter\n"
    page.write_text("<!-- table: nonsense -->\n\n<!-- end of table -->")
    assert scaling.main(["--update-docs", str(page)]) == 2


def test_the_tables_of_the_documentation_are_those_of_the_models_and_of_the_results():
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert scaling.filled(text, distributed.load(scaling.latest())) == text
    for name in (*scaling_tables.TABLES, *scaling.MEASURED):
        assert f"<!-- table: {name} -->" in text
