"""What the package carries: the pocket model with its tasks, and the built-in studies."""

from pathlib import Path

ASSETS = Path(__file__).parent
POCKET_MODEL = ASSETS / "pocket"
STUDIES = ASSETS / "studies"
