"""Files of a folder, every one accounted for: images, what is left out and why, and debris that never counts."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from palkit.data.decoding import IMAGE_SUFFIXES, format_of
from palkit.errors import DataError

# What network storage, editors and systems leave behind, in lower case: copies, thumbnails, records of their own.
DEBRIS = {
    ".appledouble", ".dropbox.cache", ".ds_store", ".dvc", ".fseventsd", ".git", ".hg", ".idea", ".ipynb_checkpoints",
    ".spotlight-v100", ".svn", ".temporaryitems", ".thumbnails", ".trash", ".trashes", ".vscode", "#recycle",
    "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "@sharebin", "@tmp", "__macosx",
    "__pycache__", ".@__thumb", "desktop.ini", "ehthumbs.db", "icon\r", "lost+found", "picasa.ini", ".picasa.ini",
    "system volume information", "thumbs.db",
}  # fmt: skip
DEBRIS_PREFIXES = ("._", "~$", ".trash-", ".nfs", ".fuse_hidden", ".smbdelete", "synofile_thumb", "synophoto_thumb")
HIDDEN, DANGLING, LOOP = "hidden", "links to nothing, or no regular files", "links to a folder that holds them"
UNKNOWN = "no decoder for their format"
IMAGE, FOLDER = "image", "folder"  # what is not left out
REMEDIES = {
    HIDDEN: "If they are images of the data set, take the full stop from the front of their names.",
    DANGLING: "Restore what they point to, or remove them.",
    LOOP: "Remove them.",
    UNKNOWN: "If they are images, convert them to PNG or TIFF.",
}
NEEDS_PLUGIN = {".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif"}


@dataclass(frozen=True)
class Listing:
    """Contents of a folder.

    Attributes:
        images: paths relative to the folder, sorted.
        left_out: such paths of everything else but debris, with the reason.
        folders: such paths of all folders.
    """

    images: tuple[PurePosixPath, ...]
    left_out: tuple[tuple[PurePosixPath, str], ...]
    folders: tuple[PurePosixPath, ...]

    def notes(self, folder: Path, ignore: Sequence[str] = ()) -> list[str]:
        """Sentences on what was left out, one for each reason.

        Args:
            folder: that was listed.
            ignore: names of files that were read as something else.
        """
        notes = []
        for reason, remedy in REMEDIES.items():
            paths = [path for path, why in self.left_out if why == reason and str(path) not in ignore]
            if not paths:
                continue
            kinds = f": {_kinds(folder, paths)}" if reason == UNKNOWN else ""
            files = "1 file is" if len(paths) == 1 else f"{len(paths):,} files are"
            notes.append(f"{files} left out ({reason}{kinds}); the first is {folder / paths[0]}. {remedy}")
        return notes


def list_folder(folder: Path) -> Listing:
    """List all that is in a folder, at any depth, behind links too.

    Raises:
        DataError: a folder inside cannot be opened.
    """
    found = list(_walk(folder, PurePosixPath(), (), hidden=False))
    images = sorted(path for path, kind in found if kind == IMAGE)
    left_out = [(path, kind) for path, kind in found if kind in REMEDIES]
    return Listing(tuple(images), tuple(left_out), tuple(path for path, kind in found if kind == FOLDER))


def _walk(
    folder: Path, inside: PurePosixPath, above: tuple[tuple[int, int], ...], hidden: bool
) -> Iterator[tuple[PurePosixPath, str]]:
    """Relative path of all but debris, and its kind: IMAGE, FOLDER or the reason to leave it out.

    Args:
        folder: that is listed.
        inside: where the walk is, relative to it.
        above: device and inode of the folders that the walk came through.
        hidden: whether one of them is.
    """
    here = folder / inside
    try:
        status = os.stat(here)
        entries = sorted(os.scandir(here), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{here} cannot be opened ({error.strerror}). Make it readable, or move it away.") from error
    above = (*above, (status.st_dev, status.st_ino))
    for entry in entries:
        name, path = entry.name.lower(), inside / entry.name
        if name in DEBRIS or name.startswith(DEBRIS_PREFIXES):
            continue
        unseen, is_image = hidden or name.startswith("."), path.suffix.lower() in IMAGE_SUFFIXES
        if entry.is_dir():
            status = entry.stat()
            loop = (status.st_dev, status.st_ino) in above
            if loop or not unseen:
                yield path, LOOP if loop else FOLDER
            if not loop:
                yield from _walk(folder, path, above, unseen)
        elif is_image or not unseen:
            kind = UNKNOWN if not is_image else HIDDEN if unseen else IMAGE
            yield path, kind if entry.is_file() else DANGLING


def _kinds(folder: Path, paths: Sequence[PurePosixPath]) -> str:
    """Numbers of files per suffix, the most frequent first, with what one of each really holds."""
    counts = Counter(path.suffix.lower() for path in paths)
    kinds = []
    for suffix, count in counts.most_common():
        first = next(path for path in paths if path.suffix.lower() == suffix)
        inside = format_of(folder / first)
        plugin = NEEDS_PLUGIN.get(suffix)
        hint = f" (pip install {plugin})" if plugin else f" ({inside} inside: rename)" if inside else ""
        kinds.append(f"{count:,} {suffix or 'without a suffix'}{hint}")
    return ", ".join(kinds)
