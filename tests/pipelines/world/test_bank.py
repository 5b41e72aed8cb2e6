"""What foundations are trained on: nothing that is held out, and sounds of which one half has no name."""

import numpy as np

from pipelines.sample import Audio, Modality
from pipelines.world.bank import bank, half_named_sounds, joined
from pipelines.world.oracles import read
from pipelines.world.render import SAMPLE_RATE
from pipelines.world.scenes import PITCHES, TIMBRES, Sound, is_held_out


def test_nothing_in_a_bank_is_held_out() -> None:
    for modality in Modality:
        found = bank(modality, 64, num_captions=2)
        assert not any(is_held_out(subject) for subject in found.subjects)
        assert len(found.media) == len(found.captions) == 64


def test_of_a_half_named_sound_the_caption_tells_what_has_a_name_and_the_sound_has_it() -> None:
    found = half_named_sounds(40)
    for subject, samples, captions in zip(found.subjects, found.media, found.captions, strict=True):
        assert isinstance(subject, Sound)
        assert bool(subject.pitch) != bool(subject.timbre)
        names = [name for name in (*PITCHES, *TIMBRES) if name in captions[0]]
        assert names == [subject.pitch or subject.timbre]
        heard = read(Audio(waveform=samples[None].astype(np.float32), sample_rate=SAMPLE_RATE))
        if isinstance(heard, Sound):
            assert subject.pitch in ("", heard.pitch)
            assert subject.timbre in ("", heard.timbre)


def test_a_nameless_instrument_is_none_that_has_a_name() -> None:
    found = half_named_sounds(200)
    spectra = {name: np.array(harmonics) / np.linalg.norm(harmonics) for name, harmonics in TIMBRES.items()}
    for subject, samples in zip(found.subjects, found.media, strict=True):
        if isinstance(subject, Sound) and subject.pitch:
            time = np.arange(3200, 9600) / SAMPLE_RATE
            waves = [np.exp(-2j * np.pi * PITCHES[subject.pitch] * k * time) for k in range(1, 5)]
            amplitudes = np.abs([samples[3200:9600] @ wave for wave in waves])
            unit = amplitudes / np.linalg.norm(amplitudes)
            assert min(np.linalg.norm(unit - named) for named in spectra.values()) > 0.15


def test_banks_are_joined_in_order() -> None:
    first, second = bank(Modality.AUDIO, 3), half_named_sounds(2)
    both = joined(first, second)
    assert both.subjects == first.subjects + second.subjects
    assert both.media.shape == (5, *first.media.shape[1:])
    assert both.captions[3:] == second.captions
    assert both.captions[:3] == first.captions
