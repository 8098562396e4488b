"""Records that cannot be trained on: skipped, counted by reason, and too many of them an error."""

import logging
import math
from collections import Counter
from contextlib import contextmanager


logger = logging.getLogger(__name__)

REASONS = (
    "unreadable",
    "broken_json",
    "missing_column",
    "wrong_type",
    "empty",
    "too_long",
    "undecodable_text",
    "bad_conversation",
    "tool_turn",
    "interleaved",
    "image_count",
    "missing_image",
    "undecodable_image",
    "bad_image_size",
    "bad_latents",
    "no_target",
    "unusable",
)
NUM_LOGGED = 3  # of each reason, in each worker
MIN_RECORDS = 100  # before a share says something
ERROR_RATE = 1e-9  # of stopping though the true share is no larger than the allowed one, in each reader
MAX_DETAIL = 300  # characters


class BadRecord(ValueError):
    """
    A record that is skipped, and why.

    Attributes:
        reason (`str`): one of `REASONS`.
        detail (`str`): in words.
        place (`str`): where the record is, once that is known.
    """

    place = "a record"

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail if len(detail) <= MAX_DETAIL else f"{detail[:MAX_DETAIL]}..."

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    def entry(self, source) -> dict[str, str]:
        """For a list of what was skipped of a source."""
        named = {"task": source.task, "source": source.path, "place": self.place}
        return {**named, "reason": self.reason, "detail": self.detail}


@contextmanager
def unusable_records():
    """
    Around what turns a record into a sample, and nothing else: whatever is raised there says that the record cannot be
    used. If it is the code that is wrong, all records fail, and that ends the run.

    Raises:
        BadRecord: for any exception.
    """
    try:
        yield
    except BadRecord:
        raise
    except Exception as error:
        raise BadRecord("unusable", f"{type(error).__name__}, {error}") from error


class SkippedRecords:
    """
    Counts the records of one source, and among them those that were skipped.

    Whether they are too many is tested at each, by the Krichevsky-Trofimov estimate of how much likelier another share
    makes what was seen than `max_share` does. For records that fail independently of one another, a true share of
    `max_share` or less passes it for ever but with a probability of 1e-9.

    Args:
        source (`str`): its name in messages.
        max_share (`float`): the largest share of skipped records that is no error.
    """

    def __init__(self, source: str, max_share: float):
        self.source = source
        self.max_share = max_share
        self.num_records = 0
        self.reasons = Counter()

    def add(self, error: BadRecord | None):
        """
        Counts a record, which was skipped if there is an error.

        Raises:
            RuntimeError: if, of at least 100 records, surely more than `max_share` or all were skipped.
        """
        self.num_records += 1
        if error is not None:
            self.reasons[error.reason] += 1
            if self.reasons[error.reason] <= NUM_LOGGED:
                # Of an error that is not foreseen it matters where it comes from.
                cause = error.__cause__ if error.reason == "unusable" else None
                logger.warning("skipped %s, %s", error.place, error, exc_info=cause)
        if self._are_too_many(error):
            last = "" if error is None else f", the last {error.place}, {error}"
            raise RuntimeError(
                f"{self.source}: {self.reasons.total()} of {self.num_records} records were skipped, which is more "
                f"than `max_skipped_share` = {self.max_share}: {dict(self.reasons)}{last}."
            )

    def _are_too_many(self, error: BadRecord | None) -> bool:
        number, skipped, share = self.num_records, self.reasons.total(), self.max_share
        # A good record makes it no likelier, but for the first at which it is asked.
        if number < MIN_RECORDS or (error is None and number > MIN_RECORDS):
            return False
        if share in (0, 1):
            return skipped > 0 if share == 0 else skipped == number
        if skipped <= share * number:
            return False
        log_ratio = (
            math.lgamma(skipped + 0.5)
            + math.lgamma(number - skipped + 0.5)
            - math.lgamma(number + 1)
            - math.log(math.pi)
            - skipped * math.log(share)
            - (number - skipped) * math.log1p(-share)
        )
        return log_ratio > -math.log(ERROR_RATE)

    def state_dict(self) -> dict:
        return {"num_records": self.num_records, "reasons": dict(self.reasons)}

    def load_state_dict(self, state: dict):
        self.num_records = state["num_records"]
        self.reasons = Counter(state["reasons"])


__all__ = ["REASONS", "BadRecord", "SkippedRecords", "unusable_records"]
