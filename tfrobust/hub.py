"""Publishing a run on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from tfrobust.errors import UserError, one_line, optional, require, require_bool, user_path

CARD = "MODEL_CARD.md"
# The network and the numbers. Images, checkpoints and logs are not published.
FILES = (
    *("model.keras", "model.onnx", "model.tflite", "model_int8.tflite"),
    *("config.yaml", "eval.json", "exports.json", "flags.npz", "history.csv"),
)


def push_to_hub(
    run: Path | str, repo_id: str, *, private: bool = False, token: str | None = None
) -> str:
    """Publish a run's network, its numbers and its model card on the Hugging Face Hub.

    The repository gets MODEL_CARD.md as its README.md, model.keras, the exported networks,
    config.yaml, eval.json, exports.json, flags.npz and history.csv, as far as the run has them, in
    one commit. Images stay where they are.

    Args:
        run: The folder of a run with the stage report.
        repo_id: "USER/NAME". The repository is made if there is none.
        private: Whether a new repository is private.
        token: The token of the user, by default the one that `hf auth login` stored.

    Returns:
        The address of the commit.

    Raises:
        UserError: The folder has no model card, huggingface_hub is not installed, or the Hub
            refuses.
    """
    folder = user_path("run", run)
    require(isinstance(repo_id, str), "repo_id", "USER/NAME", repo_id)
    require_bool(private=private)
    require(
        token is None or isinstance(token, str), "token", "a text or None", type(token).__name__
    )
    card = folder / CARD
    require(card.is_file(), "run", f"a folder with {CARD} (run its stage report)", str(folder))
    package, errors = (optional(m, "hub") for m in ("huggingface_hub", "huggingface_hub.errors"))
    refusals = (errors.HfHubHTTPError, errors.HFValidationError)
    paths = [folder / name for name in FILES] + sorted((folder / "saved_model").rglob("*"))
    paths = [path for path in paths if path.is_file()]
    add = package.CommitOperationAdd
    operations = [add("README.md", card)]
    operations += [add(path.relative_to(folder).as_posix(), path) for path in paths]
    hub = package.HfApi(token=token)
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        commit = hub.create_commit(repo_id, operations, commit_message=f"Run {folder.name}")
    except (*refusals, ValueError, OSError) as error:
        raise UserError(f"{repo_id}: expected the Hub to take it: {one_line(error)}") from error
    return str(commit.commit_url)
