from trainer.data.packing import BestFit, FirstFit


def _rows(lengths, *limits):
    packer = FirstFit(*limits)
    return [packer.add(i, length) for i, length in enumerate(lengths)], packer.rows


def test_first_fit_fills_earlier_rows_first():
    taken, rows = _rows([4, 8, 3, 9, 2, 10, 1], 10)
    assert taken == [0, 1, 0, 2, 0, 3, 0] and rows == [[0, 2, 4, 6], [1], [3], [5]]


def test_no_more_rows_than_allowed():
    taken, rows = _rows([4, 8, 7, 6, 2], 10, 2)
    assert taken == [0, 1, None, 0, 1] and rows == [[0, 3], [1, 4]]


def test_best_fit_fills_the_row_with_least_room_first():
    packer = BestFit(10)
    assert packer.largest_hole() == 0
    assert [packer.add(i, length) for i, length in enumerate([4, 8, 3, 9, 2, 10, 1])] == [0, 1, 0, 2, 1, 3, 2]
    assert packer.rows == [[0, 2], [1, 4], [3, 6], [5]] and packer.largest_hole() == 3


def test_rows_before_the_first_allowed_are_left_alone():
    packer = BestFit(10, 3)
    assert [packer.add(i, length) for i, length in enumerate([4, 8])] == [0, 1]
    assert packer.largest_hole(1) == 2
    assert [packer.add("x", 3, first_row=1), packer.add("y", 8, first_row=1)] == [2, None]
