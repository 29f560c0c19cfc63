"""A student or a build on a model hub, only when asked for, and private unless asked otherwise."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from edge.build import KIND, open_build
from genrecal.core.errors import ModelError
from genrecal.core.files import read_json
from genrecal.core.manifest import NAME as MANIFEST


def publish(folder: Path, repository: str, *, private: bool = True) -> str:
    """Upload a folder as it is, as one commit; returns its address.

    Whose account and which hub it is follows huggingface_hub's own settings (HF_TOKEN, HF_ENDPOINT). A
    repository that is there stays as public or private as it is.

    Args:
        folder: a student, or a build, which is verified first.
        repository: OWNER/NAME.
        private: whether a new repository is.

    Raises:
        BuildError: the build is damaged.
        ModelError: the folder holds neither, or the hub refuses.
    """
    if (folder / MANIFEST).is_file() and read_json(folder / MANIFEST).get("kind") == KIND:
        open_build(folder)
    elif not (folder / "config.json").is_file():
        raise ModelError("is neither a student nor a build", where=folder)
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=f"{folder.resolve().name}, by genrecal"
        )
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        line = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the hub did not take it ({line})",
            where=repository,
            fix="Is HF_TOKEN set, with the right to write there?",
        ) from error
    return commit.commit_url
