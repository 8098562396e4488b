"""What every request passes: is it counted, allowed, not one too many, and no larger than it may be."""

import asyncio
import secrets
import time

from .errors import RequestError
from .metrics import Metrics
from .settings import Settings


BODY_SECONDS = 60  # for a body to arrive
DISCARDED = 4  # times the limit are read of a body that is too large: who is cut off while it sends reads no answer


class Gate:
    """
    ASGI middleware. It reads the body, up to its limit, before the application sees the request.

    Args:
        app: the application.
        settings ([`Settings`])
        metrics ([`Metrics`])
    """

    def __init__(self, app, settings: Settings, metrics: Metrics):
        self.app, self.settings, self.metrics, self.number = app, settings, metrics, 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 499  # the client is gone

        async def noted(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.number += 1
        self.metrics.in_flight.set(self.number)
        try:
            self._check(scope)
            await self.app(scope, await self._with_body(scope, receive), noted)
        except RequestError as error:
            await error.response()(scope, receive, noted)
        except _Gone:
            pass
        finally:
            self.number -= 1
            self.metrics.in_flight.set(self.number)
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    def _check(self, scope):
        key, headers = self.settings.api_key, dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        if key and not secrets.compare_digest(given, b"Bearer " + key.encode()):
            raise RequestError("Incorrect API key provided.", status=401, code="invalid_api_key")
        if self.number > self.settings.max_requests:
            raise RequestError(
                f"The server is computing as much as it takes ({self.settings.max_requests} requests): try again.",
                status=429,
                code="too_many_requests",
            )

    async def _with_body(self, scope, receive):
        """A `receive` that first gives the body, which is read here."""
        limit, body, size, more = self.settings.max_body, bytearray(), 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more and size <= DISCARDED * limit:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    size += len(message.get("body", b""))
                    body += message.get("body", b"") if size <= limit else b""
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RequestError(f"The body did not arrive within {BODY_SECONDS} s.", status=408) from None
        if size > limit:
            raise RequestError(f"The body may have {limit} bytes.", status=413, code="body_too_large")
        messages = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def replay():
            return next(messages, None) or await receive()

        return replay


class _Gone(Exception):
    """The client has left before its body was there."""


__all__ = ["Gate"]
