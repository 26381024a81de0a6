"""All trials of a study, some at a time: what is left follows from the results so far, so that a study resumes."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait

import torch

from bench.studies.study import Result, Study, Trial

RunTrial = Callable[[Trial], Result]


def run(study: Study, results: list[Result], run_trial: RunTrial, pool: Executor, at_a_time: int) -> Iterator[Result]:
    """Run all trials that are left, and yield the result of each when it is done; results grows by them."""
    running = dict[Future[Result], Trial]()
    while True:
        free = at_a_time - len(running)
        waiting = [trial for trial in study.pending(results) if trial not in running.values()]
        for trial in waiting[:free]:
            running[pool.submit(run_trial, trial)] = trial
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            del running[future]
            results.append(future.result())
            yield results[-1]


def new_pool(processes: int) -> Executor:
    """Return processes of one thread each."""
    context = multiprocessing.get_context("spawn")  # forking would copy torch's threads
    return ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,))


class InThisProcess(Executor):
    """Run everything at once, where it is submitted."""

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        future: Future[object] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future
