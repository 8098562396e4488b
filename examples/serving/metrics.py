"""What Prometheus is told."""

from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """
    Attributes:
        registry (`CollectorRegistry`): of this application alone.
    """

    def __init__(self):
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter("rosetta_requests", "Requests that were answered", ["path", "status"], **own)
        self.seconds = Histogram(
            "rosetta_request_seconds", "From a request to the end of its response", ["path"], buckets=SECONDS, **own
        )
        self.in_flight = Gauge("rosetta_requests_in_flight", "Requests that are computed or wait", **own)
        self.waiting = Gauge("rosetta_jobs_waiting", "Requests that nothing was computed of yet", **own)
        self.prompt_tokens = Counter("rosetta_prompt_tokens", "Tokens of prompts of answers that were read", **own)
        self.answer_tokens = Counter("rosetta_answer_tokens", "Tokens of answers that were written", **own)
        self.image_steps = Counter("rosetta_image_steps", "Denoising steps, counted for each image", **own)
        self.together = Histogram("rosetta_rows", "Images or answers of one step", ["kind"], buckets=ROWS, **own)
        self.step_seconds = Histogram("rosetta_step_seconds", "Of one step", ["kind"], buckets=SECONDS, **own)

    @contextmanager
    def denoising(self, images: int):
        with self._step("drawing", images):
            yield
        self.image_steps.inc(images)

    @contextmanager
    def writing(self, answers: int):
        with self._step("answer", answers):
            yield
        self.answer_tokens.inc(answers)

    @contextmanager
    def reading(self, tokens: int):
        with self.step_seconds.labels("prompt").time():
            yield
        self.prompt_tokens.inc(tokens)

    @contextmanager
    def _step(self, kind: str, rows: int):
        self.together.labels(kind).observe(rows)
        with self.step_seconds.labels(kind).time():
            yield


__all__ = ["Metrics"]
