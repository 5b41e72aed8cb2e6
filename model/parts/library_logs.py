"""What transformers and diffusers say while a part loads that nobody can act on."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# They tell of deprecated pipelines (we pin diffusers), of an absent torchvision (we do not use it), and of how an LLM's
# own file would have it sampled (whoever asks says that: `model.inference.query.Sampling`).
_IDLE_LOGGERS = (
    "diffusers.pipelines.pipeline_utils",
    "transformers.utils.import_utils",
    "transformers.generation.configuration_utils",
)
# These also say what matters: only such lines of theirs are dropped.
_IDLE_LINES = {
    # Of a .bin where there is no .safetensors: it is read without running code in it, and raises where it is absent.
    "diffusers.models.modeling_utils": ("unsafe serialization", "trying to fetch", "kept in float32: []"),
    "transformers.configuration_utils": ("`hifigan`",),  # the type that every published vocoder has
}


class _Without(logging.Filter):
    """Drops the lines that hold one of some texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        super().__init__()
        self._texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in self._texts)


@contextmanager
def quiet_libraries(*, keep_bars: bool = False) -> Iterator[None]:
    """Keeps progress bars and notices that nobody can act on off the log while a part loads or is written."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = () if keep_bars else (diffusers_logging, transformers_logging)
    bars = [library for library in libraries if library.is_progress_bar_enabled()]
    levels = {name: logging.getLogger(name).level for name in _IDLE_LOGGERS}
    filters = {name: _Without(texts) for name, texts in _IDLE_LINES.items()}
    try:
        for name, line_filter in filters.items():
            logging.getLogger(name).addFilter(line_filter)
        for library in bars:
            library.disable_progress_bar()
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for library in bars:
            library.enable_progress_bar()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name, line_filter in filters.items():
            logging.getLogger(name).removeFilter(line_filter)
