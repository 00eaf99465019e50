"""Requests that wait are worked off together: bounded in number, in size and in time."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class BusyError(Exception):
    """The queue is full; `retry_after` seconds from now it may not be."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full, retry after {retry_after} s")
        self.retry_after = retry_after


class Batcher(Generic[Job, Result]):
    """Calls `work` on lists of jobs, in one thread of its own.

    A batch begins with the job that has waited longest, and takes others until it is `max_size` large or that job has
    waited `max_wait`. Where `work` fails, each job of the batch is tried alone: only those that fail alone have failed.

    Args:
        work: jobs to as many results, in order.
        size: of a job.
        max_size: of a batch; a larger job is a batch of its own.
        max_wait: in seconds, of a job for others.
        max_jobs: that wait; more are refused.
        seen: is told the number of jobs and the seconds of each batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Job]], Sequence[Result]],
        size: Callable[[Job], int] = lambda _: 1,
        max_size: int = 64,
        max_wait: float = 0.002,
        max_jobs: int = 256,
        seen: Callable[[int, float], object] = lambda jobs, seconds: None,
    ) -> None:
        self._work, self._size, self._seen = work, size, seen
        self.max_size, self.max_wait, self.max_jobs = max_size, max_wait, max_jobs
        self._jobs: deque[tuple[Job, asyncio.Future[Result], float]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1)
        self._seconds = 0.0  # that a job takes, lately
        self._runner: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return sum(not future.done() for _, future, _ in self._jobs)

    async def __call__(self, job: Job, seconds: float) -> Result:
        """The job's result.

        Raises:
            BusyError: too many wait.
            TimeoutError: no result within so many seconds; a job that still waits then is never begun.
        """
        if len(self._jobs) >= self.max_jobs:
            self._jobs = deque(entry for entry in self._jobs if not entry[1].done())
        if len(self._jobs) >= self.max_jobs:
            raise BusyError(max(1, math.ceil(len(self._jobs) * self._seconds)))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._jobs.append((job, future, time.monotonic()))
        self._arrived.set()
        return await asyncio.wait_for(future, seconds)

    async def close(self) -> None:
        """Ends the thread; jobs that wait are cancelled."""
        if self._runner is not None:
            self._runner.cancel()
        for _, future, _ in self._jobs:
            future.cancel()
        self._thread.shutdown()

    async def _run(self) -> None:
        while True:
            self._arrived.clear()
            waiting = [entry for entry in self._jobs if not entry[1].done()]
            left = waiting[0][2] + self.max_wait - time.monotonic() if waiting else None
            if left is None or (left > 0 and sum(self._size(job) for job, _, _ in waiting) < self.max_size):
                try:
                    await asyncio.wait_for(self._arrived.wait(), left)
                except TimeoutError:
                    pass
                else:
                    continue
            await self._work_off(self._take())

    def _take(self) -> list[tuple[Job, asyncio.Future[Result], float]]:
        size = 0
        batch: list[tuple[Job, asyncio.Future[Result], float]] = []
        while self._jobs and (not batch or size + self._size(self._jobs[0][0]) <= self.max_size):
            entry = self._jobs.popleft()
            if not entry[1].done():
                batch.append(entry)
                size += self._size(entry[0])
        return batch

    async def _work_off(self, batch: list[tuple[Job, asyncio.Future[Result], float]]) -> None:
        if not batch:
            return
        begin = time.monotonic()
        try:
            jobs = [job for job, _, _ in batch]
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, jobs)
        except Exception as error:
            if len(batch) == 1:
                if not batch[0][1].done():
                    batch[0][1].set_exception(error)
                return
            for entry in batch:
                if not entry[1].done():
                    await self._work_off([entry])
            return
        for (_, future, _), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
        seconds = time.monotonic() - begin
        self._seconds += 0.1 * (seconds / len(batch) - self._seconds)
        self._seen(len(batch), seconds)
