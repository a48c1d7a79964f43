"""Work on many clips in several processes; a crash of one is the fault of one clip only."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Crash:
    """The process that worked on a task was ended from outside Python."""

    detail: str = (
        "the process that worked on it died: a fault in a decoder, or the computer ran out of memory"
    )


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, num_workers: int
) -> Iterator[tuple[Task, Result | Crash]]:
    """Yields each task with its result, in the order in which they are ready.

    When a process dies, the tasks that were under way are repeated one by one in processes of their
    own, so that exactly those that kill their process are called crashes.

    Args:
        work: a function of a module; what it raises ends the run.
        tasks: anything that can be pickled.
        num_workers: processes, at least 1.
    """
    waiting = deque(tasks)
    while waiting:
        suspects: list[Task] = []
        for task, result in _run_until_crash(work, waiting, num_workers, suspects):
            yield task, result
        for task in suspects:
            yield task, _run_alone(work, task)


def _run_until_crash(
    work: Callable[[Task], Result], waiting: deque[Task], num_workers: int, suspects: list[Task]
) -> Iterator[tuple[Task, Result]]:
    """Takes tasks from the queue; after a crash it stops, and those under way are the suspects."""
    running: dict[Future[Result], Task] = {}
    pool = _pool(num_workers)
    try:
        while waiting or running:
            while waiting and len(running) < 2 * num_workers:
                running[pool.submit(work, waiting[0])] = waiting[0]
                waiting.popleft()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield running.pop(future), result
    except BrokenProcessPool:
        suspects += running.values()
    finally:
        pool.shutdown(cancel_futures=True)


def _run_alone(work: Callable[[Task], Result], task: Task) -> Result | Crash:
    with _pool(1) as pool:
        try:
            return pool.submit(work, task).result()
        except BrokenProcessPool:
            return Crash()


def _pool(num_workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(num_workers, initializer=_leave_signals_to_the_main_process)


def _leave_signals_to_the_main_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
