"""Samples into rows of a limited length."""


class FirstFit:
    """
    Puts items, in the order they come, into the first row that has room.

    Args:
        max_length (`int`): the room of a row.
        max_rows (`int`, *optional*): how many rows there may be.

    Attributes:
        rows (`list[list]`): the items of each row.
    """

    def __init__(self, max_length: int, max_rows: int | None = None):
        self.max_length = max_length
        self.max_rows = max_rows
        self.rows: list[list] = []
        self._room: list[int] = []

    def add(self, item, length: int) -> bool:
        """Takes an item in; `False` if there is room for it in none of the rows, and no further row."""
        row = next((row for row, room in enumerate(self._room) if length <= room), len(self.rows))
        if row == self.max_rows:
            return False
        if row == len(self.rows):
            self.rows.append([])
            self._room.append(self.max_length)
        self.rows[row].append(item)
        self._room[row] -= length
        return True


__all__ = ["FirstFit"]
