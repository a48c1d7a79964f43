"""What programs share: messages, exit statuses, processes, and command lines made of frozen dataclasses.

One option is a field, explained by its comment or the string below:

@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    workers: int = option(4, at_least=0)  # decoding processes; 0 decodes in the main process
"""

import argparse
import ast
import difflib
import inspect
import logging
import math
import operator
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import MISSING, dataclass, field, fields
from itertools import islice, zip_longest
from typing import Any, Literal, NoReturn

from tqdm import tqdm

logger = logging.getLogger(__name__)


NUM_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Processor cores that this process may use"""


def option(
    default: Any = MISSING,  # noqa: ANN401 - of any type, as the field it makes
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: Iterable[str] | None = None,
    hidden: bool = False,
) -> Any:  # noqa: ANN401
    """Make a field with bounds, which NaN and infinity never meet; required where it has no default.

    A hidden one is no option of the command line: old checkpoints and Python set it.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    metadata = {"bounds": bounds, "choices": choices and tuple(choices), "hidden": hidden}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of groups of options; one that checks more than single numbers calls super().__post_init__()."""

    def __post_init__(self) -> None:
        """Refuse values out of bounds with a ValueError that names the option, the bounds and the value."""
        for described in fields(self):
            bounds, value = described.metadata.get("bounds"), getattr(self, described.name)
            if not bounds or value is None:
                continue
            holds = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le}
            if not math.isfinite(value) or not all(holds[n](value, bound) for n, bound in bounds.items()):
                words = " and ".join(f"{n.replace('_', ' ')} {bound:.12g}" for n, bound in bounds.items())
                raise ValueError(f"{flag(described.name)} must be {words}, got {value}")


def flag(name: str) -> str:
    """Return the option of a field, e.g. `--batch-size` of `batch_size`."""
    return "--" + name.replace("_", "-")


def build(config_class: type, values: dict[str, Any]) -> Any:  # noqa: ANN401 - an instance of the class
    """Make a group from parsed values."""
    names = [described.name for described in fields(config_class)]
    return config_class(**{name: values[name] for name in names if name in values})


def refuse_dropped(dropped: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Refuse an option of an earlier version, in whatever form; `dropped` says what to use instead."""
    for argument in arguments:
        name = argument.partition("=")[0]
        known = name.replace("--no-", "--", 1)
        if known in dropped:
            raise ValueError(f"{name} is no longer there. {dropped[known]}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the question that ends a message about an unknown name; empty where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


class Parser(argparse.ArgumentParser):
    """Parser, also of a sub-command, that answers a slip with its own usage and what was probably meant."""

    def __init__(self, *args: Any, dropped: Mapping[str, str] | None = None, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **{"allow_abbrev": False, **settings})
        self.dropped = dropped or {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401 - as argparse
        """Refuse what is unknown, before anything that is missing: it may be the same option."""
        words = list(sys.argv[1:] if args is None else args)
        refuse_dropped(self.dropped, words)
        for word in words[: words.index("--") if "--" in words else None]:
            name, known = word.partition("=")[0], self._option_string_actions
            if self._subparsers is None and re.fullmatch(r"--[a-zA-Z][\w-]*", name) and name not in known:
                self.error(f"unrecognized arguments: {name}.{did_you_mean(name, known)}")
        values, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return values, unknown

    def add_groups(self, groups: Iterable[type]) -> None:
        """Add groups of options; the usage shows the required ones, --help lists all."""
        for group in groups:
            add_group(self, group)
        required = [action for action in self._actions if action.required]
        values = (str(action.metavar or f"{{{','.join(action.choices or ())}}}") for action in required)
        words = (f"{one.option_strings[0]} {value}" for one, value in zip(required, values, strict=True))
        self.usage = " ".join(["%(prog)s", *words, "[options]"])

    def error(self, message: str) -> NoReturn:
        """End the program with the usage, the message and status 2."""
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        hint = did_you_mean(wrong[1], re.findall(r"[\w.-]+", wrong[2])) if wrong else ""
        super().error(f"{message}.{hint}" if hint else message)


def parse_group(
    config_class: type,
    program: str,
    summary: str,
    arguments: Sequence[str] | None,
    dropped: Mapping[str, str] | None = None,
) -> Any:  # noqa: ANN401
    """Parse the command line (None: of this process) of a program with one group; return the group."""
    help_format = argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(program, description=summary, formatter_class=help_format, dropped=dropped)
    parser.add_groups([config_class])
    return build(config_class, vars(parser.parse_args(arguments)))


def add_group(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Add an option per field: --field-name, --switch/--no-switch; required without a default."""
    summary = (inspect.getdoc(config_class) or "").splitlines()[0]
    group = parser.add_argument_group(config_class.__name__, summary)
    help_texts, annotations = field_docstrings(config_class), typing.get_type_hints(config_class)
    for described in fields(config_class):
        if described.metadata.get("hidden"):
            continue
        settings = _argument_type(annotations[described.name])
        settings["help"] = help_texts[described.name].replace("%", "%%")
        if described.metadata.get("choices"):
            settings |= {"choices": described.metadata["choices"], "metavar": None}
        if described.default is MISSING:
            settings |= {"required": True, "default": argparse.SUPPRESS}
        else:
            settings["default"] = described.default
        group.add_argument(flag(described.name), dest=described.name, **settings)


def _argument_type(annotation: Any) -> dict[str, Any]:  # noqa: ANN401 - a type annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):  # X | None: absent is None
        annotation = next(a for a in typing.get_args(annotation) if a is not types.NoneType)
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        return {"choices": choices, "type": type(choices[0])}
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": annotation, "metavar": annotation.__name__.upper()}


def field_docstrings(config_class: type) -> dict[str, str]:
    """Read the comment behind, or the text under, each field of a class, or that of the class it is from."""
    documented: dict[str, str] = {}
    for base in reversed(config_class.__mro__[:-1]):
        lines = inspect.getsource(base).splitlines()
        body = typing.cast(ast.ClassDef, ast.parse("\n".join(lines)).body[0]).body
        for statement, follower in zip_longest(body, body[1:]):
            if isinstance(statement, ast.AnnAssign):
                behind = lines[(statement.end_lineno or statement.lineno) - 1].partition("  # ")[2]
                below = ast.literal_eval(follower.value) if isinstance(follower, ast.Expr) else ""
                name = ast.unparse(statement.target)
                documented[name] = below or behind or documented.get(name, "")
    return {described.name: documented[described.name] for described in fields(config_class)}


# -------------------------------------------------------------------------- messages, exit statuses

# RuntimeErrors of torch that are no bugs: a pattern in the text, exit status, words for the user.
EXPLAINED = (
    (r"DataLoader worker \(pid", 2,
     "A decoding process died. If memory ran out, lower --workers or --batch-size; after a bus error "
     "/dev/shm is too small; if a file breaks its decoder, scripts/verify_dataset.sh finds it"),
    (r"out of memory|can't allocate memory|ALLOC_FAILED|shared memory", 2,
     "Memory ran out. Lower --batch-size or --workers, or train with --precision bf16"),
    (r"Connection (closed|reset) by peer", 1,
     "Another process of this run has ended; its own message says why"),
)  # fmt: skip


class _ProgressBarHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)  # does not tear a progress bar


def run_command(command: Callable[[], int]) -> int:
    """Run a command and return its exit status; what the user can mend becomes one message and status 2.

    Anything unforeseen is a bug: it is raised, which ends the program with its traceback and status 1.
    VSSL_DEBUG=1 shows the other tracebacks as well.
    """
    # File names may be in another encoding than the screen; notebooks have streams of their own.
    getattr(sys.stdout, "reconfigure", lambda **_: None)(errors="backslashreplace")
    handler = _ProgressBarHandler()  # messages go to standard error
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    debug = bool(os.environ.get("VSSL_DEBUG"))
    try:
        return command()
    except (ValueError, FloatingPointError, OSError) as error:
        words = str(error)
        if isinstance(error, OSError) and error.strerror:
            words = f"{error.strerror} ({error.filename})" if error.filename else error.strerror
        logger.error("%s", words, exc_info=debug)
        return 1 if isinstance(error, FloatingPointError) else 2
    except (MemoryError, RuntimeError) as error:
        kind = "out of memory " if isinstance(error, MemoryError) else ""
        # Of a worker's death, the cause knows the signal.
        for line in f"{error.__cause__ or ''}\n{kind}{error}".splitlines():
            for pattern, status, words in EXPLAINED:
                if re.search(pattern, line):
                    logger.error("%s. (%s)", words, line.strip(), exc_info=debug)
                    return status
        raise
    except KeyboardInterrupt:
        logger.error("Stopped.")
        return 130


# ---------------------------------------------------------------------------------------- processes


CRASHED = "the process that worked on it died: a fault in a decoder, or no memory was left"


def run_in_processes(
    work: Callable[[Any], Any], tasks: Iterable[Any], *, num_workers: int
) -> Generator[tuple[Any, Any, bool], None, None]:
    """Yield (task, result, has_crashed) as the tasks get done; a few are taken ahead of the processes.

    When a process dies, of a fault in a decoder, say, the tasks that were under way are done again one by
    one in processes of their own: only those that kill their process are crashes, and have no result.
    """
    under_way: list[Any] = []
    tasks = iter(tasks)
    while True:
        pool = ProcessPoolExecutor(num_workers, initializer=_begin_worker)
        try:
            futures: dict[Future[Any], Any] = {}
            while True:
                for task in islice(tasks, 2 * num_workers - len(under_way)):
                    under_way.append(task)
                    futures[pool.submit(work, task)] = task
                if not under_way:
                    return
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    result, task = future.result(), futures.pop(future)
                    under_way = [other for other in under_way if other is not task]
                    yield task, result, False
        except BrokenProcessPool:
            if num_workers == len(under_way) == 1:
                yield under_way.pop(), None, True
        finally:
            pool.shutdown(cancel_futures=True)
        while under_way:
            yield from run_in_processes(work, [under_way.pop()], num_workers=1)


def _begin_worker() -> None:
    if "torch" in sys.modules:  # the workers share the cores, and a forked OpenMP pool would wait for ever
        sys.modules["torch"].set_num_threads(1)
    # Signals are the main process's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
