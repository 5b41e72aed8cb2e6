"""What the columns of jobs/curate.py say of a stage's samples: which are selected, and how often each comes."""

from collections.abc import Iterable, Mapping, Sequence

from model.training.train_settings import EVERY, TrainSettings
from pipelines.curate.selection import Selection, select
from pipelines.curate.weights import SampleWeights, weigh
from pipelines.handover.stage_samples import PlannedView
from pipelines.storage.new_captions import COLUMN


def select_samples(settings: TrainSettings, views: Sequence[PlannedView], mistakes: list[str]) -> dict[str, Selection]:
    """The samples of each view that has a condition: in the catalog, for all datasets, or for itself.

    Where new captions are chosen, a sample has to have one.
    """
    where, found = settings.where or {}, dict[str, Selection]()
    mistakes += _absent("where", [name for name in where if name != EVERY], views)
    for view in views:
        conditions = [view.manifest.where.get(view.name), where.get(EVERY), where.get(view.name)]
        if view.captions and view.captions.choice == "new":
            conditions.append(f"{COLUMN} is not null")
        try:
            if texts := list(filter(None, conditions)):
                found[view.name] = select(view.directory, view.manifest, texts)
        except ValueError as error:
            mistakes.append(str(error))
    return found


def weigh_samples(
    settings: TrainSettings, views: Sequence[PlannedView], selections: Mapping[str, Selection], mistakes: list[str]
) -> dict[str, SampleWeights]:
    """The weights of the samples of each view that a column weighs."""
    columns, found = settings.weight_columns or {}, dict[str, SampleWeights]()
    mistakes += _absent("weight_columns", columns, views)
    for view in views:
        try:
            if column := columns.get(view.name):
                found[view.name] = weigh(view.directory, view.manifest, column, selections.get(view.name))
        except ValueError as error:
            mistakes.append(str(error))
    return found


def _absent(setting: str, names: Iterable[str], views: Sequence[PlannedView]) -> list[str]:
    there = {view.name for view in views}
    return [f"{setting}: {name} is not among the datasets of this run" for name in names if name not in there]
