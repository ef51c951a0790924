"""train/loop.py: order of the images, learning rate, one step and its gradient, checkpoints between epochs."""

import pytest
import torch
from running import make

from train import loop
from train.checkpoint import Progress
from train.data import load
from train.seeds import derive_seed


def test_an_epoch_is_a_permutation_without_its_remainder(tiny_config):
    steps = list(loop.batches(tiny_config(), 100, 0))
    assert len(steps) == 6 and all(len(step) == 32 for step in steps)
    first, second = torch.cat(steps[:3]), torch.cat(steps[3:])
    assert len(first.unique()) == len(second.unique()) == 96 and not torch.equal(first, second)


@pytest.mark.parametrize("first_step", range(7))
def test_the_order_does_not_depend_on_where_one_starts(tiny_config, first_step):
    config = tiny_config()
    whole, rest = list(loop.batches(config, 100, 0)), list(loop.batches(config, 100, first_step))
    assert len(rest) == 6 - first_step and all(torch.equal(a, b) for a, b in zip(whole[first_step:], rest))


def test_seeds_differ_by_purpose_index_and_seed():
    seeds = [derive_seed(s, p, i) for s in (0, 1) for p in ("order", "step") for i in range(50)]
    assert len(set(seeds)) == 200 and min(seeds) >= 0 and max(seeds) < 2**63


def test_learning_rate_rises_then_falls_to_zero(tiny_config):
    config = tiny_config(epochs=10, warmup_epochs=2, lr=0.5)
    rates = [loop.learning_rate(config, step, 3) for step in range(30)]
    assert rates[:7] == sorted(rates[:7]) and rates[6:] == sorted(rates[6:], reverse=True)
    assert rates[0] == pytest.approx(0.5 / 7) and max(rates) == rates[6] == 0.5 and 0 < rates[-1] < 0.01
    assert rates[18] == pytest.approx(0.25)


def test_cutting_the_graph_leaves_the_gradient_as_it_is(tiny_config):
    config = tiny_config()
    first, second = torch.rand(2, 32, 3, 32, 32)
    cut, optimiser = make(config)
    encode = loop.BothViews(loop.encoder(config, cut), cut)
    metrics = loop.train_step(encode, cut, optimiser, first, second, loop.Stopwatch({}, "cpu"))
    plain, _ = make(config)
    loss, _ = plain.loss(plain.head(plain.backbone(first)), plain.head(plain.backbone(second)))
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    pairs = [(a.grad, b.grad) for a, b in zip(cut.parameters(), plain.parameters())]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)
    assert any(b.abs().max() > 1e-3 for _, b in pairs)


def test_shares_of_a_step_add_up(tiny_config):
    progress = Progress(step=6, seconds={"views": 1.0, "loss": 2.0, "encoder forward": 5.0})
    found = loop.throughput(tiny_config(), progress)
    assert found == {
        "images_per_second": 6 * 32 / 8,
        "seconds_training": 8.0,
        "views_fraction_of_step": 0.125,
        "loss_fraction_of_step": 0.25,
        "encoder_forward_fraction_of_step": 0.625,
    }


def trained(config):
    """The progress of a run from its beginning to its end."""
    config.output_dir.mkdir()
    progress = Progress()
    loop.train(config, load(config), *make(config), progress)
    return progress


@pytest.mark.slow
def test_training_lowers_the_loss(tiny_config):
    progress = trained(tiny_config(epochs=8, num_train=160, lr=5e-3))
    assert progress.step == 40 and len(progress.history) == 8
    assert progress.history[-1]["loss"] < progress.history[0]["loss"] - 0.3


def test_bfloat16_changes_the_encoder_a_little_and_the_loss_gets_float32(tiny_config):
    first, second = torch.rand(2, 32, 3, 32, 32)
    losses, embeddings = {}, {}
    for precision in ("float32", "bfloat16"):
        config = tiny_config(precision=precision)
        method, optimiser = make(config)
        encode = loop.encoder(config, method)
        embeddings[precision] = encode(first).detach()
        assert embeddings[precision].dtype == torch.float32
        both = loop.BothViews(encode, method)
        losses[precision] = loop.train_step(both, method, optimiser, first, second, loop.Stopwatch({}, "cpu"))["loss"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    difference = (embeddings["bfloat16"] - embeddings["float32"]).abs().max()
    assert 1e-5 < difference < 0.2, "the same to the last digits: autocast did nothing"


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_embeddings(tiny_config):
    images = torch.rand(8, 3, 32, 32)
    method, _ = make(tiny_config())
    method.eval()
    plain = loop.encoder(tiny_config(), method)(images)
    compiled = loop.encoder(tiny_config(compile=True), method)
    assert hasattr(compiled, "_torchdynamo_orig_callable"), "not compiled at all"
    assert torch.allclose(compiled(images), plain, atol=1e-5)


def test_tensorboard_events_hold_the_metrics(tiny_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(tensorboard=True)
    progress = trained(config)
    events = EventAccumulator(str(config.output_dir / "tensorboard")).Reload()
    for name in ("loss", "prior", "invariance", "lr"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in progress.history], name
