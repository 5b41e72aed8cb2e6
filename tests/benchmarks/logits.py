"""A step with logits only at positions with a label, against one with logits everywhere: time and memory.

Both are bare PyTorch loops on the same batches of stage 3 with the same loss; peak memory is measured in a separate
process.
"""

from model.core.batch import Batch
from model.core.dialogue import IGNORE
from model.core.losses import Criterion, LossWeights
from model.core.nextgpt import NextGPT, Predictions
from model.parts.devices import best_device
from model.training.train_settings import TrainSettings
from pipelines.sample import Modality
from tests.benchmarks import PROCESS, Row, compare, in_a_process_of_its_own, not_measured, timed
from tests.benchmarks.training import BareLoop, Ground, batches_of, held_bytes, reader, rows_of

STEPS = 4
SAMPLES = 16
REPEATS = 5
MEMORY = "peak memory, masked / full logits"


class FullLogits(NextGPT):
    """Computes logits at every position, as the original does; the loss ignores positions without a label."""

    def forward(self, batch: Batch) -> Predictions:
        """As in NextGPT, with P covering all positions but the last."""
        embeds_BTH = self.embed_batch(batch)
        hidden_BTH = self.run_llm(embeds_BTH, batch.attention_mask_BT).last_hidden_state
        conditions, nulls = self._conditions(batch, hidden_BTH, embeds_BTH)
        return Predictions(
            logits_PV=self.logits(hidden_BTH[:, :-1]).flatten(0, 1),
            labels_P=batch.labels_BT[:, 1:].flatten(),
            conditions=conditions,
            nulls=nulls,
        )


def run(scale: float, ground: Ground) -> list[Row]:
    """Steps per second, and the peak memory of the whole process in MB, of both sides."""
    steps = max(1, round(STEPS * scale))
    settings = ground.settings(3, f"batch_size={SAMPLES}", f"micro_batch_size={SAMPLES}", "workers=1")
    trainer = ground.trainer(settings)
    rows = rows_of(reader(ground.plan(settings)), range(steps))
    batches = [batch for step in batches_of(trainer, rows, range(steps)) for batch in step]
    return [_time(settings, batches), _memory(settings, batches)]


def _time(settings: TrainSettings, batches: list[Batch]) -> Row:
    masked, full = _loop(NextGPT, settings), _loop(FullLogits, settings)
    losses = masked.step(batches[:1]), full.step(batches[:1])
    assert abs(losses[0] - losses[1]) < 1e-3 * losses[0], f"two losses of one batch: {losses}"

    def rate(loop: BareLoop) -> float:
        with timed() as watch:
            for batch in batches:
                loop.step([batch])
        return len(batches) / watch.seconds

    ours, peer = compare(lambda: rate(masked), lambda: rate(full), REPEATS, title="logits: steps/s")
    return Row(
        name="step, masked / full logits",
        ours=ours,
        peer=peer,
        ratio=ours / peer,
        target=1.0,
        unit="steps/s",
        note=f"{SAMPLES} samples per step, vocabulary of {settings.model.llm.vocab_size:,}; {_share(batches)}",
    )


def _share(batches: list[Batch]) -> str:
    learned = sum(int((batch.labels_BT[:, 1:] != IGNORE).sum()) for batch in batches)
    positions = sum(batch.labels_BT[:, 1:].numel() for batch in batches)
    return f"{learned:,} of {positions:,} positions have a label"


def _memory(settings: TrainSettings, batches: list[Batch]) -> Row:
    if best_device() == "cpu" and not PROCESS.is_file():
        return not_measured(MEMORY, 1.0, "MB", "needs the process files of Linux", at_most=True)
    largest = max(batches, key=lambda batch: batch.labels_BT.numel())
    (ours, before), (peer, peer_before) = (
        in_a_process_of_its_own(_peak, kind, settings, largest) for kind in (NextGPT, FullLogits)
    )
    return Row(
        name=MEMORY,
        ours=ours,
        peer=peer,
        ratio=ours / peer,
        target=1.0,
        unit="MB",
        at_most=True,
        note=f"of a process running two steps; increase over its memory before: {ours - before:.0f} and "
        f"{peer - peer_before:.0f} MB",
    )


def _peak(kind: type[NextGPT], settings: TrainSettings, batch: Batch) -> tuple[float, float]:
    """The peak memory of this process over two steps, and its memory before, in MB."""
    loop = _loop(kind, settings)
    before = held_bytes()[0] / 1e6
    for _ in range(2):
        loop.step([batch])
    return held_bytes()[1] / 1e6, before


def _loop(kind: type[NextGPT], settings: TrainSettings) -> BareLoop:
    model = kind.from_config(settings.model, adapter=True, seed=settings.seed)
    model.eval()  # without dropout, so that both have the same loss
    criterion = Criterion(vocabulary=model.vocabulary, alignment_variance=dict.fromkeys(Modality, 1.0))
    return BareLoop(model, settings, criterion, LossWeights())
