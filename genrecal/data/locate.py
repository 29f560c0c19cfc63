"""Where a source's image paths lead: never out of its folder, and to a file that is there.

Millions of paths are looked at once, when a source is read. On a network disk each look costs a round
trip, so a folder that is asked for often is listed instead.
"""

from __future__ import annotations

import os
from pathlib import Path

from genrecal.core.errors import DataError

# Looks at single files of a folder before it is listed.
LIST_AFTER = 64


class ImageFolder:
    """The folder that a source's image paths start from."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real_root = Path(os.path.realpath(root))
        self._inside: dict[str, bool] = {}
        self._looks: dict[str, int] = {}
        self._links: dict[str, dict[str, bool]] = {}  # folder -> file name -> is it a symbolic link

    def find(self, name: str, where: str) -> Path:
        """The path that a row names, whether it is there or not.

        Raises:
            DataError: it leads out of the folder, also by a symbolic link.
        """
        path = self.root / name
        folder = str(path.parent)
        if folder not in self._inside:
            self._inside[folder] = Path(os.path.realpath(folder)).is_relative_to(self._real_root)
        inside = self._inside[folder] and path.name != ".."
        if inside and self._is_link(path):
            inside = Path(os.path.realpath(path)).is_relative_to(self._real_root)
        if not inside:
            raise DataError(f"names the image '{name}', outside of {self.root}", where=where)
        return path

    def holds(self, path: Path) -> bool:
        """Whether `path`, as `find` gave it, is a file."""
        listed = self._links.get(str(path.parent))
        if listed is None:
            return path.is_file()
        return path.name in listed and (not listed[path.name] or path.is_file())

    def _is_link(self, path: Path) -> bool:
        folder = str(path.parent)
        if folder not in self._links:
            self._looks[folder] = self._looks.get(folder, 0) + 1
            if self._looks[folder] <= LIST_AFTER or not os.path.isdir(folder):
                return path.is_symlink()
            with os.scandir(folder) as entries:
                self._links[folder] = {
                    entry.name: entry.is_symlink()
                    for entry in entries
                    if entry.is_symlink() or entry.is_file()
                }
        return self._links[folder].get(path.name, False)
