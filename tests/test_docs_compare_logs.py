"""docs/how-to/compare-logs.md does what it says: its file is written and its commands run, in one empty folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import statewise

PAGE = (Path(statewise.__file__).parents[2] / "docs" / "how-to" / "compare-logs.md").read_text(encoding="utf-8")
(MAKE,) = re.findall(r"```python make_logs.py\n(.*?)```", PAGE, re.DOTALL)
(COMMANDS,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)


def test_the_logs_of_the_page_are_compared_as_it_says(call, tmp_path):
    Path("make_logs.py").write_text(MAKE)
    first, *commands = [line.removeprefix("$ ").split() for line in COMMANDS.splitlines()]
    assert first == ["python", "make_logs.py"]
    subprocess.run([sys.executable, "make_logs.py"], check=True)
    outputs = []
    for line in commands:
        code, out, _ = call(*line[1:])
        assert code == 0
        outputs.append(out)
    assert "Items gained (0 → 1) and lost (1 → 0)" in outputs[0]
    (score,) = json.loads(outputs[1])["scores"]
    # Lost: item 1; gained: 3 and 4; wrong both times: 5. With k = 4: (4/3 − 4/9) / 6 and (8/3 − 4/9) / 6.
    assert [round(6 * score[key]["value"], 6) for key in ("lost", "gained")] == [1, 2]
    assert [round(54 * score[key]["value"], 6) for key in ("lost_adjusted", "gained_adjusted")] == [8, 20]
