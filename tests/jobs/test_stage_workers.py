"""How many workers train, and on what, by what the cluster has and what is set."""

from collections.abc import Callable

import pytest
import ray

from jobs.common.cli import UsageError
from jobs.common.settings import load_settings
from jobs.training import workers as subject
from jobs.training.workers import choose_workers

Cluster = Callable[..., None]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Says what Ray is to have, and whether it was started by this process alone."""

    def have(*, here: bool = True, **resources: float) -> None:
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
        monkeypatch.setattr(subject, "started_here", lambda: here)

    return have


def test_there_is_a_worker_a_gpu_or_a_core_as_far_as_there_is_work(cluster: Cluster) -> None:
    cluster(CPU=8.0, GPU=4.0)
    assert (choose_workers(load_settings(1, "nextgpt_7b")).count, choose_workers(load_settings(1, "world")).count) == (
        4,
        2,
    )
    cluster(CPU=1.0)
    chosen = choose_workers(load_settings(1, "world"))
    assert (chosen.count, chosen.use_gpu, chosen.note) == (1, False, None)


def test_a_machine_without_a_gpu_trains_all_the_same_and_says_so(cluster: Cluster) -> None:
    cluster(CPU=8.0)
    chosen = choose_workers(load_settings(1, "nextgpt_7b"))
    assert (chosen.count, chosen.use_gpu) == (1, False)
    assert chosen.note is not None
    assert chosen.note.startswith("no GPU on this machine: the CPU trains")
    assert "\n" not in chosen.note


def test_gpus_that_a_cluster_may_start_are_asked_for(cluster: Cluster) -> None:
    cluster(CPU=2.0, here=False)
    chosen = choose_workers(load_settings(1, "nextgpt_7b", ["workers=4"]))
    assert (chosen.count, chosen.use_gpu) == (4, True)
    assert chosen.note is not None
    assert "use_gpu=false" in chosen.note


def test_how_many_gpus_a_cluster_is_to_start_must_be_said(cluster: Cluster) -> None:
    cluster(CPU=2.0, here=False)
    with pytest.raises(UsageError, match=r"workers=4, or train on CPUs with use_gpu=false"):
        choose_workers(load_settings(1, "nextgpt_7b"))


def test_the_cpus_of_a_cluster_train_if_told_to(cluster: Cluster) -> None:
    cluster(CPU=3.0, here=False)
    chosen = choose_workers(load_settings(1, "nextgpt_7b", ["use_gpu=false"]))
    assert (chosen.count, chosen.use_gpu, chosen.note) == (3, False, None)
