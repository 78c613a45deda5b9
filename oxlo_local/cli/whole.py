"""Writing a file whole or not at all, whatever interrupts it."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` where `path` says, in the place of what is there. Raises OSError; leaves no draft behind."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
