"""Records that cannot be trained on: skipped, counted by reason, and too many of them an error."""

import logging
from collections import Counter


logger = logging.getLogger(__name__)

REASONS = (
    "broken_json",
    "missing_column",
    "wrong_type",
    "empty",
    "too_long",
    "undecodable_text",
    "special_token",
    "bad_conversation",
    "image_count",
    "missing_image",
    "undecodable_image",
    "bad_image_size",
    "bad_latents",
)
NUM_LOGGED = 3  # of each reason, in each worker
MIN_RECORDS = 100  # before a share says something


class BadRecord(ValueError):
    """A record that is skipped, and why: `reason` is one of `REASONS`."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class SkippedRecords:
    """
    Counts the records of one source, and among them those that were skipped.

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
            RuntimeError: if of at least 100 records more than `max_share` or all were skipped.
        """
        self.num_records += 1
        if error is None:
            return
        self.reasons[error.reason] += 1
        if self.reasons[error.reason] <= NUM_LOGGED:
            logger.warning("%s: skipped a record, %s", self.source, error)
        skipped = self.reasons.total()
        most = min(self.max_share * self.num_records, self.num_records - 1)
        if self.num_records >= MIN_RECORDS and skipped > most:
            raise RuntimeError(
                f"{self.source}: {skipped} of {self.num_records} records were skipped, which is more than "
                f"`max_skipped_share` = {self.max_share}: {dict(self.reasons)}."
            )

    def state_dict(self) -> dict:
        return {"num_records": self.num_records, "reasons": dict(self.reasons)}

    def load_state_dict(self, state: dict):
        self.num_records = state["num_records"]
        self.reasons = Counter(state["reasons"])


__all__ = ["REASONS", "BadRecord", "SkippedRecords"]
