"""The decoders of a model: loaded when first needed and kept, on the device or in the host's memory."""

from collections.abc import Callable, Iterable, Sequence

import torch

from model.decoders.decoder import Decoder
from model.decoders.rendering import Wish, render
from model.parts.config import ModelConfig
from pipelines.sample import Decoded, Modality

OnDone = Callable[[Sequence[int], Sequence[Decoded]], None]


class DecoderPool:
    """Renders media of all modalities, as `config.decoders` says; `device_of` names the place of each decoder.

    With `on_device: one` modalities are rendered in turn, and only the decoder at work is on its device; else side by
    side. Loading raises as `Decoder` does.
    """

    def __init__(self, config: ModelConfig, device_of: Callable[[Modality], torch.device | str]) -> None:
        self._config, self._device_of = config, device_of
        self._decoders: dict[Modality, Decoder] = {}

    @property
    def loaded(self) -> set[Modality]:
        """Whose decoders are loaded so far."""
        return set(self._decoders)

    def render(self, wishes: Sequence[Wish], *, on_done: OnDone = lambda places, media: None) -> list[Decoded]:
        """Renders wishes as `model.decoders.rendering.render` does."""
        modalities = list(dict.fromkeys(wish.modality for wish in wishes))
        if self._config.decoders.on_device == "all":
            # In turn: loading is not safe in threads.
            return render({modality: self.decoder(modality) for modality in modalities}, wishes, on_done=on_done)
        media: dict[int, Decoded] = {}
        for modality in modalities:
            places = [place for place, wish in enumerate(wishes) if wish.modality is modality]
            media |= zip(places, self._render_alone(modality, wishes, places, on_done), strict=True)
        return [media[place] for place in range(len(wishes))]

    def decoder(self, modality: Modality) -> Decoder:
        """A decoder on its device; with `on_device: one` the others leave theirs."""
        if self._config.decoders.on_device == "one":
            self.offload(other for other in self._decoders if other is not modality)
        device = self._device_of(modality)
        if modality not in self._decoders:
            name = self._config.outputs[modality].decoder
            self._decoders[modality] = Decoder(modality, name, device, self._config.decoders)
        self._decoders[modality].to(device)
        return self._decoders[modality]

    def offload(self, modalities: Iterable[Modality] | None = None) -> None:
        """Moves decoders (all of them by default) to the host's memory, and gives their place on the device free."""
        for modality in list(self._decoders if modalities is None else modalities):
            self._decoders[modality].to("cpu")

    def _render_alone(
        self, modality: Modality, wishes: Sequence[Wish], places: Sequence[int], on_done: OnDone
    ) -> list[Decoded]:
        return render(
            {modality: self.decoder(modality)},
            [wishes[place] for place in places],
            on_done=lambda done, media: on_done([places[place] for place in done], media),
        )
