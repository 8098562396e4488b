from examples.miniature.english import is_prose, letters, load_english


def test_no_paragraph_is_on_both_sides_or_twice(english):
    keys = [letters(paragraph) for paragraph in english.train + english.held_out]
    assert len(keys) == len(set(keys)) > 1000
    assert 0.04 < len(english.held_out) / len(keys) < 0.06


def test_paragraphs_that_differ_in_marks_or_case_are_the_same():
    assert letters("Return the *name*.") == letters("return  the name")
    assert letters("Return the name.") != letters("Return the names.")


def test_the_text_is_always_the_same(english):
    again = load_english()
    assert (again.sha256, again.train, again.held_out) == (english.sha256, english.train, english.held_out)


def test_prose_is_told_from_code():
    assert is_prose("The quick brown fox jumps over the lazy dog, as it always has.")
    assert not is_prose(">>> The quick brown fox jumps over the lazy dog as it always has")
    assert not is_prose("x[i] = {0: (1, 2), 3: (4, 5)}; y[j] = -x[i] ** 2 + 17 / 3")
    assert not is_prose("Too short.")
    assert not is_prose("")
