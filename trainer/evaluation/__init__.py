"""
Evaluation: tasks, the protocols they follow, and the plug-ins of the harnesses. A figure is worth nothing without the
name of its protocol, so it never comes without.
"""

from .evaluate import evaluate, library_versions
from .model_under_test import ModelUnderTest
from .report import write_report
from .task import Choices, Drawing, Question, Sample, Task, accuracy


__all__ = [
    "Choices",
    "Drawing",
    "ModelUnderTest",
    "Question",
    "Sample",
    "Task",
    "accuracy",
    "evaluate",
    "library_versions",
    "write_report",
]
