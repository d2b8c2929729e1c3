"""Copy a pocket world with other target problems, so that recipes can be chosen without looking at the test set.

    uv run python tools/validation_world.py OUT [--world-seed 0]
    uv run statewise run tools/lr_sweep.toml --world OUT --out runs/lr-sweep

The copy's `pocket_math_test.jsonl` holds 600 held-out problems that are in neither the training split nor the test set
nor the corpus; everything else is the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from statewise.assets import POCKET_MODEL
from statewise.pocket.world import World, math_row


def main() -> None:
    """Write the validation world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--world-seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=POCKET_MODEL)
    arguments = parser.parse_args()
    shutil.copytree(arguments.model, arguments.out)
    rows = [math_row(problem) for problem in World.from_seed(arguments.world_seed).spare_problems]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (arguments.out / "tasks" / "pocket_math_test.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
