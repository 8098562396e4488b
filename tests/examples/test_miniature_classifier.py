import numpy as np

from examples.miniature.classifier import DigitClassifier


def test_it_recognises_held_out_digits_and_not_others(digits):
    train, held_out = digits
    classifier = DigitClassifier(train)
    assert classifier.accuracy(held_out.images, held_out.labels) >= 0.97
    assert classifier.accuracy(held_out.images, (held_out.labels + 1) % 10) <= 0.03
    enlarged = [image.resize((64, 64)) for image in held_out.images]
    assert classifier.accuracy(enlarged, held_out.labels) >= 0.97
    assert np.array_equal(classifier.predict(held_out.images), DigitClassifier(train).predict(held_out.images))
