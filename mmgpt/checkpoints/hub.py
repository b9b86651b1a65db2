"""Models by name: a local folder, or a repository of the Hugging Face hub in its cache.

`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean to huggingface_hub.
"""

import re
from pathlib import Path

from mmgpt.checkpoints.gguf import is_gguf, unpacked
from mmgpt.config import UserError

FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.md"]
PICKLES = ["*.bin"]


def is_name(source: str | Path) -> bool:
    """True for organisation/name, unless there is a folder of the first half: `runs/quikstart` is a slip, no name."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source))) and not Path(source).parent.exists()


def fetch(source: str | Path, revision: str | None = None, pickles: bool = False) -> Path:
    """The folder with a model's files, downloaded where it is not here yet.

    Args:
        source: a folder, a .gguf file, `organisation/name` on the hub, or `organisation/name/FILE.gguf`.
        revision: a branch, tag or commit of the hub; its newest if not given.
        pickles: download *.bin files too.
    Raises:
        UserError: if there is no such folder or repository, it may not be read, or it is neither cached nor in reach.
    """
    in_repository = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)/([\w./-]+\.gguf)", str(source))
    if in_repository and not Path(source).exists() and is_name(in_repository[1]):
        return unpacked(_download(in_repository[1], in_repository[2], revision))
    if is_gguf(source):
        return unpacked(source)
    if Path(source).is_dir():
        if revision:
            raise UserError(f"{source}: is a folder, which has no revision {revision!r}; leave the revision out")
        return Path(source)
    if not is_name(source):
        raise UserError(f"{source}: no such folder; give one that holds a config.json, or organisation/name of the hub")
    patterns = FILES + PICKLES if pickles else FILES
    return _download(str(source), patterns, revision)


def _download(repository: str, wanted: str | list[str], revision: str | None) -> Path:
    """A file of a repository, or the folder of those that match patterns."""
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download, snapshot_download

    where = f"{repository}{f'@{revision}' if revision else ''}"
    try:
        if isinstance(wanted, str):
            return Path(hf_hub_download(repository, wanted, revision=revision))
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except hub.GatedRepoError:
        raise UserError(f"{where}: is gated; accept its terms on the hub and set HF_TOKEN") from None
    except hub.RevisionNotFoundError:
        raise UserError(
            f"{where}: the hub has no such revision; give a branch, tag or commit of {repository}"
        ) from None
    except hub.RepositoryNotFoundError:
        raise UserError(
            f"{where}: no such folder, and no repository on the hub that may be read; set HF_TOKEN if it is private"
        ) from None
    except hub.RemoteEntryNotFoundError:
        raise UserError(f"{where}: holds no {wanted}; look at its list of files") from None
    except (hub.LocalEntryNotFoundError, hub.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{where}: no such folder, not in the cache, and the hub cannot be reached ({reason}); "
            "download it where there is a network, or give a folder"
        ) from None


def push(folder: str | Path, repository: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload a model's folder to the hub; the repository is made if there is none.

    Args:
        folder: what `mmgpt.load` opens, its README.md being the model card.
        repository: organisation/name.
        private: who may read a repository that is made.
        revision: the branch; main if not given.
    Returns:
        The address of the commit.
    Raises:
        UserError: if the folder holds no model, no token is set, or the hub refuses it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder}: holds no config.json; give the folder of a model, such as runs/NAME/final")
    api = HfApi(library_name="mmgpt")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, commit_message="Upload a model made with mmgpt"
        )
    except hub.HFValidationError as error:
        raise UserError(f"{repository}: no name for a repository ({error}); give organisation/name") from None
    except (hub.OfflineModeIsEnabled, hub.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{repository}: the hub does not take it ({reason}); is HF_TOKEN one that may write?") from None
    return str(commit.commit_url)
