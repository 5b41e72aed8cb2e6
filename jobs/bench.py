"""Benchmarks: this project against what a user could run instead, and what it gets out of a GPU.

`jobs/bench.py pipelines`, `jobs/bench.py training`, `jobs/bench.py chat`, `jobs/bench.py gpu`; `jobs/bench.py real`
rehearses the preset nextgpt_7b, `jobs/bench.py inputs` compares ways to train stage 1 and `jobs/bench.py recipe` ways
to train stage 2, and `jobs/bench.py curation` trains on spoiled, curated and clean data. The benchmarks are in
`tests/benchmarks`, so this needs a checkout.
"""

import sys
from pathlib import Path

# The checkout: processes that Ray starts look for modules where this one does.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.common import cli
from tests.benchmarks.suites import main

if __name__ == "__main__":
    cli.run(main)
