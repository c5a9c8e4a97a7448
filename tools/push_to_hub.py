"""Upload the model of an iteration to the Hugging Face hub, with its results on its card.

.venv/train/bin/python tools/push_to_hub.py runs/NAME --iteration 3 --repo OWNER/NAME [--private] [--dry-run]

The token comes from HF_TOKEN, or from the private file that `hf auth login` writes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sami_nemo.base_model.locate import HUB_NAME
from sami_nemo.config.files import load_config
from sami_nemo.errors import EXIT_USER_ERROR, CheckpointError, HubError, RunDirectoryError, UserError
from sami_nemo.model_card import CARD
from sami_nemo.report.card import card_with_numbers
from sami_nemo.report.run_data import read_results
from sami_nemo.run_dir import RunDir, read_json, sha256_file


def checkpoint_files(run: RunDir, iteration: int) -> dict[str, Path]:
    """The files of a finished export, by their path in it, after their hashes were compared with the manifest.

    Raises:
        RunDirectoryError: no such run, or an iteration that is not finished.
        CheckpointError: files other than those that were exported.
    """
    if not run.config.is_file():
        raise RunDirectoryError("run", run.root, "no run is there; give the directory of a run, like runs/NAME")
    manifest = run.manifest(f"train_{iteration}")
    if not manifest.is_file():
        raise RunDirectoryError(
            "--iteration", iteration, f"is not finished ({manifest} is missing); go on with the run"
        )
    folder = run.hf(iteration)
    try:
        outputs = {run.root / name: file["sha256"] for name, file in read_json(manifest)["outputs"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunDirectoryError("manifest", manifest, "cannot be read; go on with the run") from None
    recorded = {path: digest for path, digest in outputs.items() if path.is_relative_to(folder)}
    found = {path for path in folder.rglob("*") if path.is_file()}
    for path in sorted(found ^ recorded.keys()):
        problem = "is missing" if path in recorded else "was not there when the model was exported"
        raise CheckpointError("export", path, f"{problem}; put it right, or go on with the run to make the export anew")
    for path, digest in recorded.items():
        if sha256_file(path) != digest:
            raise CheckpointError("export", path, "has changed since; go on with the run to make the export anew")
    if not recorded:
        raise CheckpointError("export", folder, "holds no files; go on with the run to make the export anew")
    return {path.relative_to(folder).as_posix(): path for path in sorted(recorded)}


def read_card(run: RunDir, iteration: int) -> bytes:
    """The card with numbers, made from the run as it is: an older report has none.

    Raises:
        RunDirectoryError: the iteration is not evaluated.
    """
    results = read_results(run)
    found = [measured for measured in results.iterations if measured.number == iteration]
    if not found:
        raise RunDirectoryError("--iteration", iteration, "is not evaluated; go on with the run")
    return card_with_numbers(load_config(run.config), run, results, found[0]).encode()


def push(files: dict[str, Path | bytes], repo: str, private: bool, message: str) -> str:
    """Upload in one commit, so that nobody sees a half of it.

    Returns:
        The address of the repository.

    Raises:
        HubError: there is no token, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars

    token = get_token()
    if not token:
        raise HubError("HF_TOKEN", "(not set)", "set it to a token that may write, or run `hf auth login`")
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        api = HfApi(token=token)
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        # One that was there before stays as it was.
        public = private and not api.repo_info(repo).private
        if not public:
            operations = [CommitOperationAdd(name, content) for name, content in files.items()]
            api.create_commit(repo, operations, commit_message=message)
    except Exception as error:
        # Whatever a network, a proxy or the hub may do. A token that is no header is quoted by the HTTP client.
        reason = f"{type(error).__name__}: {error}".replace(token, "(token)")
        raise HubError("--repo", repo, f"the upload failed ({reason}); see that the token may write there") from None
    if public:
        raise HubError("--private", repo, "exists and is public; make it private on the hub, or give another name")
    return address


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="directory of a run, e.g. runs/NAME")
    parser.add_argument("--iteration", type=int, required=True, help="whose model")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="on the hub; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="refuse a repository that others can see")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and upload nothing")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    run, iteration = RunDir(arguments.run), arguments.iteration
    try:
        if not HUB_NAME.fullmatch(arguments.repo):
            raise HubError("--repo", arguments.repo, "no name of a repository; give OWNER/NAME")
        files: dict[str, Path | bytes] = {**checkpoint_files(run, iteration), CARD: read_card(run, iteration)}
        for name, content in sorted(files.items()):
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            print(f"{size:>15,} bytes  {name}")
        if arguments.dry_run:
            print(f"would be uploaded to {arguments.repo}; nothing was")
            return 0
        message = f"Iteration {iteration} of {run.root.resolve().name}"
        print(push(files, arguments.repo, arguments.private, message))
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
