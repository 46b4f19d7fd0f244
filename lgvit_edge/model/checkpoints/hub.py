"""Fetches checkpoints from the Hugging Face Hub, which ``hf:owner/name`` or one @revision names.

Only JSON and safetensors are fetched, never pickles. Cache, mirror, offline mode and tokens are
those of ``huggingface_hub``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgvit_edge._support.optional import require
from lgvit_edge.architecture.config import HUB
from lgvit_edge.errors import CheckpointError, UsageError, in_one_line
from lgvit_edge.model.checkpoints.weights import read_json, shard_names

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"{HUB}({_PART}/{_PART})(?:@([A-Za-z0-9_][A-Za-z0-9._/+-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


class _NotHere(Exception):
    """A file is not in the cache, and the hub cannot be asked; says why."""


def on_hub(name: str | Path) -> bool:
    """Says whether a name is one of the hub's, and not a path."""
    return str(name).startswith(HUB)


def fetch(name: str | Path, note: Callable[[str], None]) -> tuple[Path, str]:
    """Fetches a model; returns its folder in the cache, and its name with the commit.

    What is in the cache already is not fetched again. ``note`` is told the commit before the
    weights are fetched; in a terminal, bars show how far each file is.

    Raises:
        UsageError: the name is malformed.
        CheckpointError: there is no such model, no safetensors, or it cannot be fetched.
        MissingDependency: ``huggingface_hub`` is not installed.
    """
    text = name.as_posix() if isinstance(name, Path) else name
    found = _NAME.fullmatch(text)
    if found is None or ".." in text or "--" in found[1]:
        raise UsageError(
            f"expected hf:owner/name or hf:owner/name@revision, such as "
            f"hf:facebook/deit-tiny-patch16-224, found {text[:200]!r}"
        )
    hub = require("huggingface_hub", extra="hub")
    for part in ("constants", "errors", "file_download"):  # loaded lazily
        require(f"huggingface_hub.{part}", extra="hub")
    try:
        folder = _Repository(hub, text, found[1], found[2], note).fetch()
    except _NotHere as error:
        raise CheckpointError(str(error)) from None
    return folder, f"{HUB}{found[1]}@{folder.name}"


@dataclass
class _Repository:
    """A model on the hub."""

    hub: Any  # the module huggingface_hub
    text: str  # as it was typed
    name: str  # owner/name
    revision: str | None  # a branch, a tag or a commit; None: the newest commit
    note: Callable[[str], None]

    def fetch(self) -> Path:
        """Fetches what a model is read from; returns the folder that is named after the commit."""
        config = self._file("config.json")
        if config is None:
            raise CheckpointError(
                f"{self.text}: expected config.json, found {self._listed()}; give the model of "
                "timm or Hugging Face that it is made of"
            )
        folder = config.parent
        if not _COMMIT.fullmatch(folder.name):
            raise CheckpointError(
                f"{folder}: expected a folder of the cache that is named after a commit; empty the "
                "cache of this model, or give the folder itself"
            )
        self.revision = folder.name  # whatever moves meanwhile, all files are of one commit
        self.note(f"{HUB}{self.name}@{self.revision}: files are taken from the hub to {folder}")
        self._weights(folder)
        # timm's config.json tells the preprocessing itself.
        if "architecture" not in read_json(config):
            try:
                self._processor()
            except _NotHere as error:
                raise _NotHere(
                    f"{error}; or give {folder} itself, for which the usual preprocessing is "
                    "assumed"
                ) from None
        return folder

    def _processor(self) -> None:
        found = None
        for name in _PROCESSORS:  # the second is newer, and either may be alone
            try:
                found = self._file(name) or found
            except _NotHere:
                if found is None:
                    raise

    def _weights(self, folder: Path) -> None:
        away = None
        for name in _WEIGHTS:
            try:
                found = self._file(name)
            except _NotHere as error:
                away = away or error
                continue
            if found is not None:
                for shard in shard_names(folder, name) if name.endswith(".json") else ():
                    self._shard(folder, shard)
                return
        if away is not None:
            raise away
        raise CheckpointError(
            f"{self.text} holds no safetensors: expected {' or '.join(_WEIGHTS)}, found "
            f"{self._listed()}; files of other kinds are not downloaded, because a pickle can run "
            "code. If you trust it, convert it where transformers is installed, in Python: "
            f"AutoModelForImageClassification.from_pretrained({self.name!r})"
            ".save_pretrained('FOLDER'), and give FOLDER"
        )

    def _shard(self, folder: Path, name: str) -> None:
        if not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder / _WEIGHTS[1]}: expected names of safetensors, found {name[:99]!r}; "
                "tell the owner of the model"
            )
        if self._file(name) is None:
            raise CheckpointError(
                f"{self.text}: expected {name}, which its index names, found {self._listed()}; "
                "tell the owner of the model"
            )

    def _file(self, name: str) -> Path | None:
        """Fetches a file unless it is in the cache; None where the repository has no such file."""
        errors = self.hub.errors
        try:
            return Path(self.hub.hf_hub_download(self.name, name, revision=self.revision))
        except errors.LocalEntryNotFoundError as error:
            known = self.hub.try_to_load_from_cache(self.name, name, revision=self.revision)
            if known is self.hub.file_download._CACHED_NO_EXIST:
                return None
            raise _NotHere(self._away(name, error)) from None
        except errors.RemoteEntryNotFoundError:
            return None
        except errors.GatedRepoError:
            fault = (
                f"is open only to those who accepted its terms, at https://huggingface.co/"
                f"{self.name}; accept them, then run: hf auth login"
            )
        except errors.RepositoryNotFoundError:
            fault = (
                "is no model on the hub, or one that you may not read; correct the name, or for "
                "a private model run: hf auth login"
            )
        except errors.RevisionNotFoundError:
            fault = f"has no revision {self.revision}; leave it out to take the newest"
        except Exception as error:  # of HTTP, of the disk, of the library's own transport
            fault = (
                f"could not be downloaded ({in_one_line(error)}); run the same command again, "
                "which continues"
            )
        raise CheckpointError(f"{self.text} {fault}")

    def _away(self, name: str, error: Exception) -> str:
        constants = self.hub.constants
        if constants.HF_HUB_OFFLINE:
            why, cure = "HF_HUB_OFFLINE forbids to ask the hub", "run once without HF_HUB_OFFLINE"
        else:
            why = f"the hub cannot be reached ({in_one_line(error)})"
            cure = "run again with a connection"
        return (
            f"{self.text}: {name} is not in the cache ({constants.HF_HUB_CACHE}), and {why}; "
            f"{cure}, or give the folder that `hf download {self.name} --local-dir FOLDER` makes "
            "elsewhere"
        )

    def _listed(self) -> str:
        """Returns the files there, as far as the hub tells."""
        try:
            names = self.hub.HfApi().list_repo_files(self.name, revision=self.revision)
        except Exception:  # then another sentence of the same message tells what is wrong
            return "nothing that the hub lists"
        shown = [name for name in sorted(names) if not name.startswith(".")]
        return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") or "nothing"
