"""The exports of a run as a repository on the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils._validators import validate_repo_id

from distillery.core.errors import UserError
from distillery.models.text.export import CARD
from distillery.results.exports import Export
from distillery.results.layout import EXPORTS

AT_THE_TOP = "safetensors"  # where `from_pretrained` and timm look for them


def refuse_name(repo: str) -> None:
    """Refuse what is no name of a repository."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"push_to_hub={repo}: {error}") from None


def push(folder: Path, exports: Sequence[Export], repo: str, card: str) -> str:
    """Upload what is in the folder `export` in one commit; returns its address.

    The files of `safetensors` are at the top of the repository and every other format in a folder of its own, as here.
    A repository that is there gets another commit.

    Args:
        card: README.md of the repository.

    Raises:
        UserError: the hub refuses it or cannot be reached.
    """
    files = [path for each in exports for path in sorted((folder / each.format).rglob("*")) if path.is_file()]
    operations = [
        CommitOperationAdd(path.relative_to(folder).as_posix().removeprefix(f"{AT_THE_TOP}/"), path) for path in files
    ]
    operations += [CommitOperationAdd(EXPORTS, folder / EXPORTS), CommitOperationAdd(CARD, card.encode())]
    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message="Upload the student with distill-export")
    except LocalTokenNotFoundError:
        raise UserError(f"push_to_hub={repo}: log in to the hub first, with: hf auth login") from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"push_to_hub={repo}: {str(error).strip()}\nThe exports are in {folder}: the same command with "
            "push_to_hub tries again."
        ) from error
    return commit.commit_url
