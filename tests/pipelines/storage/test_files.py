"""Files that appear whole or not at all: what is said where they cannot be written."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.storage.files import atomic_path


def test_a_disk_that_fills_up_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from pipelines.storage.files import atomic_path\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with atomic_path(Path(sys.argv[1])) as temporary, temporary.open('wb') as file:\n"
        "        file.write(bytes(2000))\n"
        "except OSError as error:\n"
        "    print(error.errno, error.filename)\n"
    )
    path = tmp_path / "deep" / "a.tar"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{errno.EFBIG} {path}\n"
    assert list(path.parent.iterdir()) == []


def test_an_error_of_reading_is_not_told_of_the_file_that_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a.tar"):
        (tmp_path / "absent").read_bytes()
    assert str(caught.value.filename) == str(tmp_path / "absent")


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/a\.tar'$"), atomic_path(tmp_path / "file" / "a.tar"):
        pass
