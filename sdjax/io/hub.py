"""Brings data sets from the Hugging Face hub, checks its files, and pushes models to it.

The hub's client checks the size of a file during the download only, and never its contents. Its
cache names each file by the hash that the hub gives: SHA-256 for a large file, git's hash for a
small one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sdjax.errors import FULL, UserError
from sdjax.io import network, progress

PART = 1 << 24  # bytes read at a time
# What the errors of the hub's client mean, the narrower ones first.
_REASONS = {
    "GatedRepoError": "access is restricted: accept its terms on its page, and set HF_TOKEN",
    "RepositoryNotFoundError": "no such repository, or a private one, which needs HF_TOKEN",
    "RevisionNotFoundError": "no such revision",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set, and the cache has no copy",
}


def data_set(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Returns the folder of the cache with the files of a data set that match the patterns.

    Without network, or with HF_HUB_OFFLINE=1, it is that of an earlier download. Raises UserError,
    whose text is the reason alone, if there is no such folder.
    """
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            name, repo_type="dataset", revision=revision, allow_patterns=list(patterns)
        )
    # The client and its HTTP library raise errors of many classes that have no common one.
    except Exception as error:
        raise UserError(reason(error)) from None
    return Path(folder)


def listed(name: str, revision: str | None) -> list[str]:
    """Returns the names of a data set's files; none if the hub cannot be asked."""
    import huggingface_hub

    try:
        found = huggingface_hub.HfApi().dataset_info(name, revision=revision).siblings or []
    except Exception:
        return []
    return [file.rfilename for file in found]


def reason(error: BaseException) -> str:
    """Returns one line that says why the hub's client could not bring what was asked for."""
    if (full := _no_room(error)) is not None:
        return full
    of_classes = [cls.__name__ for cls in type(error).__mro__]
    # The client hides the error of the connection behind the one of its cache.
    hidden = error.__cause__ if "LocalEntryNotFoundError" in of_classes else None
    if hidden is not None and "IncompleteSnapshotError" not in of_classes:
        found = reason(hidden)
        return found if found in _REASONS.values() else f"{found}; the cache has no copy"
    for cls, meaning in _REASONS.items():
        if cls in of_classes:
            return meaning
    return network.why(error)


def _no_room(error: BaseException) -> str | None:
    """Returns why the client's cache cannot be written; None if the error has another cause."""
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "errno", None) not in FULL:
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OSError):
        return None
    from huggingface_hub import constants

    return f"its cache {constants.HF_HUB_CACHE} cannot be written ({cause.strerror}): set HF_HOME"


def check_owner(name: str) -> None:
    """Raises UserError, whose text is the reason alone, if the token cannot push to OWNER/NAME.

    Without a token, or if the hub cannot be reached now, it does nothing.
    """
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        return
    try:
        user = huggingface_hub.HfApi().whoami()
    except Exception as error:
        if _status(error) in (401, 403):
            raise UserError(
                "the hub refuses the token: set another HF_TOKEN, or run `hf auth login`"
            ) from None
        return
    owners = [user.get("name"), *(of.get("name") for of in user.get("orgs", ()))]
    if name.partition("/")[0] not in owners:
        listed = ", ".join(str(owner) for owner in owners)
        raise UserError(f"the token is of {listed}: name one of these before the /")


def push(folder: Path, name: str, *, private: bool, message: str) -> str | None:
    """Returns the address of the repository that a folder was pushed to; None without a token.

    A repository that does not exist is created. Raises UserError, whose text is the reason alone.
    """
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        return None
    api = huggingface_hub.HfApi()
    try:
        made = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # as above, errors of many classes
        if _status(error) in (401, 403):
            raise UserError(
                f"the hub refuses the token ({_status(error)}): it needs the right to write there"
            ) from None
        raise UserError(reason(error)) from None
    return str(made)


def _status(error: Exception) -> int | None:
    """Returns the HTTP status of an error of the hub's client; None without an answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def check(files: Sequence[Path]) -> None:
    """Raises UserError for the first file of the hub's cache whose contents do not fit its hash.

    Files outside the cache, or without a hash, are not checked. A file that was whole is not read
    again until it changes.
    """
    with ThreadPoolExecutor(4) as pool:
        whole_files = zip(files, pool.map(_is_whole, files), strict=True)
        for file, whole in progress.told(whole_files, "checking", "files", len(files)):
            if not whole:
                raise UserError(
                    f"{file}: damaged: its contents are not those that the hub has; remove "
                    f"{file.resolve()} and start again, which downloads it"
                )


def _is_whole(file: Path) -> bool:
    """Returns whether a file's contents fit its hash; True for a file without one."""
    blob = file.resolve()
    digest = _digest_by_name(blob)
    if digest is None or blob.parent.name != "blobs":
        return True
    stat = blob.stat()
    version = f"{stat.st_size} {stat.st_mtime_ns}"
    checked = _checked(blob)
    if checked.is_file() and checked.read_text() == version:
        return True
    if digest.name == "sha1":  # git hashes a header too
        digest.update(b"blob %d\0" % stat.st_size)
    with blob.open("rb") as stream:
        while part := stream.read(PART):
            digest.update(part)
    if digest.hexdigest() != blob.name:
        return False
    try:
        checked.parent.mkdir(parents=True, exist_ok=True)
        checked.write_text(version)
    except OSError:
        pass  # The next run reads the file again.
    return True


def _digest_by_name(blob: Path) -> hashlib._Hash | None:
    """Returns an empty digest of the kind that a file is named by; None: it has another name."""
    if set(blob.name) - set("0123456789abcdef"):
        return None
    kinds = {40: lambda: hashlib.sha1(usedforsecurity=False), 64: hashlib.sha256}
    make = kinds.get(len(blob.name))
    return make() if make else None


def _checked(blob: Path) -> Path:
    """Returns the file with the size and time of change that a blob had when it was whole."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    place = hashlib.sha256(str(blob).encode()).hexdigest()[:16]
    return cache / "sdjax" / "whole" / f"{place}-{blob.name[:16]}"
