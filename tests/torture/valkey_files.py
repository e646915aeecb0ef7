"""What can happen to the folder of a Valkey that is not running: a truncated append-only file, an older copy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

FILES: Final = "appendonlydir"
COPIES_MAX: Final = 10


def last_part(folder: Path) -> Path:
    """The file that commands are appended to: the last one that the manifest names as incremental."""
    manifest = next((folder / FILES).glob("*.manifest"))
    names = [line.split()[1] for line in manifest.read_text().splitlines() if line.endswith("type i")]
    return folder / FILES / names[-1]


def truncate(folder: Path, share: float) -> tuple[int, int]:
    """Cut off a share of the file, anywhere in a command or transaction; (bytes before, bytes left)."""
    path = last_part(folder)
    size = path.stat().st_size
    left = round(size * (1 - share))
    with path.open("r+b") as file:
        file.truncate(left)
    return size, left


class Copies:
    """Copies of the folder, taken while the server writes to it, as a careless backup does."""

    def __init__(self, folder: Path, kept_in: Path) -> None:
        self._folder = folder
        self._kept_in = kept_in
        self.taken: list[Path] = []

    def take(self) -> Path | None:
        """Copy the folder. None where the files were exchanged meanwhile, or there are `COPIES_MAX` already."""
        if len(self.taken) >= COPIES_MAX:
            return None
        copy = self._kept_in / f"copy-{len(self.taken) + 1}"
        before = self._manifest(self._folder)
        shutil.rmtree(copy, ignore_errors=True)
        try:
            shutil.copytree(self._folder / FILES, copy / FILES)
        except OSError:
            return None
        if not before or before != self._manifest(self._folder) or before != self._manifest(copy):
            return None
        self.taken.append(copy)
        return copy

    def bring_back(self, share: float) -> Path:
        """Put a copy in the place of the files: the newest for 1, the oldest for 0."""
        copy = self.taken[round(share * (len(self.taken) - 1))]
        shutil.rmtree(self._folder / FILES)
        shutil.copytree(copy / FILES, self._folder / FILES)
        return copy

    @staticmethod
    def _manifest(folder: Path) -> str:
        return "".join(path.read_text() for path in (folder / FILES).glob("*.manifest"))
