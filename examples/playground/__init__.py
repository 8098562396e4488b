"""What `examples/app.py` and a Space show in the browser. Of the project it needs a repository alone."""

from .interface import interface, launch_options
from .loading import load_pipeline


__all__ = ["interface", "launch_options", "load_pipeline"]
