"""The checkpoints of a run: written in the background, completed atomically, pruned to the best and the last.

run/
  checkpoint-000100/   a checkpoint for from_pretrained (see checkpoint.py), and engine/, the state to resume from
"""

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.checkpoint import finish
from model.checkpoints.description import CONFIG
from model.runs.run_state import BEST, FOLDER, PREFIX, STATE, TrainState, finished
from pipelines.storage.files import remove_tree, write_json

Write = Callable[[Path], Mapping[str, Any]]


@dataclass(slots=True, kw_only=True)
class _Pending:
    folder: Path
    state: TrainState
    written: Future[Mapping[str, Any] | None]


class RunCheckpoints:
    """One rank's part of writing a run's checkpoints; all ranks call the same methods at the same steps.

    A checkpoint is complete once its `config.json` exists, which rank 0 writes after every rank's files. `on_finished`
    is then called on all ranks. Checkpoints are written one at a time.
    """

    def __init__(
        self,
        run: Path,
        *,
        rank: int,
        keep_last: int,
        all_done: Callable[[bool], bool],
        on_finished: Callable[[Path, TrainState], None],
    ) -> None:
        self._run, self._rank, self._keep_last = run, rank, keep_last
        self._all_done, self._on_finished = all_done, on_finished
        self._pending: _Pending | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    def folder(self, step: int) -> Path:
        """The folder of the checkpoint after `step` updates."""
        return self._run / f"{PREFIX}{step:06d}"

    def clear(self, step: int) -> None:
        """Deletes the remains of an interrupted attempt to write a checkpoint."""
        if self._rank == 0 and self.folder(step).is_dir():
            _remove(self.folder(step))

    def start(self, state: TrainState, files: Mapping[str, Any], write: Write | None) -> None:
        """Starts writing: `files` of this rank's engine, and what `write` (on rank 0) creates in a local folder."""
        assert self._pending is None
        folder = self.folder(state.step)
        written = self._thread.submit(self._write, folder, state, files, write)
        self._pending = _Pending(folder=folder, state=state, written=written)

    def poll(self, *, wait: bool = False) -> None:
        """Completes the pending checkpoint if every rank has written its part; `wait` blocks until then."""
        if self._pending is None:
            return
        if wait or self._pending.written.done():
            self._pending.written.result()  # raise before other ranks count this part as written
        if not self._all_done(self._pending.written.done()):
            return
        pending, self._pending = self._pending, None
        description = pending.written.result()
        if self._rank == 0:
            assert description is not None
            finish(pending.folder, description)
            self._prune()
        self._on_finished(pending.folder, pending.state)

    def close(self) -> None:
        """Waits for the thread."""
        self._thread.shutdown()

    def _write(
        self, folder: Path, state: TrainState, files: Mapping[str, Any], write: Write | None
    ) -> Mapping[str, Any] | None:
        description = None
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with (folder / FOLDER / name).open("wb") as file:
                torch.save(content, file)
        if write is not None:
            with tempfile.TemporaryDirectory() as scratch:
                description = write(Path(scratch))
                for path in sorted(Path(scratch).rglob("*")):
                    if path.is_file():
                        target = folder / path.relative_to(scratch).as_posix()
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(path.read_bytes())
            write_json(folder / FOLDER / STATE, asdict(state))
        return description

    def _prune(self) -> None:
        """Deletes all but the last checkpoints and the best by validation loss; lists these in `checkpoints.json`."""
        found = finished(self._run)
        losses = {folder: TrainState.read(folder).validation.get("loss") for folder in found}
        scored = {folder: loss for folder, loss in losses.items() if loss is not None}
        best = min(scored, key=lambda folder: scored[folder], default=None)
        kept = [folder for folder in found if folder in found[-self._keep_last :] or folder == best]
        rows = [{"name": f.name, "validation_loss": losses[f], "best": f == best} for f in kept]
        write_json(self._run / BEST, rows)
        for folder in found:
            if folder not in kept:
                _remove(folder)


def _remove(folder: Path) -> None:
    """Deletes `config.json` first, so that the remains are never taken for a checkpoint."""
    (folder / CONFIG).unlink(missing_ok=True)
    remove_tree(folder)
