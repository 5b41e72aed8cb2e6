"""Checkpoints that lie elsewhere: behind a URL, or on the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from model.checkpoints.base_rows import BASE_ROWS
from model.checkpoints.description import ADAPTER, as_path, latest_checkpoint, model_config, read_config
from model.parts.config import ModelConfig
from pipelines.storage.files import is_local

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_repo_id(name: str) -> bool:
    """Whether a name can be that of a repository on the hub; a local folder of that name comes first."""
    return _REPO_ID.fullmatch(name) is not None and not Path(name).exists()


def find_checkpoint(name: str) -> Path | str:
    """The checkpoint that a name leads to, from whatever folder it is read; a repository's id stays as it is.

    Raises FileNotFoundError when there is none.
    """
    if is_repo_id(name):
        return name
    checkpoint = latest_checkpoint(name)
    return checkpoint.absolute() if is_local(checkpoint) else checkpoint


@contextmanager
def local_checkpoint(
    name_or_path: Path | str, *, revision: str | None = None, token: str | None = None
) -> Iterator[Path]:
    """The folder on this machine of a checkpoint or of a run's last one; a URL's is copied, and removed in the end.

    A text that names no local folder but could be a repository of the hub is taken for one, at `revision`, and read
    with `token`; the hub's own cache keeps it.

    Raises FileNotFoundError when there is no checkpoint there.
    """
    path = as_path(name_or_path)
    if not is_local(path):
        with TemporaryDirectory() as folder:
            yield _copy(latest_checkpoint(path), Path(folder))
    elif isinstance(name_or_path, str) and is_repo_id(name_or_path):
        yield latest_checkpoint(_snapshot(name_or_path, revision, token))
    else:
        yield latest_checkpoint(path)


def read_model_config(name_or_path: Path | str) -> ModelConfig:
    """The configuration of a checkpoint's model; of a run or behind a URL, no more than that is read.

    Raises as `local_checkpoint` does, and ValueError when it is not a checkpoint of ours.
    """
    path = as_path(name_or_path)
    if not (isinstance(name_or_path, str) and is_repo_id(name_or_path)):
        checkpoint = latest_checkpoint(path)
        return model_config(read_config(checkpoint), checkpoint)
    with local_checkpoint(name_or_path) as folder:
        return model_config(read_config(folder), folder)


def upload(directory: Path, repo_id: str, *, private: bool | None, token: str | None) -> str:
    """Commits a folder to a repository of the hub, which is made where it is absent; returns the commit's URL."""
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message="Upload model")
    return str(commit.commit_url)


def _snapshot(repo_id: str, revision: str | None, token: str | None) -> Path:
    try:
        return Path(snapshot_download(repo_id, revision=revision, token=token))
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(f"{repo_id}: no such folder, and the hub did not give it ({reason})") from error


def _copy(remote: Any, folder: Path) -> Path:
    """Copies what loading reads; what a training run keeps for itself, in other subfolders, stays where it is."""
    local = folder / "run" / remote.name
    (local / ADAPTER).mkdir(parents=True)
    for file in remote.iterdir():
        if file.is_file():
            download(file, local / file.name)
    description = read_config(local)
    for file in (remote / ADAPTER).iterdir() if description["adapter"] else ():
        download(file, local / ADAPTER / file.name)
    shared = remote.parent / BASE_ROWS
    if description["base_rows"] and not (local / BASE_ROWS).exists() and shared.is_file():
        download(shared, local.parent / BASE_ROWS)
    return local


def download(file: Any, place: Path) -> None:
    """Copies a file of a bucket onto this machine, piece by piece."""
    file.fs.get_file(file.path, str(place))
