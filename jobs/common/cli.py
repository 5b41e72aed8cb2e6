"""What all commands share: declaring options, exit codes, one-line errors, tables, and starting Ray."""

import logging
import os
import re
import signal
import sys
import traceback
import warnings
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, _ActionsContainer
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from jobs.common import signals

# Workers already share the driver's environment; Ray's own hook would rebuild it with `uv run` in each worker.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Otherwise Ray Train logs what workers print a second time.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
# c10d warns about host names without a reverse DNS entry, and about barriers although the device is set. Workers read
# this when they import torch; errors are still shown.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
# Loggers whose warnings are of no use to users of these commands.
CHATTER = ("ray._private.authentication", "ray.data", "ray.train", "torch.distributed.c10d_logger")

# Ray Train's controller logs a traceback for each of its own calls that takes more than a few seconds, as happens on a
# busy machine. It repeats them, but for the last one, whose result nobody needs.
_IMPATIENT = (
    "ray.train.v2._internal.callbacks.placement_group_callback",
    "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client",
    "ray.train.v2._internal.execution.scaling_policy.elastic",
)

# Ray's core warns once per run about an actor that Ray Train itself creates.
_NO_NEWS = re.compile(r" core_worker\.cc:\d+: Actor with class name: .* constructor arguments in the object store")
# An actor of Ray Train's that removes what a dead run had reserved; where a busy machine answers late, its thread ends
# with a traceback.
_UNHEARD_ACTOR = "PlacementGroupCleaner"

FAILED = 1
USAGE = 2

Main = Callable[[Sequence[str] | None], None]
Options = TypeVar("Options")


class UsageError(ValueError):
    """The command line or the configuration is wrong; one line per mistake."""


class Failures(ValueError):
    """Several things failed independently; one line per failure."""


