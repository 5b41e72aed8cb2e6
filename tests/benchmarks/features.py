"""Stage 1 with cached features, against the encoder in the training loop as in the original NExT-GPT.

Ours reads features from sidecars; the peer decodes each batch's media from memory and runs ImageBind on them in every
step. Both then encode the dialogues and run the same training step on the same model.
"""

from collections.abc import Callable

import numpy as np

from model.encoders.imagebind_encoder import ImageBindEncoder
from model.parts.devices import best_device
from model.training import feed
from pipelines.embed.encoding import VIDEO_FPS
from pipelines.handover.stage_samples import PlannedView
from pipelines.media.codecs import decode
from pipelines.sample import Media
from pipelines.storage.shards import iterate_samples
from tests.benchmarks import Row, compare, timed
from tests.benchmarks.training import WARMUP_STEPS, Ground, batches_of, reader, rows_of

STEPS = 6
REPEATS = 3


def run(scale: float, ground: Ground) -> list[Row]:
    """Samples per second of both sides; each reads its own rows."""
    steps = max(2, round(STEPS * scale))
    settings = ground.settings(1)
    plan = ground.plan(settings)
    trainer, read, media = ground.trainer(settings), reader(plan), _media(plan.views)
    encoder = ImageBindEncoder(settings.model.encoder.inputs[None].name, device=best_device())

    def cached(step: int) -> list[feed.Row]:
        return list(rows_of(read, range(step, step + 1)))

    def encoded(step: int) -> list[feed.Row]:
        rows = cached(step)
        features = encoder([decode(media[row["key"]], fps=VIDEO_FPS) for row in rows])
        return [{**row, "encoder": feature[None]} for row, feature in zip(rows, features, strict=True)]

    def rate(rows_at: Callable[[int], list[feed.Row]], first: int, last: int) -> float:
        samples = 0
        with timed() as watch:
            for step in range(first, last):
                rows = rows_at(step)
                (batches,) = batches_of(trainer, rows, range(step, step + 1))
                samples += trainer.step(step, batches).samples
        return samples / watch.seconds

    for kept, made in zip(cached(0), encoded(0), strict=True):
        assert np.allclose(kept["encoder"], made["encoder"], atol=1e-4), f"{kept['key']}: other features"
    rate(cached, 0, WARMUP_STEPS)
    ours, peer = compare(
        lambda: rate(cached, 0, steps), lambda: rate(encoded, 0, steps), REPEATS, title="features: samples/s"
    )
    return [
        Row(
            name="stage 1, cached / encoder in the loop",
            ours=ours,
            peer=peer,
            ratio=ours / peer,
            target=None,
            unit="samples/s",
            note=f"{steps * settings.batch_size} samples of {', '.join(view.name for view in plan.views)}; the encoder "
            f"is {settings.model.encoder.name}, a toy: with ImageBind huge the peer is much slower",
        )
    ]


def _media(views: list[PlannedView]) -> dict[str, Media]:
    """The encoded medium of every caption pair, by row key."""
    found = {}
    for view in views:
        for shard in view.manifest.shards:
            for sample in iterate_samples(view.directory / shard.name):
                (found[f"{view.name}/{sample.key}"],) = sample.media.values()
    return found
