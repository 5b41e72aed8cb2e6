"""The benchmarks of training in their smallest form: that they run, what they print, that both sides do the same."""

from collections.abc import Iterator

import pytest

from model.core.nextgpt import NextGPT
from tests.benchmarks import features, logits, step, suites, training, waiting
from tests.benchmarks.training import BareLoop, Ground, batches_of, reader, rows_of

SMALLEST = 0.01


@pytest.fixture(scope="module")
def ground(local_ray: None) -> Iterator[Ground]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setattr(training, "WORLD_SIZE", 3)
        for module in (step, features, logits):
            patch.setattr(module, "REPEATS", 1)
        with training.ground(None) as place:
            yield place


@pytest.mark.ray
def test_a_step_is_compared_with_a_bare_loop_that_does_the_same(ground: Ground) -> None:
    settings = ground.settings(2, "optimizer.warmup_ratio=0")
    trainer = ground.trainer(settings)
    last = trainer.objective.last
    bare = BareLoop(NextGPT.from_config(settings.model), settings, last.criterion, last.weights)
    for model in (trainer.model, bare.model):
        model.eval()  # without dropout, two updates come to the same
    batches = list(batches_of(trainer, rows_of(reader(ground.plan(settings)), range(2)), range(2)))
    for number, batch in enumerate(batches):
        assert bare.step(batch) == pytest.approx(trainer.step(number, batch).loss, rel=1e-4)

    (row,) = step.run(SMALLEST, ground)

    assert row.measured
    assert (row.unit, row.target, row.at_most) == ("steps/s", 0.9, False)


@pytest.mark.ray
def test_features_from_the_cache_are_compared_with_the_encoder_in_the_loop(ground: Ground) -> None:
    (row,) = features.run(SMALLEST, ground)
    assert row.measured
    assert (row.unit, row.target) == ("samples/s", None)


@pytest.mark.ray
@pytest.mark.slow
def test_masked_logits_are_compared_with_full_ones(ground: Ground) -> None:
    time, memory = logits.run(SMALLEST, ground)
    assert time.measured
    assert memory.measured
    assert memory.at_most


@pytest.mark.ray
@pytest.mark.slow
def test_the_wait_for_data_is_read_from_the_log_of_a_run(ground: Ground) -> None:
    (row,) = waiting.run(SMALLEST, ground)
    assert row.measured
    assert "3 steps of stage 3 after the first" in row.note
    assert suites.table([row])[1].startswith("data wait / step")
