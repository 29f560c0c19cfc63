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

    def __init__(self, root: Path, *, confined: bool = True) -> None:
        """`confined`: paths may not leave it; False only for a file that the user names as his own."""
        self.root, self.confined = root, confined
        self._root, self._real_root = str(root), Path(os.path.realpath(root))
        self._inside: dict[str, bool] = {}
        self._looks: dict[str, int] = {}
        self._links: dict[str, dict[str, bool]] = {}  # folder -> file name -> is it a symbolic link

    def find(self, name: str, where: str) -> Path:
        """The path that a row names, whether it is there or not.

        Raises:
            DataError: it leads out of the folder, also by a symbolic link.
        """
        path = os.path.join(self._root, name)
        if not self.confined:
            return Path(path)
        folder, file = os.path.split(path)
        if file in ("", ".", ".."):
            inside = self._leads_inside(path)
        else:
            if folder not in self._inside:
                self._inside[folder] = self._leads_inside(folder)
            inside = self._inside[folder] and (
                not self._is_link(path, folder, file) or self._leads_inside(path)
            )
        if not inside:
            raise DataError(f"names the image '{name}', outside of {self.root}", where=where)
        return Path(path)

    def holds(self, path: Path) -> bool:
        """Whether `path`, as `find` gave it, is a file."""
        folder, file = os.path.split(path)
        listed = self._links.get(folder)
        if listed is None:
            return path.is_file()
        return file in listed and (not listed[file] or path.is_file())

    def _leads_inside(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._real_root)

    def _is_link(self, path: str, folder: str, file: str) -> bool:
        if folder not in self._links:
            self._looks[folder] = self._looks.get(folder, 0) + 1
            if self._looks[folder] <= LIST_AFTER or not os.path.isdir(folder):
                return Path(path).is_symlink()
            with os.scandir(folder) as entries:
                self._links[folder] = {
                    entry.name: entry.is_symlink()
                    for entry in entries
                    if entry.is_symlink() or entry.is_file()
                }
        return self._links[folder].get(file, False)
