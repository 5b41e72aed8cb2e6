"""Measures this project against what a user could run in its place, and what a GPU does with it.

`jobs/bench.py pipelines`, `jobs/bench.py training`, `jobs/bench.py chat`, `jobs/bench.py gpu`; `jobs/bench.py real`
rehearses the preset nextgpt_7b. What is measured lies in `tests/benchmarks`, so this needs a checkout.
"""

import sys
from pathlib import Path

# Of a checkout; what Ray starts looks for modules where this process does.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.common import cli
from tests.benchmarks.suites import main

if __name__ == "__main__":
    cli.run(main)
