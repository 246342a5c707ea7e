"""Several processes that train as one, started by torchrun; a program that was started alone is a group of one.

What the processes tell each other goes through one kind of exchange, in which each may also say that it failed: a
mistake, a full disk or a stop in one of them ends all of them at the same step, and none waits for one that is gone.
Only the first process (rank 0) writes, logs and shows anything.
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from fourd_core.errors import FourdError, RunError
from fourd_core.run_folder import Interrupted

T = TypeVar("T")

ENVIRONMENT = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})
"""What torchrun sets for each process."""
PATIENCE = timedelta(days=30)
"""How long a process waits for the others: stages that are no training run in the first one alone."""


class PeerFailedError(RunError):
    """Another process of the group could not go on."""


@attrs.define
class Group:
    """The processes that train together, as one of them sees it.

    Attributes:
        rank: the number of this process; the first, 0, does what is done once.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1
    _over: bool = attrs.field(default=False, init=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def exchange(self, value: T) -> list[T]:
        """What each process says at this point, by rank; `value` is what this one says.

        Raises:
            PeerFailedError: one of them failed on its way here.
        """
        if self.size == 1:
            return [value]
        said = self._gather((value, None))
        for rank, (_, failure) in enumerate(said):
            if failure is not None:
                self._over = True
                raise PeerFailedError(f"process {rank}: {failure}")
        return [theirs for theirs, _ in said]

    def any(self, value: bool) -> bool:
        """Whether it is so in some process."""
        return any(self.exchange(value))

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, the only one that calls it, in all of them; tensors on the CPU.

        Raises:
            PeerFailedError: it raised there.
        """
        if self.size == 1:
            return make()
        made: list[Any] = [None]
        with self.together():
            if self.first:
                made = [make()]
        with self._linked():
            dist.broadcast_object_list(made, src=0)
        return made[0]  # type: ignore[no-any-return]

    @contextmanager
    def together(self) -> Iterator[None]:
        """The processes leave this block together; what fails inside of it in one fails in all.

        Raises:
            PeerFailedError: in a process where nothing else failed.
        """
        try:
            yield
        except BaseException as error:
            self._tell(str(error) if isinstance(error, FourdError) else f"{type(error).__name__}: {error}")
            raise
        if not self._over:
            self.exchange(None)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype and device by their mean over all processes, in place.

        Every process gives the same shapes. One flat buffer and one sum: an objective's loss is no single module's
        forward, which torch's DistributedDataParallel would have to wrap, and a sum is exactly what is meant.
        """
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]) / self.size
        with self._linked():
            dist.all_reduce(flat)
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))

    def _gather(self, said: tuple[Any, str | None]) -> list[tuple[Any, str | None]]:
        everything: list[Any] = [None] * self.size
        with self._linked():
            dist.all_gather_object(everything, said)
        return everything

    def _tell(self, failure: str) -> None:
        """Let the others, who wait in an exchange, know that this process will not come; once."""
        if self.size > 1 and not self._over:
            self._over = True
            with suppress(PeerFailedError):
                self._gather((None, failure))

    @contextmanager
    def _linked(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch.distributed raises where a process has vanished
            self._over = True
            raise PeerFailedError(
                f"another process of this training is gone ({error}); see what it said, then run the same command again"
            ) from error

    def wait(self) -> None:
        """Until every process came here, failed or not; one that has vanished is not waited for."""
        with suppress(PeerFailedError):
            self._gather((None, None))


_current = Group()


def current() -> Group:
    """The group that this process is in."""
    return _current


@contextmanager
def joined() -> Iterator[Group]:
    """Meet the other processes that torchrun started, and leave together with them.

    In the processes beside the first this raises SystemExit at the end, whatever the end was: the first one goes on
    alone, and says what there is to say. On a machine with CUDA each process takes the GPU of its local rank.

    Raises:
        RunError: more processes than GPUs.
    """
    global _current
    if not (os.environ.keys() >= ENVIRONMENT and int(os.environ["WORLD_SIZE"]) > 1):
        yield _current
        return
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    # Imported later, by the first optimiser step, its functions would keep the group for good as a default argument;
    # and threads of a group that is never destroyed may abort the program when it ends.
    importlib.import_module("torch.distributed.nn")
    # With both, objects travel between the CPUs, and waiting for the first process is no matter of NCCL's watchdog.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=PATIENCE)
    _current = group = Group(dist.get_rank(), dist.get_world_size())
    try:
        with group.together():
            yield group
    except (FourdError, Interrupted) as error:
        if not group.first:
            raise SystemExit(130 if isinstance(error, Interrupted) else 2) from None
        raise
    finally:
        # The first one may still write down what happened; torchrun kills it as soon as another one has failed.
        group.wait()
        _current = Group()
        dist.destroy_process_group()
    if not group.first:
        raise SystemExit(0)


def _take_gpu(number: int) -> None:
    count = torch.cuda.device_count()
    if number >= count:
        raise RunError(
            f"torchrun started process {number + 1} of this machine, which has {count} GPUs: one process each "
            "(--nproc-per-node)"
        )
    torch.cuda.set_device(number)  # what "cuda" means from now on


def be_patient(stop: threading.Event) -> None:
    """Let every signal to end set the event, for processes that torchrun ends: it may repeat what they got already."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