def _is_news(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "GetTimeoutError"


def _leave_out_what_is_none(log: Mapping[str, Any]) -> None:
    is_unheard = _UNHEARD_ACTOR in str(log.get("actor_name"))
    log["lines"][:] = [line for line in log["lines"] if not is_unheard and not _NO_NEWS.search(line)]


# At import: the controller, a process of Ray's, imports this module first, but calls nothing in it.
for _name in _IMPATIENT:
    logging.getLogger(_name).addFilter(_is_news)


@dataclass(frozen=True, slots=True)
class Option:
    """What a field of a command's options does not say itself: `Annotated[int, Option("epochs", least=1)] = 3`.

    The field's type and default say the rest: a tuple takes several values, a bool is a flag, a Literal lists the
    choices, a dataclass adds its own options, and what has no default is required.
    """

    help: str = ""
    metavar: str | None = None
    _: KW_ONLY
    flag: str = ""  # where it is not --the-name-of-the-field
    choices: Collection[str] | None = None
    several: Literal["+", "*", "append"] = "+"  # how a tuple is given: after one flag, or one value after each flag
    positional: bool = False
    exclusive: bool = False  # exactly one of the options so marked is given
    least: int | None = None
    above: int | None = None
    most: int | None = None
    # What the field itself says; `declared` fills it in.
    name: str = ""
    kind: Any = str
    default: Any = None
    embeds: bool = False

    def mistake(self, value: float) -> str | None:
        """What is wrong with a number; None where nothing is."""
        if self.least is self.above is self.most is None:
            return None
        is_enough = (self.above is None or value > self.above) and (self.least is None or value >= self.least)
        if is_enough and (value < float("inf") if self.most is None else value <= self.most):
            return None
        if self.above is None:
            return f"must be at least {self.least}" if self.most is None else f"must be {self.least} to {self.most}"
        return f"must be more than {self.above}" + (f", and {self.most} at most" if self.most is not None else "")


def overrides(examples: str) -> Option:
    """The positional settings `key=value`, in the same way for every command."""
    return Option(f"settings, such as {examples}", "key=value", positional=True, several="*")


def declared(options: type) -> Iterator[Option]:
    """The options of a dataclass, each with the name, type and default of its field."""
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        hint = hints[field.name]
        kind, option = get_args(hint) if get_origin(hint) is Annotated else (hint, Option())
        if NoneType in get_args(kind):
            kind = get_args(kind)[0]
        flag = option.flag or f"--{field.name.replace('_', '-')}"
        embeds = is_dataclass(kind)
        yield replace(option, name=field.name, flag=flag, kind=kind, default=field.default, embeds=embeds)


def command(kind: type[Options], run: Callable[[Options], None]) -> Main:
    """A command whose options are declared by a frozen dataclass; its docstring describes the command."""

    def main(argv: Sequence[str] | None = None) -> None:
        run(parse(kind, argv))

    return main


def parse(kind: type[Options], argv: Sequence[str] | None) -> Options:
    """The options on a command line, or on that of the process."""
    parser = ArgumentParser(description=kind.__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    _add(parser, kind)
    return _build(kind, vars(parser.parse_args(argv)))


def parse_suite(
    kinds: Mapping[str, tuple[type[Options], str, str]], argv: Sequence[str] | None, description: str
) -> tuple[str, Options]:
    """The suite on a command line, and its options; `kinds` are their classes, summaries and descriptions."""
    parser = ArgumentParser(description=description, formatter_class=ArgumentDefaultsHelpFormatter)
    suites = parser.add_subparsers(dest="suite", required=True, metavar="SUITE")
    for name, (kind, summary, text) in kinds.items():
        _add(suites.add_parser(name, help=summary, description=text, formatter_class=parser.formatter_class), kind)
    values = vars(parser.parse_args(argv))
    return values["suite"], _build(kinds[values["suite"]][0], values)


def check(options: object, mistakes: Iterable[str] = ()) -> None:
    """Raises a UsageError with all mistakes: those given, and the numbers out of their bounds."""
    found = [*mistakes, *_out_of_bounds(options)]
    if found:
        raise UsageError("\n".join(found))


def _add(parser: _ActionsContainer, options: type) -> None:
    ways = None
    for option in declared(options):
        kind, target, details = option.kind, parser, dict[str, Any](help=option.help)
        if option.embeds:
            _add(parser, kind)
            continue
        if option.exclusive:
            target = ways = ways or parser.add_mutually_exclusive_group(required=True)
        if kind is bool:
            details["action"] = "store_true"
        else:
            if get_origin(kind) is tuple:
                kind = get_args(kind)[0]
                details |= {"action": "append"} if option.several == "append" else {"nargs": option.several}
            choices = tuple(option.choices or get_args(kind)) or None
            details |= {"type": type(choices[0]) if choices else kind, "choices": choices, "metavar": option.metavar}
        if option.positional:
            target.add_argument(option.name, **details)
        elif option.default is MISSING:
            target.add_argument(option.flag, dest=option.name, required=True, **details)
        else:
            default = list(option.default) if isinstance(option.default, tuple) else option.default
            target.add_argument(option.flag, dest=option.name, default=default, **details)


def _build(kind: type[Options], values: Mapping[str, Any]) -> Options:
    found = {}
    for option in declared(kind):
        value = _build(option.kind, values) if option.embeds else values[option.name]
        found[option.name] = tuple(value) if isinstance(value, list) else value
    return kind(**found)


def _out_of_bounds(options: object) -> Iterator[str]:
    for option in declared(type(options)):
        value = getattr(options, option.name)
        if option.embeds:
            yield from _out_of_bounds(value)
        elif isinstance(value, int | float) and (mistake := option.mistake(value)):
            yield f"{option.flag} {value}: {mistake}"


def start_ray(*, serves: bool = False) -> None:
    """Connects to the cluster the job was submitted to (RAY_ADDRESS), or starts a local Ray on loopback.

    What `serves` needs no Ray Data, which takes seconds to import, and no dashboard, which is ten processes.
    """
    import ray
    from ray._private import ray_logging

    if ray.is_initialized():
        return
    if not serves:
        import ray.data  # its import sets up its loggers, so it comes before they are silenced
    quiet()
    # Ray has no public filter for the output of its processes; handlers registered before it starts see it first.
    ray_logging.global_worker_stdstream_dispatcher.add_handler("news", _leave_out_what_is_none)
    with signals.starting_ray():
        ray.init(logging_config=ray.LoggingConfig(log_level="WARNING"), include_dashboard=False if serves else None)
    if not serves:
        configure_ray_data()


def configure_ray_data() -> None:
    """Disables Ray Data's progress bars in favour of ours, and re-raises errors of a step as they were."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Ray Data would reserve half of a small machine's cores for other steps; our executions have a single one.
    context.op_resource_reservation_enabled = False
    context.raise_original_map_exception = True
    context.print_on_execution_start = False


def quiet(level: int = logging.ERROR) -> None:
    """Silences log messages of no use to users, in the driver or a worker: those of Ray's loggers below `level`."""
    # Some of Ray Train's loggers are named after their file, so they are not children of `ray.train`.
    by_file = [name for name in logging.root.manager.loggerDict if "/ray/train/" in name]
    for name in (*CHATTER, *by_file):
        logging.getLogger(name).setLevel(level)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Ray Data's, where there is less to do than it may do at once.
    warnings.filterwarnings("ignore", message=r"The (maximum|minimum) number of concurrent")
    # From DeepSpeed's barriers on a GPU; each worker has already set its device.
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device")


def run(main: Main) -> None:
    """Runs a command and exits: 0 for success, 1 for failure, 2 for wrong usage; the reason is printed last.

    Ctrl-C ends it with 130, SIGTERM with 143.
    """
    with signals.handled(signal.SIGTERM):
        try:
            main(None)
        except UsageError as error:
            _fail(error, USAGE)
        except KeyboardInterrupt as error:
            signals.end(error)
        except Exception as error:
            if interrupted := signals.received():
                signals.end(interrupted)
            cause = root_cause(error)
            if not isinstance(cause, ValueError | OSError):
                traceback.print_exc()
            _fail(cause, FAILED)


def root_cause(error: BaseException) -> BaseException:
    """The error that Ray has wrapped; the causes of our own errors are not followed."""
    seen = set[int]()
    while type(error).__module__.partition(".")[0] == "ray" and id(error) not in seen:
        seen.add(id(error))
        failures = list(getattr(error, "worker_failures", {}).values())
        inner = [getattr(error, "cause", None), getattr(error, "controller_failure", None), *failures, error.__cause__]
        error = next((cause for cause in inner if isinstance(cause, BaseException)), error)
    return error


def describe(error: BaseException) -> str:
    """An error in one line: its message, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    message = lines[-1] if lines and isinstance(error, RuntimeError) else (lines[0] if lines else type(error).__name__)
    return name + re.sub(r"^\[Errno \d+\] ", "", message)


def _to_path(value: str) -> Path:
    from pipelines.storage.files import to_path  # late, so that --help is fast

    return to_path(value)


def existing_folder(value: str) -> Path:
    """The path or URL of an existing folder."""
    path = _to_path(value)
    if not path.is_dir():
        raise FileNotFoundError(f"{value}: no such folder")
    return path


def prepared_datasets(shards: str, names: Collection[str] | None) -> list[Path]:
    """The folders of the prepared datasets of these names, or of all.

    Raises:
        UsageError: there is no such folder, or one of the names is not there; one line.
        FileNotFoundError: it holds no finished dataset.
    """
    from pipelines.storage.shards import list_datasets

    folder = existing_folder(shards)
    there = list_datasets(folder)
    if unknown := sorted(set(names or ()) - set(there)):
        raise UsageError(f"--datasets: {', '.join(unknown)} not in {folder}; it holds {', '.join(there)}")
    return [folder / name for name in names or there]


def existing_file(value: str) -> Path:
    """The path or URL of an existing file."""
    path = _to_path(value)
    if not path.is_file():
        raise FileNotFoundError(f"{value}: no such file")
    return path


def new_folder(value: str) -> Path:
    """The path or URL of a folder to write to."""
    path = _to_path(value)
    if path.is_file():
        raise FileExistsError(f"{value}: is a file; give a folder")
    return path


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """The lines of a table; the columns in `left` are aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def note_untrained(names: Iterable[str]) -> None:
    """Prints which frozen parts have random weights, so that their output is not mistaken for a result."""
    distinct = list(dict.fromkeys(names))
    if distinct:
        print(f"note: untrained (random weights, only for trying out the system): {', '.join(distinct)}")


def _fail(error: BaseException, code: int) -> None:
    sys.stdout.flush()
    lines = str(error).splitlines() if isinstance(error, UsageError | Failures) else [describe(error)]
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    sys.stderr.flush()
    sys.exit(code)
