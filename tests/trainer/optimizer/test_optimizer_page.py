"""The page on the optimizer: its code runs as it stands, and what it says of the groups is so."""

import contextlib
import io
import re
import warnings
from pathlib import Path


PAGE = (Path(__file__).parents[3] / "docs" / "optimizer.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_every_block_runs_after_those_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"docs/optimizer.md, block {number}", "exec"), names)
    assert len(BLOCKS) == PAGE.count("```python") > 5
    assert "fired_share" in printed.getvalue()
    told = re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \|$", PAGE, re.MULTILINE)
    assert told == [(group["name"], "yes" if group["maop"] else "no") for group in names["groups"]]
