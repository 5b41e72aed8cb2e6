"""The chat server, whose model waits for a file: `python -m tests.jobs.serving.late_server FILE ...`."""

import sys
import time
from pathlib import Path
from typing import Any

from jobs import chat
from jobs.common import cli
from jobs.serving import app, deployments


class LateModel(deployments.Together):
    """Takes as long to load as a test wants."""

    def __init__(self, *arguments: Any) -> None:
        while not Path(FILE).exists():
            time.sleep(0.1)
        super().__init__(*arguments)


if __name__ == "__main__":
    FILE, *options = sys.argv[1:]
    app.Together = LateModel  # type: ignore[misc]
    cli.run(lambda _: chat.main(options))
