"""The judge of what is drawn: a digit classifier that shares nothing with the models it judges but the train split."""

import numpy as np
from PIL import Image
from sklearn.svm import SVC

from .digits import Digits, image_to_scan


class DigitClassifier:
    """A support vector machine on scans of 8 x 8 pixels."""

    def __init__(self, train: Digits):
        self.svc = SVC(C=10, gamma=0.001).fit(train.scans.reshape(-1, 64), train.labels)

    def predict(self, images: list[Image.Image]) -> np.ndarray:
        """The digit on each of N images of any size, white on black: (N,)."""
        return self.svc.predict(np.stack([image_to_scan(image).ravel() for image in images]))

    def features(self, images: list[Image.Image]) -> np.ndarray:
        """How far each image is on the side of each digit: (N, 10)."""
        return self.svc.decision_function(np.stack([image_to_scan(image).ravel() for image in images]))

    def accuracy(self, images: list[Image.Image], labels: np.ndarray) -> float:
        """Share of the images recognised as the digit they should show."""
        return float((self.predict(images) == labels).mean())
