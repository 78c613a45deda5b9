"""The secret that hashes of keys are made with: 32 random bytes in a file beside the ledger, for its owner only.

A key has 190 random bits: no hash of it can be guessed back, and a slow one would only tax every request. A keyed one
(BLAKE2b) costs the same as a plain one, and makes the ledger alone worth nothing to whoever comes by a copy of it: no
text can be tried against its hashes, and no key can be slipped in that a server would accept.

Each key is kept with the name of the pepper that its hash was made with. So a file that is missing, or belongs to
another ledger, is known for that, and not taken for keys that are wrong.
"""

import hashlib
import os
import secrets
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from oxlo_local.errors import LedgerUnavailable

LENGTH: Final = 32
FILE_NAME: Final = "keys.pepper"


@dataclass(frozen=True)
class Pepper:
    """One secret; two of the same bytes are equal."""

    secret: bytes = field(repr=False)

    @cached_property
    def name(self) -> str:
        """16 hexadecimal digits that tell it from others and nothing about it."""
        return hashlib.blake2b(b"name", key=self.secret, digest_size=8).hexdigest()

    def hash(self, key: str) -> bytes:
        """32 bytes to know a key by."""
        return self.over(hashlib.sha256(key.encode()).digest())

    def over(self, digest: bytes) -> bytes:
        """The same from the key's SHA-256, which is all that ledgers held before there was a pepper."""
        return hashlib.blake2b(digest, key=self.secret, digest_size=32).digest()


def path_beside(ledger: Path) -> Path:
    """Where the pepper of a ledger is."""
    return ledger.with_name(FILE_NAME)


def load(path: Path) -> Pepper | None:
    """The pepper in a file; None if there is none. Raises LedgerUnavailable: unreadable, or not whole."""
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        secret = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerUnavailable(f"{path} cannot be read: {error.strerror}; no key can be checked") from error
    if len(secret) != LENGTH:
        raise LedgerUnavailable(
            f"{path} is damaged: it has {len(secret)} bytes instead of {LENGTH}; put back the copy in your backup"
        )
    return Pepper(secret)


def make(path: Path) -> Pepper:
    """The pepper in a file, which is made if there is none. To be called inside a write of the ledger: so of several
    processes one makes it.

    It is on the disk when this returns, or the keys made with it could outlive it. Raises LedgerUnavailable.
    """
    found = load(path)
    if found is not None:
        return found
    made = Pepper(secrets.token_bytes(LENGTH))
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(made.secret)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise LedgerUnavailable(f"{path} cannot be made: {error.strerror}; no key can be made") from error
    return made


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk: that of a new file is not, however well its bytes are. Raises OSError."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
