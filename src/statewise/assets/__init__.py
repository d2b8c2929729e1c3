"""What the package carries: the pocket model with its tasks, the built-in studies, and the shapes of their models.

A shape is a config.json of sizes alone: enough to plan a study of a model that is not on this machine.
"""

from pathlib import Path

ASSETS = Path(__file__).parent
POCKET_MODEL = ASSETS / "pocket"
STUDIES = ASSETS / "studies"
SHAPES = ASSETS / "shapes"
BEGUN = ASSETS / "begun"  # what `statewise init` writes, with places for what it found
