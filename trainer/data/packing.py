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

    def add(self, item, length: int, first_row: int = 0) -> int | None:
        """Takes an item into one of the rows from `first_row` on, and returns which; `None` if there is room for it in
        none of them, and no further row."""
        fitting = [row for row in range(first_row, len(self.rows)) if length <= self._room[row]]
        if fitting:
            row = self._choose(fitting)
        elif len(self.rows) == self.max_rows:
            return None
        else:
            row = len(self.rows)
            self.rows.append([])
            self._room.append(self.max_length)
        self.rows[row].append(item)
        self._room[row] -= length
        return row

    def _choose(self, fitting: list[int]) -> int:
        return fitting[0]


class BestFit(FirstFit):
    """Puts items, in the order they come, into the row that has the least room for them."""

    def largest_hole(self, first_row: int = 0) -> int:
        """Most room in one of the rows that were begun, from `first_row` on."""
        return max(self._room[first_row:], default=0)

    def _choose(self, fitting: list[int]) -> int:
        return min(fitting, key=lambda row: self._room[row])


__all__ = ["BestFit", "FirstFit"]
