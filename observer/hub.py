"""A push to the Hugging Face Hub: shown before it goes, private unless asked, and resumed by the same command.

huggingface_hub sends the files and knows the token (HF_TOKEN, or `hf auth login`), which no message of ours repeats.
What goes to a repository is said by who pushes: `export` a run, `data` rows.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from observer.errors import ObserverError, raise_all
from observer.files import read_text

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
TEXTS = frozenset({".md", ".json", ".jinja", ""})


@dataclass(frozen=True)
class Push:
    """`files` are those on disk by their path in the repository, `texts` small ones that are made for it."""

    repo: str
    kind: Literal["model", "dataset"]
    is_public: bool
    files: Mapping[str, Path]
    texts: Mapping[str, str]

    @property
    def card(self) -> str:
        return self.texts.get(CARD) or read_text(self.files[CARD])

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by the path in the repository."""
        on_disk = {name: path.stat().st_size for name, path in self.files.items()}
        return on_disk | {name: len(text.encode()) for name, text in self.texts.items()}

    @property
    def size_bytes(self) -> int:
        return sum(self.sizes.values())


def add_push_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--repo", required=True, metavar="USER/NAME", help="where it goes; made when missing")
    add("--public", action="store_true", help="for all to read; without it the repository is private")
    add("--yes", action="store_true", help="do not ask")


def run_push(push: Push, is_agreed: bool) -> str:
    """Show the plan, ask unless it `is_agreed`, send everything in one commit, and return the repository's address.

    A file that has arrived before is not sent again. Raises ObserverError for a repository that would have no card,
    that is public and not meant to be, and for what goes wrong on the way; nothing is visible there before the end.
    """
    _check(push)
    print(render_plan(push))
    with _errors_explained(push):
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.utils import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()
        api = HfApi()
        found = _visibility(api, push)
        print(f"{push.repo}: {_what_becomes(push, found)}", flush=True)
        if found == "public" and not push.is_public:
            raise ObserverError(f"{push.repo}: it is public; add --public if all may read this, or name another --repo")
        if not is_agreed and not _agrees(push):
            raise ObserverError("nothing was sent")
        if found is None:
            api.create_repo(push.repo, repo_type=push.kind, private=not push.is_public, exist_ok=True)
        sources: dict[str, Any] = {name: str(path) for name, path in push.files.items()}
        sources |= {name: text.encode() for name, text in push.texts.items()}
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=source) for name, source in sources.items()]
        commit = api.create_commit(
            push.repo, operations, commit_message="Push from qwen3-observer", repo_type=push.kind
        )
        return str(commit.repo_url)


def render_plan(push: Push) -> str:
    """A line for each file, the largest first; then bytes and licence, and what tells of this machine."""
    largest_first = sorted(push.sizes.items(), key=lambda pair: (-pair[1], pair[0]))
    lines = [f"{size:>15,} bytes  {name}" for name, size in largest_first]
    lines.append(f"{push.size_bytes:>15,} bytes  in {len(lines)} files; licence: {_licence(push.card)}")
    home = str(Path.home())
    texts = {name: read_text(path) for name, path in push.files.items() if Path(name).suffix in TEXTS} | {**push.texts}
    if named := [name for name, text in texts.items() if len(home) > 1 and home in text]:
        lines.append(f"these name folders of yours ({home}): {', '.join(named)}")
    return "\n".join(lines)


def _check(push: Push) -> None:
    faults = []
    if len(parts := push.repo.split("/")) != 2 or not all(parts):
        faults.append(f"--repo {push.repo}: USER/NAME is expected")
    if CARD not in {*push.files, *push.texts} or not push.card.strip():
        faults.append(f"{push.repo}: it would have no {CARD}, the card that says what it is; write one first")
    raise_all(faults)


def _licence(card: str) -> str:
    import yaml

    _, _, behind = card.partition("---\n")
    head, end, _ = behind.partition("\n---")
    try:
        found = yaml.safe_load(head) if card.startswith("---\n") and end else None
    except yaml.YAMLError:
        found = None
    return str(found.get("license") or "none") if isinstance(found, dict) else "none"


def _visibility(api: HfApi, push: Push) -> Literal["public", "private"] | None:
    """None when there is no such repository, or none that we may see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return "private" if api.repo_info(push.repo, repo_type=push.kind).private else "public"
    except RepositoryNotFoundError:
        return None


def _what_becomes(push: Push, found: str | None) -> str:
    wanted = "public" if push.is_public else "private"
    if found is None:
        return f"a new {push.kind} repository, {wanted}"
    stays = "; it stays so, its settings there change that" if found != wanted else ""
    return f"a {push.kind} repository that is there, {found}{stays}"


def _agrees(push: Push) -> bool:
    if not sys.stdin.isatty():
        raise ObserverError(f"{push.repo}: nobody to ask here; add --yes to send {push.size_bytes / 1e6:,.1f} MB")
    return input(f"send {push.size_bytes / 1e6:,.1f} MB to {push.repo}? [y/N] ").strip().lower() in ("y", "yes")


@contextlib.contextmanager
def _errors_explained(push: Push) -> Iterator[None]:
    """One line for what the Hub or the way to it does wrong. Not chained: a server may repeat the token it was sent."""
    import httpx
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except (HfHubHTTPError, httpx.HTTPError, HFValidationError, RuntimeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        what = str(cause) or type(cause).__name__
        if token := get_token():
            what = what.replace(token, "…")
        remedy = "run the same again: what has arrived is not sent twice"
        if status in (401, 403):
            remedy = "set HF_TOKEN to a token that may write there, or run: hf auth login"
        elif isinstance(cause, HFValidationError | ValueError):
            remedy = "correct that, and run the same again"
        raise ObserverError(f"{push.repo}: {' '.join(what.split())[:300]}; {remedy}") from None
