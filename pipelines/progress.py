"""Progress for people: a bar on a terminal, a line every few seconds in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

LOG_SECONDS = 10.0


class Progress:
    """Counts finished work, with counters such as rejected rows; shows a bar, or lines without a terminal.

    Without a total, which only the end of a source tells, there is no estimate. With `announce` the first line of a log
    comes at once: what is to be done may take minutes before any of it is done.
    """

    def __init__(self, title: str, total: int | None, unit: str, announce: bool = False) -> None:
        self._bar = tqdm(total=total, desc=title, unit=f" {unit}", leave=False, disable=not sys.stderr.isatty())
        self._title, self._total, self._unit = title, total, unit
        self._done = 0
        self._counts: dict[str, int] = {}
        self._started = self._shown = time.monotonic()
        if announce and self._bar.disable:
            print(f"{title}: {f'0 of {total} ' if total else ''}{unit}", file=sys.stderr, flush=True)

    def advance(self, amount: int = 1, **counts: int) -> None:
        """Advances by `amount`, and adds to the named counters."""
        self._done += amount
        for name, count in counts.items():
            if count:
                self._counts[name] = self._counts.get(name, 0) + count
                self._bar.set_postfix(self._counts, refresh=False)
        self._bar.update(amount)
        if self._bar.disable and time.monotonic() - self._shown > LOG_SECONDS:
            self._print_line()

    def close(self) -> None:
        """Removes the bar; the command's summary repeats what it showed."""
        self._bar.close()

    def _print_line(self) -> None:
        self._shown = time.monotonic()
        rate = self._done / (self._shown - self._started)
        counts = "".join(f", {count} {name}" for name, count in self._counts.items())
        line = f"{self._title}: {self._done}{f' of {self._total}' if self._total else ''} {self._unit}{counts}"
        left = f", about {(self._total - self._done) / rate:.0f} s left" if self._total and rate else ""
        print(f"{line}, {rate:.1f}/s{left}", file=sys.stderr, flush=True)


@contextmanager
def track(title: str, total: int | None, unit: str, announce: bool = False) -> Iterator[Progress]:
    """Shows progress with rate and remaining time on standard error."""
    progress = Progress(title, total, unit, announce)
    try:
        yield progress
    finally:
        progress.close()
