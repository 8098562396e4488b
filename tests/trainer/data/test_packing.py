from trainer.data.packing import FirstFit


def _rows(lengths, *limits):
    packer = FirstFit(*limits)
    return [packer.add(i, length) for i, length in enumerate(lengths)], packer.rows


def test_first_fit_fills_earlier_rows_first():
    taken, rows = _rows([4, 8, 3, 9, 2, 10, 1], 10)
    assert all(taken) and rows == [[0, 2, 4, 6], [1], [3], [5]]


def test_no_more_rows_than_allowed():
    taken, rows = _rows([4, 8, 7, 6, 2], 10, 2)
    assert taken == [True, True, False, True, True] and rows == [[0, 3], [1, 4]]
