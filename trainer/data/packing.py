"""Samples into rows of a limited length."""

NUM_OPEN_ROWS = 16


class RowPacker:
    """
    Puts samples, in the order they come, into the first of 16 open rows that has room.

    Args:
        max_length (`int`): the room of a row, in tokens.
    """

    def __init__(self, max_length: int):
        self.max_length = max_length
        self.rows: list[list] = []
        self.room: list[int] = []

    def add(self, sample: dict) -> bool:
        """Takes the sample in; `False` if there is room for it in none of the rows."""
        length = len(sample["input_ids"])
        row = next((row for row, room in enumerate(self.room) if length <= room), None)
        if row is None and len(self.rows) < NUM_OPEN_ROWS:
            row = len(self.rows)
            self.rows.append([])
            self.room.append(self.max_length)
        if row is None:
            return False
        self.rows[row].append(sample)
        self.room[row] -= length
        return True


__all__ = ["RowPacker"]
