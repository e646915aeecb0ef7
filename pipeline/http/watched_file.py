"""A small file that operators change while the gateway runs, such as the API keys."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from schemas.errors import InvalidInput

SECRETS_MAX: Final = 10
SECRETS_FILE_BYTES_MAX: Final = 64 * 1024

Content = TypeVar("Content")

_log: Final = logging.getLogger(__name__)


def load_lines(path: Path, field: str, pattern: re.Pattern[str], what: str) -> tuple[str, ...]:
    """The secrets of a file, one on each line; `#` begins a comment. Empty if the file is missing.

    Raises `InvalidInput` of `field`, with the number of a line that does not match the pattern and `what` is right.
    """
    try:
        with path.open("rb") as file:
            content = file.read(SECRETS_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise InvalidInput(field, f"{path} cannot be read: {error.strerror}") from error
    secrets = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        secret = line.partition("#")[0].strip()
        if secret and not pattern.fullmatch(secret):
            raise InvalidInput(field, f"{path}, line {number}: {what}")
        secrets += [secret] if secret else []
    if len(secrets) > SECRETS_MAX or len(content) > SECRETS_FILE_BYTES_MAX:
        raise InvalidInput(field, f"{path} has more than {SECRETS_MAX} secrets: remove the old ones")
    return tuple(secrets)


class WatchedFile(Generic[Content]):
    """What a file says. The file is read again after a change.

    If the file becomes unreadable or malformed, its earlier content stays in force and `problem` has the reason. So a
    mistake in the file does not lock everybody out.
    """

    def __init__(self, setting: str, path: Path, load: Callable[[Path], Content]) -> None:
        """`load` returns the content of the file, also of a missing one. Raises `InvalidInput` with the name of the
        setting if the file is unreadable or malformed."""
        self._path = path
        self._load = load
        self._stamp: tuple[int, ...] | None = None
        self.problem = ""
        try:
            self._content = load(path)
        except InvalidInput as error:
            raise InvalidInput(setting, error.message) from error

    def content(self) -> Content:
        """The content. Looks whether the file has changed, which takes microseconds."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
        except FileNotFoundError:
            stamp = (0, 0, 0, 0)
        except OSError as error:
            self.problem = f"{self._path} cannot be read: {error.strerror}"
            return self._content
        if stamp == self._stamp:
            return self._content
        try:
            self._content, self._stamp, self.problem = self._load(self._path), stamp, ""
        except InvalidInput as error:
            # A file that cannot be opened may become readable without a change of the file, so the next call retries.
            self._stamp = None if isinstance(error.__cause__, OSError) else stamp
            if self.problem != error.message:
                _log.error("%s; what was read before stays in force", error.message)
            self.problem = error.message
        return self._content
