"""The host's own verbs for the store: a copy of it, and putting one back."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from shim.config import Config
from shim.errors import ConflictError
from shim.host import alone, operator_of, proxy_user
from shim.metadata import archive


def backup(config: Config, path: Path, force: bool) -> archive.Copied:
    """Copies the store to `path`, whether an agent runs or not. Raises StoreError, ConflictError."""
    return archive.backup(config.store, path, overwrite=force)


def restore(config: Config, path: Path) -> archive.Restored:
    """Puts a copy in the store's place; no agent may run. Raises StoreError, ConflictError."""
    _, gid = proxy_user(config)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(alone(config))
        except ConflictError as error:
            raise ConflictError(str(error), "`systemctl stop metashim`, restore, then start it again") from None
        return archive.restore(path, config.store, gid, who=operator_of(os.getuid()))
