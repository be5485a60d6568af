"""The folder of the Hugging Face Hub of a checkpoint, and its upload."""

from pathlib import Path

from convert.export.card import run_card
from convert.export.verified import VerifiedPair
from lma_jax.checkpoint.format import Checkpoint
from lma_jax.errors import UserError, require_packages
from lma_jax.hub_folder import CURVES, FILES, REPOSITORY, asking_the_hub, describe, name_of, write_folder
from lma_jax.weight_files import to_array


def write_hub_folder(
    checkpoint: Checkpoint, pair: VerifiedPair, folder: Path, *, repo: str | None, license_id: str, force: bool
) -> str:
    """Writes the network of a checkpoint, with the model card of its run.

    Args:
        checkpoint: what `load_checkpoint` returned.
        pair: what `verified_pair` returned for it.
        folder: a new or an empty folder, or one that was written before.
        repo: repository that the card names, "org/name"; by default it names the folder.
        license_id: licence of the weights.
        force: replace files that this program did not write.

    Returns:
        One line about the result.

    Raises:
        UserError: the folder holds other files or cannot be written.
    """
    metadata, network = checkpoint.metadata, pair.torch_model
    described = describe(
        network,
        name=metadata.model,
        options=metadata.model_options,
        class_names=metadata.class_names,
        preprocessing=metadata.preprocessing,
    )
    drawn = Path(pair.metadata["checkpoint"], CURVES)
    curves = drawn.read_bytes() if drawn.is_file() else None
    card = run_card(
        checkpoint,
        described,
        source=repo or name_of(folder),
        verified=pair.metadata["verified"],
        has_curves=curves is not None,
        license_id=license_id,
    )
    arrays = {key: to_array(tensor) for key, tensor in network.state_dict().items()}
    public = {key: value for key, value in pair.metadata.items() if key != "checkpoint"}  # a path of this machine
    write_folder(folder, described, arrays, metadata=public, card=card, curves=curves, force=force)
    return f"{metadata.model} written to {folder}: {', '.join(name for name in FILES if (folder / name).exists())}"


def require_repository(repo: str) -> None:
    """Checks that a repository can be uploaded to, before anything is computed; the network is not asked.

    Raises:
        UserError: its name is impossible, or huggingface_hub is missing.
    """
    match = REPOSITORY.fullmatch(repo)
    if match is None or match["revision"]:
        raise UserError(f"--repo={repo} must be the name of an organisation or user and of a model, such as org/name")
    require_packages("--repo", "huggingface_hub")


def upload(folder: Path, repo: str) -> str:
    """Uploads a folder to a repository of the Hugging Face Hub, which is created, and public, if there is none.

    Returns:
        One line about the result.

    Raises:
        UserError: it cannot be uploaded: there is no network, or no token that may write.
    """
    from huggingface_hub import HfApi

    with asking_the_hub(f"{folder} is written, but cannot be uploaded to {repo}"):
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=list(FILES))
    return f"{folder} uploaded to {repo}"
