"""Remote checkpoints: behind a URL, or on the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from model.checkpoints.description import ADAPTER, BASE_ROWS, as_path, latest_checkpoint, model_config, read_config
from model.parts.config import ModelConfig
from pipelines.storage.files import is_local

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_repo_id(name: str) -> bool:
    """Whether a name can be a hub repository; a local folder of that name takes precedence."""
    return _REPO_ID.fullmatch(name) is not None and not Path(name).exists()


def find_checkpoint(name: str) -> Path | str:
    """The checkpoint that a name refers to, as an absolute path; a hub id is returned unchanged.

    Raises FileNotFoundError if there is none.
    """
    if is_repo_id(name):
        return name
    checkpoint = latest_checkpoint(name)
    return checkpoint.absolute() if is_local(checkpoint) else checkpoint


@contextmanager
def local_checkpoint(
    name_or_path: Path | str, *, revision: str | None = None, token: str | None = None
) -> Iterator[Path]:
    """Yields the local folder of a checkpoint, or of a run's last one; one behind a URL is copied, then deleted.

    A string that is no local folder but could be a hub repository is downloaded at `revision`, with `token`, into the
    hub's own cache.

    Raises FileNotFoundError if there is no checkpoint.
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
    """The model configuration of a checkpoint; from a folder or URL, nothing else is read.

    Raises as `local_checkpoint` does, and ValueError if it is not a checkpoint of ours.
    """
    path = as_path(name_or_path)
    if not (isinstance(name_or_path, str) and is_repo_id(name_or_path)):
        checkpoint = latest_checkpoint(path)
        return model_config(read_config(checkpoint), checkpoint)
    with local_checkpoint(name_or_path) as folder:
        return model_config(read_config(folder), folder)


def upload(directory: Path, repo_id: str, *, private: bool | None, token: str | None) -> str:
    """Commits a folder to a hub repository, creating it if needed; returns the commit's URL."""
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message="Upload model")
    return str(commit.commit_url)


def _snapshot(repo_id: str, revision: str | None, token: str | None) -> Path:
    try:
        return Path(snapshot_download(repo_id, revision=revision, token=token))
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(f"{repo_id}: no such folder, and the hub download failed ({reason})") from error


def _copy(remote: Any, folder: Path) -> Path:
    """Copies the files needed for loading; training state in other subfolders is not copied."""
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
    """Downloads a remote file in chunks."""
    file.fs.get_file(file.path, str(place))
