"""Fetches the jars of `requirements/clients/java.lock`: each by its coordinates, and none that has another SHA-256.

python -m tests.services.jars FOLDER
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Final

from jgo.maven import MavenContext

LOCK: Final = Path(__file__).parents[2] / "requirements" / "clients" / "java.lock"


def fetch(folder: Path, lock: Path = LOCK) -> None:
    """Fill a folder with exactly the jars of the lock file. Blocks while what the user's Maven cache lacks is fetched.

    Raises `ValueError` before anything is copied if a jar has another content.
    """
    maven = MavenContext()
    jars = []
    for line in lock.read_text().splitlines():
        if line.startswith("#"):
            continue
        coordinates, expected = line.split()
        group, artifact, version = coordinates.split(":")
        jar = maven.project(group, artifact).at_version(version).artifact().resolve()
        if hashlib.sha256(jar.read_bytes()).hexdigest() != expected:
            raise ValueError(f"{jar} is not the jar of {lock.name}: remove the file and fetch again")
        jars.append(jar)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for jar in jars:
        shutil.copy(jar, folder)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
