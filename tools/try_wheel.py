"""Build the package as it would be published, and use it as whoever installs it: `uv run python tools/try_wheel.py`.

The wheel is built from the sdist, so that the sdist holds what it needs. It is installed with the versions of uv.lock
into an environment of its own, without the tree and its development packages, and run in an empty folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_BYTES = 6_000_000
INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
# hatchling adds the last three by itself.
IN_SDIST = {
    "src", "tests", "docs", "tools", "benchmarks", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff",
    "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore",
}  # fmt: skip
COMMANDS = ("--version", "list studies", "run pocket --quick", "verify runs/pocket-quick")
# Of the environment that this runs in, which would lead back to the tree.
LEFT_OUT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")


def package_files(package: Path = ROOT / "src" / "statewise") -> set[str]:
    """The files of the package in the tree, without caches."""
    found = (path.relative_to(package.parent) for path in package.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def check_wheel(wheel: Path, expected: set[str]) -> None:
    """Refuse a wheel that is too large, or holds more or less than the package, its licence and metadata."""
    if wheel.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{wheel.name}: {wheel.stat().st_size:,} bytes, expected at most {MOST_BYTES:,}")
    info = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    check_names(wheel.name, set(zipfile.ZipFile(wheel).namelist()), expected | {f"{info}/{name}" for name in INFO})


def check_sdist(sdist: Path) -> None:
    """Refuse an sdist with other folders or files at its top than those that are meant to be there."""
    with tarfile.open(sdist) as archive:
        names = [Path(name).parts[1:] for name in archive.getnames()]
    check_names(sdist.name, {parts[0] for parts in names}, IN_SDIST)
    check_names(sdist.name, {part for parts in names for part in parts if part == "__pycache__"}, set())


def check_names(archive: str, found: set[str], expected: set[str]) -> None:
    """Refuse an archive that holds other names than expected, and say which."""
    if found != expected:
        missing, strange = (", ".join(sorted(names)) or "none" for names in (expected - found, found - expected))
        raise SystemExit(f"{archive}: missing: {missing}; not meant to be there: {strange}")


def call(*command: str | Path, folder: Path = ROOT) -> None:
    """Run a command and say how long it took; its output is shown where it fails."""
    start = time.monotonic()
    kept = {key: value for key, value in os.environ.items() if key not in LEFT_OUT}
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=kept, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    told = " ".join([Path(command[0]).name, *map(str, command[1:])])
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\n{told}: exit code {done.returncode}")
    print(f"{time.monotonic() - start:6.1f} s  {told}", flush=True)


def main() -> None:
    """Build, look into what was built, install it and use it."""
    with tempfile.TemporaryDirectory(prefix="statewise-wheel-") as name:
        folder = Path(name)
        call("uv", "build", "--quiet", "--out-dir", folder / "dist")
        (wheel,), (sdist,) = folder.glob("dist/*.whl"), folder.glob("dist/*.tar.gz")
        check_wheel(wheel, package_files())
        check_sdist(sdist)
        versions = folder / "versions.txt"
        call("uv", "export", "--quiet", "--locked", "--no-dev", "--no-emit-project", "--no-hashes", "-o", versions)
        call("uv", "venv", "--quiet", "--python", sys.executable, folder / "venv")
        python = folder / "venv" / "bin" / "python"
        call("uv", "pip", "install", "--quiet", "--python", python, "--constraints", versions, wheel)
        (folder / "empty").mkdir()
        for command in COMMANDS:
            call(python.with_name("statewise"), *command.split(), folder=folder / "empty")


if __name__ == "__main__":
    main()
