"""
Runs in a process of its own, where the project cannot be imported: the app of a Space, as the Hub starts it.

    python -I run_space.py FOLDER
"""

import os
import runpy
import sys


for project in ("modeling_rosetta", "trainer", "hub_upload", "examples"):
    sys.modules[project] = None  # importing it fails, even where it is installed

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    sys.path.insert(0, sys.argv[1])
    runpy.run_path("app.py", run_name="__main__")
