"""Errors as OpenAI's clients read them: JSON that names the argument."""

import re

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException


KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# What requests call the arguments of the pipeline.
NAMES = {"num_images_per_prompt": "n", "height": "size", "width": "size"}
LONGEST = 400  # characters of a message


class RequestError(Exception):
    """
    Args:
        message (`str`): for the client's author.
        param (`str`, *optional*): the argument that it is about.
        status (`int`, defaults to 400)
        code (`str`, *optional*): what programs tell it by.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code

    def body(self) -> dict:
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        message = self.message if len(self.message) <= LONGEST else self.message[:LONGEST] + "..."
        message = message.encode("utf-8", "replace").decode()  # what it quotes may hold half a character
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": "1"} if self.status in (429, 503) else {}
        return JSONResponse(self.body(), self.status, headers)


def from_value_error(error: ValueError, param: str | None = None) -> RequestError:
    """Of an error of the processor or the pipeline, which begins with the argument's name where it is about one."""
    message = " ".join(str(error).split())
    if param is None and (named := re.match(r"`(\w+)`", message)):
        param = NAMES.get(named[1], named[1])
    return RequestError(message, param)


def from_validation(error: RequestValidationError) -> RequestError:
    """Of what is wrong with a body: the error that lies deepest, as the others are of other shapes it might have."""
    errors = error.errors()
    if any(each["type"] == "json_invalid" for each in errors):
        return RequestError("The body is not valid JSON.")
    found = max(errors, key=lambda each: len(_path(each["loc"], error.body)))
    param = _name(_path(found["loc"], error.body))
    if found["type"] == "extra_forbidden":
        return RequestError(f"Unrecognized request argument supplied: {param}", param, code="unknown_parameter")
    if found["type"] == "missing":
        missing = str(found["loc"][-1])
        return RequestError(f"Missing required parameter: '{missing}'.", missing if param is None else param)
    said = found["msg"].removeprefix("Value error, ")
    return RequestError(f"Invalid value for '{param or 'body'}': {said}", param)


def add_error_handlers(app):
    async def of_request(request: Request, error: RequestError):
        return error.response()

    async def of_validation(request: Request, error: RequestValidationError):
        return from_validation(error).response()

    async def of_http(request: Request, error: HTTPException):
        return RequestError(str(error.detail), status=error.status_code).response()

    async def of_all_else(request: Request, error: Exception):
        return RequestError("The server failed to process the request.", status=500).response()

    app.add_exception_handler(RequestError, of_request)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, of_all_else)


def _path(loc: tuple, body) -> list:
    """The part of a pydantic location that leads into the body, without the names of the shapes that were tried."""
    path, here = [], body
    for i, key in enumerate(loc[1:]):
        if isinstance(here, dict) and isinstance(key, str) and key in here:
            path.append(key)
            here = here[key]
        elif isinstance(here, list) and isinstance(key, int) and key < len(here):
            path.append(key)
            here = here[key]
        elif isinstance(here, dict) and isinstance(key, str) and i == len(loc) - 2:
            path.append(key)  # what is missing
    return path


def _name(path: list) -> str | None:
    """`messages[0].content`"""
    name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return name[1:] if name else None


__all__ = ["RequestError", "add_error_handlers", "from_value_error"]
