"""A run that is killed, also while it saves, ends with the weights of one that is not. The long form, with twenty
kills, is the script itself."""

import json
import subprocess
import sys
from pathlib import Path


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "survive_kills.py"


def test_killed_twice(tmp_path):
    result = tmp_path / "result.json"
    command = [sys.executable, str(SCRIPT), "--kills", "2", "--steps", "20", "--output", str(result)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = json.loads(result.read_text())
    assert result["differences"] == []
    saving, training = result["kills"]
    assert saving["moment"] == "saving" and saving["files left half way"] > 0
    assert training["moment"] == "training" and 0 < training["went on from"] < training["last complete"] < 20
