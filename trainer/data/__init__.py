"""Data of a stage: sources of records, mixed, packed and read from an exact position."""

from .bad_records import REASONS, BadRecord
from .latent_cache import write_latent_cache
from .loader import StreamLoader
from .source import TASKS, DataSource
from .stream import RosettaDataStream


__all__ = ["REASONS", "TASKS", "BadRecord", "DataSource", "RosettaDataStream", "StreamLoader", "write_latent_cache"]
