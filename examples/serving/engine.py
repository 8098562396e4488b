"""The one thread that owns the model: it takes what waits, and makes step after step of all that is in flight."""

import logging
import queue
import threading
from collections import deque

import torch

from modeling_rosetta import RosettaPipeline

from .answering import AnswerJob, Answers
from .drawing import DrawingJob, Drawings
from .errors import RequestError
from .jobs import Job
from .metrics import Metrics
from .settings import Settings


log = logging.getLogger("uvicorn.error")


class Engine:
    """
    Denoising steps and tokens take turns, one of each.

    Args:
        pipe ([`RosettaPipeline`])
        settings ([`Settings`])
        metrics ([`Metrics`])
    """

    def __init__(self, pipe: RosettaPipeline, settings: Settings, metrics: Metrics):
        self.pipe, self.metrics = pipe, metrics
        self._batches = {
            DrawingJob: Drawings(pipe, settings.max_drawings, metrics),
            AnswerJob: Answers(pipe, settings.max_answers, metrics),
        }
        self._waiting: dict[type, deque[Job]] = {kind: deque() for kind in self._batches}
        self._arrived: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job):
        self._arrived.put(job)

    def stop(self):
        """Ends what is in flight, with an error."""
        self._arrived.put(None)
        self._thread.join()

    @torch.no_grad()
    def _run(self):
        while self._take():
            for kind, batch in self._batches.items():
                new = self._admitted(self._waiting[kind], batch)
                try:
                    batch.step(new)
                except Exception as error:  # of the step of all
                    log.exception("A step failed, and so do the requests that were part of it.")
                    self._fail({id(job): job for job in (*batch.jobs(), *new)}.values(), error)
                    batch.leave(batch.jobs())
        left = [job for batch in self._batches.values() for job in batch.jobs()]
        left += [job for waiting in self._waiting.values() for job in waiting]
        self._fail(left, RequestError("The server is shutting down.", status=503))

    def _take(self) -> bool:
        """Lets what has arrived wait in its line; whether to go on. Sleeps while there is nothing to do."""
        is_idle = not any(batch.size for batch in self._batches.values()) and not any(self._waiting.values())
        while True:
            try:
                job = self._arrived.get(block=is_idle)
            except queue.Empty:
                return True
            if job is None:
                return False
            self._waiting[type(job)].append(job)
            is_idle = False

    def _admitted(self, waiting: deque[Job], batch: Drawings | Answers) -> list[Job]:
        """Those that come next and that there is room for."""
        new, room = [], batch.most - batch.size
        while waiting and (waiting[0].is_left or waiting[0].size <= room):
            job = waiting.popleft()
            if not job.is_left:
                room -= job.size
                new.append(job)
        self.metrics.waiting.set(sum(map(len, self._waiting.values())))
        return new

    def _fail(self, jobs, error: Exception):
        for job in jobs:
            job.end(error)


__all__ = ["Engine"]
