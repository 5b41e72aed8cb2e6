"""What every command shares: exit codes, one-line errors, and a Ray to run on."""

import logging
import os
import re
import sys
import traceback
import warnings
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Workers share the driver's environment already; Ray's own hook would rebuild one with `uv run` in each of them.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray Train would log what workers print, once more.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
# c10d warns of host names without a reverse entry and of barriers before which the device was set already; workers read
# this as they import torch. Errors are still told.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
# Loggers whose warnings tell a user of these commands nothing.
CHATTER = ("ray._private.authentication", "ray.data", "ray.train", "torch.distributed.c10d_logger")

# Ray Train's controller tells of every call of its own that took longer than a few seconds, as on a busy machine, by a
# traceback; to the one at its end nobody listens, the others it makes again.
_IMPATIENT = (
    "ray.train.v2._internal.callbacks.placement_group_callback",
    "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client",
    "ray.train.v2._internal.execution.scaling_policy.elastic",
)

# Ray's core warns of an actor that Ray Train itself makes, once in every run.
_NO_NEWS = re.compile(r" core_worker\.cc:\d+: Actor with class name: .* constructor arguments in the object store")

FAILED = 1
USAGE = 2

Main = Callable[[Sequence[str] | None], None]


class UsageError(ValueError):
    """The command line or the configuration is wrong; one line a mistake."""


class Failures(ValueError):
    """Several things failed, each on its own; one line a failure."""


def _is_news(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "GetTimeoutError"


def _leave_out_what_is_none(log: Mapping[str, Any]) -> None:
    log["lines"][:] = [line for line in log["lines"] if not _NO_NEWS.search(line)]


# Here, since the controller, a process of Ray's, imports this module before it does anything, but runs none of it.
for _name in _IMPATIENT:
    logging.getLogger(_name).addFilter(_is_news)


def parser(description: str) -> ArgumentParser:
    """An argument parser whose help shows every default."""
    return ArgumentParser(description=description, formatter_class=ArgumentDefaultsHelpFormatter)


def add_overrides(parser: ArgumentParser, examples: str) -> None:
    """Lets a command take settings as `key=value`, alike everywhere."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"settings, such as {examples}")


def start_ray() -> None:
    """Connects to the cluster the job was submitted to (RAY_ADDRESS), or starts a local Ray on loopback."""
    import ray
    import ray.data  # it sets up its loggers when it is imported: before they are told to be quiet
    from ray._private import ray_logging

    if ray.is_initialized():
        return
    quiet()
    # Ray has no public filter of what it shows of its processes; what is registered before it starts sees it first.
    ray_logging.global_worker_stdstream_dispatcher.add_handler("news", _leave_out_what_is_none)
    ray.init(logging_config=ray.LoggingConfig(log_level="WARNING"))
    configure_ray_data()


def owns_ray() -> bool:
    """Whether this process started the Ray that it uses, and may end it."""
    from ray._private import worker

    node = worker._global_node
    return node is not None and node.is_head()


def configure_ray_data() -> None:
    """Leaves progress to our own bars, and lets an error in a step come out as it was raised."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Ray Data would keep half of a small machine's cores for other steps; our executions have one step each.
    context.op_resource_reservation_enabled = False
    context.raise_original_map_exception = True
    context.print_on_execution_start = False


def quiet(level: int = logging.ERROR) -> None:
    """Silences what tells a user of these commands nothing, in the driver or a worker: Ray's log below this level."""
    # Some of Ray Train's loggers are named after their file, so they are no children of `ray.train`.
    by_file = [name for name in logging.root.manager.loggerDict if "/ray/train/" in name]
    for name in (*CHATTER, *by_file):
        logging.getLogger(name).setLevel(level)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Of DeepSpeed's barriers on a GPU: each worker has set its device before.
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device")


def run(main: Main) -> None:
    """Runs a command and ends the process: 0 done, 1 failed, 2 usage; the reason is the last line of the log."""
    try:
        main(None)
    except UsageError as error:
        _fail(error, USAGE)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        cause = root_cause(error)
        if not isinstance(cause, ValueError | OSError):
            traceback.print_exc()
        _fail(cause, FAILED)


def root_cause(error: BaseException) -> BaseException:
    """The error behind what Ray wraps around it; what our own errors were raised from is not looked at."""
    seen = set[int]()
    while type(error).__module__.partition(".")[0] == "ray" and id(error) not in seen:
        seen.add(id(error))
        failures = list(getattr(error, "worker_failures", {}).values())
        inner = [getattr(error, "cause", None), getattr(error, "controller_failure", None), *failures, error.__cause__]
        error = next((cause for cause in inner if isinstance(cause, BaseException)), error)
    return error


def describe(error: BaseException) -> str:
    """One line for a person: the message, or the kind of error where there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    message = lines[-1] if lines and isinstance(error, RuntimeError) else (lines[0] if lines else type(error).__name__)
    return name + re.sub(r"^\[Errno \d+\] ", "", message)


def _to_path(value: str) -> Path:
    from pipelines.storage.files import to_path  # late: --help need not wait for it

    return to_path(value)


def existing_folder(value: str) -> Path:
    """The path of a folder, or the URL of one, that must exist."""
    path = _to_path(value)
    if not path.is_dir():
        raise FileNotFoundError(f"{value}: no such folder")
    return path


def existing_file(value: str) -> Path:
    """The path of a file, or the URL of one, that must exist."""
    path = _to_path(value)
    if not path.is_file():
        raise FileNotFoundError(f"{value}: no such file")
    return path


def new_folder(value: str) -> Path:
    """The path of a folder, or the URL of one, to write to."""
    path = _to_path(value)
    if path.is_file():
        raise FileExistsError(f"{value}: is a file; give a folder")
    return path


def note_untrained(names: Iterable[str]) -> None:
    """Says which frozen parts hold random weights, so that nobody takes their output for more."""
    distinct = list(dict.fromkeys(names))
    if distinct:
        print(f"note: untrained (random weights, for trying the way alone): {', '.join(distinct)}")


def _fail(error: BaseException, code: int) -> None:
    sys.stdout.flush()
    lines = str(error).splitlines() if isinstance(error, UsageError | Failures) else [describe(error)]
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    sys.stderr.flush()
    sys.exit(code)
