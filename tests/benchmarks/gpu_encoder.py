"""Media per second for an ImageBind of the released shape: its towers on a device, and preprocessing on one core."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor

from model.architectures.imagebind import MEL_BINS, MEL_FRAMES, ImageBind, ImageBindConfig
from model.encoders.imagebind_encoder import VIDEO_CROPS, image_inputs, video_inputs
from model.encoders.imagebind_inputs import VIDEO_CLIPS
from model.encoders.mel import AUDIO_CLIPS, audio_inputs
from pipelines.sample import Audio, Image, Modality, Video
from tests.benchmarks import in_a_process_of_its_own, say, table_head, table_row, timed
from tests.benchmarks.gpu_memory import gibibytes, wait_for
from tests.benchmarks.training import held_bytes

CLIPS = 60  # the batch size of `ImageBindEncoder`
_CLIPS_OF = {Modality.IMAGE: 1, Modality.VIDEO: VIDEO_CLIPS * VIDEO_CROPS, Modality.AUDIO: AUDIO_CLIPS}
_REPEATS = 5
_PREPARED = 8  # media
Rates = dict[Modality, float]


def lines(device: str, config: ImageBindConfig) -> Iterator[str]:
    """The lines of the table, as they are measured. Features are computed in float32; the rest is for comparison."""
    yield from table_head([f"ImageBind, {CLIPS} clips at once", "pictures/s", "videos/s", "sounds/s", "peak memory"])
    for title in ("float32", "float32 as TF32", "bfloat16 (autocast)"):
        say(f"gpu: ImageBind, {title}")
        rates, peak = in_a_process_of_its_own(_measure, device, config, title)
        yield _row(title, rates, gibibytes(peak))
    say("gpu: ImageBind, preparing media")
    rates = in_a_process_of_its_own(_prepare, config.image_size)
    yield _row("prepared by one core", rates, "")


def _row(title: str, rates: Rates, peak: str) -> str:
    return table_row([title, *(f"{rate:,.0f}" for rate in rates.values()), peak])


@torch.inference_mode()
def _measure(device: str, config: ImageBindConfig, title: str) -> tuple[Rates, int]:
    """Media per second by modality, and peak bytes."""
    if "TF32" in title:
        torch.set_float32_matmul_precision("high")
    with torch.device(device):
        model = ImageBind(config).eval()
    rates = {}
    for modality, clips in _CLIPS_OF.items():
        count = CLIPS // clips
        context = torch.autocast(device.partition(":")[0], torch.bfloat16) if "autocast" in title else nullcontext()
        rates[modality] = count / _seconds(
            partial(_tower(model, modality), _inputs(modality, config, count, device)), device, context
        )
    return rates, held_bytes()[1]


def _tower(model: ImageBind, modality: Modality) -> Callable[[Tensor], Tensor]:
    return model.forward_audio if modality is Modality.AUDIO else model.forward_vision


def _inputs(modality: Modality, config: ImageBindConfig, count: int, device: str) -> Tensor:
    size, clips = config.image_size, _CLIPS_OF[modality]
    shape = {
        Modality.IMAGE: (count, 3, size, size),
        Modality.VIDEO: (count, clips, 3, 2, size, size),
        Modality.AUDIO: (count, clips, 1, MEL_BINS, MEL_FRAMES),
    }[modality]
    return torch.randn(shape, device=device)


def _seconds(forward: Callable[[], Tensor], device: str, context: AbstractContextManager) -> float:
    """The seconds of one pass, after an untimed one."""
    with context:
        forward()
        wait_for(device)
        with timed() as watch:
            for _ in range(_REPEATS):
                forward()
            wait_for(device)
    return watch.seconds / _REPEATS


def _prepare(size: int) -> Rates:
    """Media per second that one core preprocesses: images and frames of 640 x 480, 10 s of sound."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (80, 480, 640, 3), np.uint8)
    sound = random.standard_normal((1, 441_000), np.float32)
    jobs: dict[Modality, Callable[[], object]] = {
        Modality.IMAGE: lambda: image_inputs(Image(pixels=frames[0]), size),
        Modality.VIDEO: lambda: video_inputs(Video(frames=frames, fps=8), size),
        Modality.AUDIO: lambda: audio_inputs(Audio(waveform=sound, sample_rate=44_100)),
    }
    rates = {}
    for modality, job in jobs.items():
        job()
        with timed() as watch:
            for _ in range(_PREPARED):
                job()
        rates[modality] = _PREPARED / watch.seconds
    return rates
