"""Whose build it is: a manifest pinned by its digest, or signed with a key that the device knows.

    manifest.json --SHA-256--> the digest that a device may pin
    manifest.json --Ed25519--> manifest.sig, by whoever has the private key

The manifest names every other file with its SHA-256, so what vouches for it vouches for the whole build.
Both are checked on the manifest's bytes before anything in it is read. Keys are files as OpenSSL writes
them (PEM); signing and checking need the extra `sign` (cryptography).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.sealed import MANIFEST, SIGNATURE
from genrecal.core.errors import BuildError, ConfigError, GenrecalError
from genrecal.core.files import read_regular, sha256_bytes, write_json
from genrecal.core.manifest import MAX_BYTES
from genrecal.core.strict_json import parse_json

ALGORITHM = "ed25519"
# Before what is signed: a signature for another purpose with the same key is none here.
_PURPOSE = b"genrecal build manifest v1\0"
_MAX_SIGNATURE_BYTES = 4096
_MAX_KEY_BYTES = 16_384
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a manifest must show before it is read; both where both are given, nothing where none is."""

    manifest_sha256: str | None = None
    """The SHA-256 of manifest.json in hexadecimal."""
    keys: tuple[Path, ...] = ()
    """Public keys (PEM); a signature by any of them will do."""

    def __bool__(self) -> bool:
        return self.manifest_sha256 is not None or bool(self.keys)

    def check(self, manifest: bytes, folder: Path) -> None:
        """Check a build's manifest.

        Raises:
            BuildError: it has another digest, or no signature of a trusted key.
            ConfigError: the digest or a key is none.
        """
        if self.manifest_sha256 is not None:
            pinned = self.manifest_sha256.lower()
            if not _DIGEST.fullmatch(pinned):
                raise ConfigError("is no SHA-256 (64 hexadecimal digits)", where="manifest_sha256")
            found = sha256_bytes(manifest)
            if found != pinned:
                raise BuildError(
                    f"its {MANIFEST} has the SHA-256 {found}, not the pinned one",
                    where=folder,
                    fix="It is another build than the one that was pinned: copy that one, or pin this one",
                )
        if self.keys:
            _check_signature(manifest, folder, self.keys)


def trust(manifest_sha256: str | None = None, keys: Sequence[Path] | None = None) -> Trust:
    """What the options `--manifest-sha256` and `--trusted-key` ask for."""
    return Trust(manifest_sha256=manifest_sha256, keys=tuple(keys or ()))


def sign_manifest(folder: Path, key: Path) -> str:
    """Sign the manifest of `folder` and write manifest.sig beside it; gives the key's name.

    Args:
        folder: a build that was checked (build.open_build): a signature vouches for it.
        key: an Ed25519 private key, PEM without a password.

    Raises:
        ConfigError: no such key, or one of another kind.
    """
    ed25519, serialization = _cryptography()
    try:
        private = serialization.load_pem_private_key(_read_key(key), password=None)
    except (ValueError, TypeError, _unsupported()) as error:
        raise ConfigError(f"is no private key without a password ({_one_line(error)})", where=key) from None
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise ConfigError(_NOT_ED25519, where=key, fix=f"Make one: {_GENERATE}")
    name = _name(private.public_key())
    signature = private.sign(_PURPOSE + read_regular(folder / MANIFEST, max_bytes=MAX_BYTES))
    content = {"algorithm": ALGORITHM, "key": name, "signature": base64.b64encode(signature).decode()}
    write_json(folder / SIGNATURE, content)
    return name


_GENERATE = "openssl genpkey -algorithm ed25519 -out owner.pem"
_NOT_ED25519 = "is no Ed25519 key"


def _check_signature(manifest: bytes, folder: Path, keys: Sequence[Path]) -> None:
    from cryptography.exceptions import InvalidSignature  # the extra `sign`

    public = [_public_key(path) for path in keys]
    try:
        data = read_regular(folder / SIGNATURE, max_bytes=_MAX_SIGNATURE_BYTES)
    except FileNotFoundError:
        raise BuildError(
            f"is not signed: it has no {SIGNATURE}",
            where=folder,
            fix="Its owner signs it with: genrecal sign BUILD --key KEY",
        ) from None
    except GenrecalError as error:
        raise BuildError(f"{SIGNATURE} {error.what}", where=folder) from None
    signature = _read_signature(data, folder)
    for key in public:
        try:
            key.verify(signature, _PURPOSE + manifest)
            return
        except InvalidSignature:
            continue
    raise BuildError(
        f"is signed by none of the {len(keys)} trusted keys, or was altered since",
        where=folder,
        fix="Get it from its owner again, or trust the key that signed it",
    )


def _read_signature(data: bytes, folder: Path) -> bytes:
    damaged = BuildError(f"its {SIGNATURE} is damaged", where=folder, fix="Copy the whole folder again")
    try:
        content: Any = parse_json(data, where=folder / SIGNATURE, max_depth=2)
        if not isinstance(content, dict) or content.get("algorithm") != ALGORITHM:
            raise damaged
        signature = base64.b64decode(content["signature"], validate=True)
    except (GenrecalError, KeyError, TypeError, ValueError, binascii.Error):
        raise damaged from None
    if len(signature) != 64:
        raise damaged
    return signature


def _public_key(path: Path) -> Any:
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_public_key(_read_key(path))
    except (ValueError, TypeError, _unsupported()) as error:
        raise ConfigError(
            f"is no public key ({_one_line(error)})",
            where=path,
            fix="Make it from the private one: openssl pkey -in owner.pem -pubout -out owner.pub.pem",
        ) from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigError(_NOT_ED25519, where=path, fix=f"Make one: {_GENERATE}")
    return key


def _read_key(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=path) from None
    if len(data) > _MAX_KEY_BYTES:
        raise ConfigError("is too long for a key", where=path)
    return data


def _name(public: Any) -> str:
    """By which people tell keys: the start of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


def _cryptography() -> tuple[Any, Any]:
    # An optional library: whoever pins or trusts nothing does not need it.
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    return ed25519, serialization


def _unsupported() -> type[Exception]:
    from cryptography.exceptions import UnsupportedAlgorithm

    return UnsupportedAlgorithm


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
