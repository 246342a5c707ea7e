"""Who computes the units: threads of this process, processes of this machine, or the workers of a dask cluster.

All three are a `concurrent.futures.Executor`, so one loop keeps a bounded number of units in flight.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from typing import Any

import attrs

from fourd_core.cues.work import Outcome, Settings, Stopped, Unit, Workplace, compute_elsewhere
from fourd_core.errors import RunError
from fourd_core.recipe import Recipe, dumps
from fourd_core.recipe.schema import ClusterConfig

AHEAD = 2
"""Units in flight for each thread that computes: one is at work while the next is on its way."""
PATIENCE = 0.5
"""Seconds between two looks at whether the user wants to stop or the scheduler is gone."""
LIVES = 3
"""How often a unit is handed in again after dask gave it up, because as many workers died of it, or with it, as
`distributed.scheduler.allowed-failures` says (3 unless set otherwise). Workers that are taken away in the middle
(preempted, killed) are nobody's fault; a unit that ends more than a dozen of them is."""


@attrs.frozen(eq=False)
class Crew:
    """Somebody to give units to.

    Attributes:
        compute: what is called with a unit, there.
        width: how many units may be in flight.
        alive: whether answers can still come.
        given_up: the exceptions by which a unit comes back because its workers died.
    """

    executor: Executor
    compute: Callable[[Unit], Outcome]
    width: int
    alive: Callable[[], bool] = lambda: True
    given_up: tuple[type[Exception], ...] = ()

    def run(self, units: Iterable[Unit], stop_wanted: Callable[[], bool]) -> Iterator[Outcome]:
        """Each unit's outcome, in the order in which they come.

        Raises:
            FourdError: of a unit; the scheduler is lost; workers die.
            Stopped: `stop_wanted`.
        """
        queue, flying, deaths = iter(units), dict[Future[Outcome], Unit](), dict[Unit, int]()
        try:
            while True:
                for unit in _take(queue, self.width - len(flying)):
                    flying[self.executor.submit(self.compute, unit)] = unit
                if not flying:
                    return
                done, _ = wait(flying, PATIENCE, FIRST_COMPLETED)
                if stop_wanted():
                    raise Stopped
                if not self.alive():
                    raise RunError(LOST)
                for future in done:
                    unit = flying.pop(future)
                    try:
                        outcome = future.result()
                    except CancelledError as error:
                        raise RunError(LOST) from error
                    except self.given_up as error:
                        deaths[unit] = deaths.get(unit, 0) + 1
                        if deaths[unit] > LIVES:
                            raise RunError(_deadly(unit)) from error
                        flying[self.executor.submit(self.compute, unit)] = unit
                        continue
                    yield outcome
        finally:
            for future in flying:
                future.cancel()


LOST = (
    "the connection to the cluster's scheduler is lost; everything that was written is kept: start the scheduler and "
    "run the same command again"
)


def _take(queue: Iterator[Unit], count: int) -> Iterator[Unit]:
    for _ in range(count):
        unit = next(queue, None)
        if unit is None:
            return
        yield unit


def _deadly(unit: Unit) -> str:
    return (
        f"every worker that took unit {unit.number} of the cue {unit.cue} died (perhaps of too little memory: try a "
        "smaller `batch`); everything that was written is kept"
    )


@contextmanager
def threads(place: Workplace, count: int) -> Iterator[Crew]:
    """Threads of this process."""
    pool = ThreadPoolExecutor(count, "cues")
    try:
        yield Crew(pool, place.compute, AHEAD * count)
    finally:
        place.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def cluster(recipe: Recipe, settings: Settings) -> Iterator[Crew]:
    """The recipe's `[cluster]`: a running one, or processes of this machine that start here and end with the job.

    Raises:
        RunError: dask is not installed; nobody answers at the address.
    """
    distributed, config = import_distributed(), recipe.cluster
    assert config is not None
    _silence()
    with _client(distributed, config) as client:
        # On this machine the recipe's device is right; elsewhere each worker takes what it has.
        device = recipe.device if config.address is None else "auto"
        compute = partial(compute_elsewhere, dumps(recipe), settings, device)
        slots = sum(client.nthreads().values()) or 1
        executor = client.get_executor(pure=False)
        given_up = (distributed.scheduler.KilledWorker,)
        try:
            yield Crew(executor, compute, AHEAD * slots, lambda: client.status == "running", given_up)
        finally:
            executor.shutdown(wait=False)


def _silence() -> None:
    """Keep dask from telling of every worker that dies and every connection that breaks: what matters is said by us."""
    for name in ("asyncio", "tornado.application", *logging.root.manager.loggerDict):
        if name.startswith(("asyncio", "distributed", "tornado")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def import_distributed() -> Any:
    """dask's package, imported only when a recipe asks for it.

    Raises:
        RunError: it is not installed.
    """
    try:
        import distributed
    except ImportError as error:
        raise RunError(f"[cluster] needs dask ({error}); pip install 'fourd-core[cluster]'") from error
    return distributed


@contextmanager
def _client(distributed: Any, config: ClusterConfig) -> Iterator[Any]:
    if config.address is not None:
        try:
            client = distributed.Client(config.address, set_as_default=False)
        except (OSError, ValueError) as error:  # dask's time-outs are OSErrors
            raise RunError(
                f"no dask scheduler answers at {config.address} ({_first_line(error)}); start one with `dask "
                "scheduler`, or set [cluster] workers to start processes here"
            ) from error
        with client:
            if not client.nthreads():
                raise RunError(f"the dask scheduler at {config.address} has no workers; start some with `dask worker`")
            yield client
        return
    from dask import config as dask_config

    _start_forkserver(distributed)
    # No limit of memory: dask would kill workers by a rule of thumb that knows nothing of networks.
    with (
        dask_config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        distributed.LocalCluster(
            n_workers=config.workers, threads_per_worker=config.threads, processes=True, memory_limit=0,
            dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
        ) as local,
        distributed.Client(local, set_as_default=False) as client,
    ):  # fmt: skip
        yield client


def _start_forkserver(distributed: Any) -> None:
    """The process that local workers are forked from: it loads torch once, so that they start, and start again, at
    once; and it ignores Ctrl-C, which reaches the whole process group and is the job's own business."""
    from dask import config as dask_config

    with dask_config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        context = distributed.utils.get_mp_context()
    context.set_forkserver_preload(["distributed", compute_elsewhere.__module__])
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
