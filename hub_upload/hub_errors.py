"""Errors of the Hub, as sentences that say what to do."""

from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError


_AGAIN = "Run the same command again: what arrived is not sent again."
ADVICE = {
    401: "It does not know you, or hides the repository from you. Log in with `hf auth login`, or set `HF_TOKEN`.",
    402: "Its storage is full. Free some, or ask for more, then run the same command again.",
    403: "Your token may not do this. Take one with write permission, of a member of the organisation.",
    404: "It has no such repository or revision. Check the spelling; a private one needs a token that may see it.",
    412: "The branch has moved on since this push began, and nothing was changed. Look at what came in between, then "
    "push again on top of it.",
    413: "It was too much at once. Save the pipeline in smaller shards (`max_shard_size`), then push again.",
    429: f"These were too many requests. Wait a while. {_AGAIN}",
    507: "Its storage is full. Free some, or ask for more, then run the same command again.",
}


@contextmanager
def hub_errors(doing: str):
    """
    Around requests to the Hub.

    Args:
        doing (`str`): what they do, e.g. `"uploading to name/model"`.

    Raises:
        PermissionError: if a token is missing or may not do it.
        ConnectionError: if the Hub cannot be reached.
        OSError: whatever else the Hub answers.
    """
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PermissionError(
            f"{doing}: there is no token. Log in with `hf auth login`, or set `HF_TOKEN`."
        ) from error
    except (HTTPError, RuntimeError) as error:
        refused = _cause(error, HfHubHTTPError)
        if refused is not None:
            raise _explained(doing, refused) from error
        if _cause(error, HTTPError) is not None:
            raise ConnectionError(
                f"{doing}: the Hub cannot be reached ({_cause(error, HTTPError)}). Check the network. {_AGAIN}"
            ) from error
        raise


def _cause(error: BaseException | None, kind: type) -> BaseException | None:
    """huggingface_hub wraps what goes wrong while it uploads large files."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error


def _explained(doing: str, error: HfHubHTTPError) -> OSError:
    status = error.response.status_code
    said = error.server_message or str(error).splitlines()[0]
    advice = ADVICE.get(status, _AGAIN)
    if status == 403 and "storage" in said.lower():
        advice = ADVICE[507]
    kind = PermissionError if status in (401, 403) and advice is not ADVICE[507] else OSError
    return kind(f"{doing}: the Hub answered {status} ({said.strip()}). {advice}")


__all__ = ["hub_errors"]
