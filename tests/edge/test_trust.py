"""Builds that are pinned or signed: only the owner's are opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from typer.testing import CliRunner

import cli
from edge.build import open_build
from edge.install import sign
from edge.model import EdgeModel
from genrecal.core.errors import BuildError, ConfigError
from genrecal.core.files import sha256_file


@pytest.fixture
def copy(build_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(build_folder, tmp_path / "copy")


def write_key(folder: Path, name: str, private: Any = None) -> tuple[Path, Path]:
    """A private and a public key as OpenSSL writes them."""
    private = private or ed25519.Ed25519PrivateKey.generate()
    paths = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    plain = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    paths[0].write_bytes(private.private_bytes(pem, pkcs8, plain))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    paths[1].write_bytes(private.public_key().public_bytes(pem, spki))
    return paths


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(BuildError) as caught:
        open_build(folder, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_pinned_manifest(copy: Path) -> None:
    digest = sha256_file(copy / "manifest.json")
    assert open_build(copy, manifest_sha256=digest).family == "qwen2_vl"
    assert EdgeModel.open(copy, threads=1, manifest_sha256=digest.upper()).build.folder == copy
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest + "\n")  # another file, if of the same meaning
    assert "not the pinned one" in refusal(copy, manifest_sha256=digest)
    with pytest.raises(ConfigError, match="is no SHA-256"):
        open_build(copy, manifest_sha256="abc")


def test_a_signed_build(copy: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path, "owner")
    _, other = write_key(tmp_path, "other")
    assert "is not signed: it has no manifest.sig" in refusal(copy, trusted_keys=[public])
    sign(copy, private)
    assert open_build(copy, trusted_keys=[public]).family == "qwen2_vl"
    assert open_build(copy, trusted_keys=[other, public]).family == "qwen2_vl"
    assert open_build(copy).family == "qwen2_vl"  # whoever trusts nobody in particular opens it as before
    assert "is signed by none of the 1 trusted keys" in refusal(copy, trusted_keys=[other])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1]",
        b"\xff",
        b'{"algorithm": "none", "key": "", "signature": ""}',
        b'{"algorithm": "ed25519", "key": "", "signature": "AAAA"}',
        b'{"algorithm": "ed25519", "key": "", "signature": 5}',
        b'{"algorithm": "ed25519", "signature": "!"}',
        b'{"algorithm": "ed25519", "signature": "' + b"A" * 86 + b'=="}',
        b" " * 5000,
    ],
)
def test_signatures_that_are_none(copy: Path, tmp_path: Path, content: bytes) -> None:
    _, public = write_key(tmp_path, "owner")
    (copy / "manifest.sig").write_bytes(content)
    line = refusal(copy, trusted_keys=[public])
    assert "manifest.sig" in line or "is signed by none" in line


def test_nothing_of_an_unsigned_manifest_is_parsed(copy: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path, "owner")
    sign(copy, private)
    (copy / "manifest.json").write_bytes(b"[" * 1000)
    assert "is signed by none" in refusal(copy, trusted_keys=[public])


def test_a_changed_file_of_a_signed_build(copy: Path, tmp_path: Path) -> None:
    """The signature is whole, the manifest too; the file is not the one that it names."""
    private, public = write_key(tmp_path, "owner")
    sign(copy, private)
    config = copy / "config.json"
    config.write_text(config.read_text().replace("qwen2_vl", "qwen2_vm"))
    assert "'config.json' differs from its SHA-256" in refusal(copy, trusted_keys=[public])
    with pytest.raises(ConfigError, match="files that are not compared"):
        open_build(copy, verify=False, trusted_keys=[public])


def test_a_signature_of_another_build(copy: Path, build_folder: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path, "owner")
    sign(copy, private)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"provenance": {"student": "other"}}))
    assert "is signed by none" in refusal(copy, trusted_keys=[public])


def test_a_damaged_build_is_not_signed(copy: Path, tmp_path: Path) -> None:
    private, _ = write_key(tmp_path, "owner")
    (copy / "chat_template.jinja").write_text("other")
    with pytest.raises(BuildError, match=r"'chat_template\.jinja' differs"):
        sign(copy, private)
    assert not (copy / "manifest.sig").exists()


def test_keys_of_other_kinds(copy: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path, "curve", ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "none.pem").write_text("no key")
    for key, said in (
        (private, "no Ed25519 key"),
        (tmp_path / "none.pem", "no private key"),
        (public, "no priv"),
    ):
        with pytest.raises(ConfigError, match=said):
            sign(copy, key)
    with pytest.raises(ConfigError, match=r"is no Ed25519 key.*openssl genpkey"):
        open_build(copy, trusted_keys=[public])
    with pytest.raises(ConfigError, match=r"cannot be read"):
        open_build(copy, trusted_keys=[tmp_path / "nowhere"])
    owner, _ = write_key(tmp_path, "owner")
    with pytest.raises(ConfigError, match=r"is no public key"):
        open_build(copy, trusted_keys=[owner])


def test_the_commands(copy: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path, "owner")
    _, other = write_key(tmp_path, "other")
    runner = CliRunner()

    def run(*words: object) -> tuple[int, str]:
        done = runner.invoke(cli.app, [str(word) for word in words], env={"COLUMNS": "400"})
        return done.exit_code, done.output

    code, output = run("sign", copy, "--key", private)
    assert code == 0 and f"manifest {sha256_file(copy / 'manifest.json')}" in output
    slot = tmp_path / "slot"
    code, output = run("install", copy, slot, "--trusted-key", other)
    assert code == 5 and "is signed by none of the 1 trusted keys" in output and str(copy) in output
    code, output = run("install", copy, slot, "--trusted-key", public)
    assert code == 0 and "nothing to roll back to" in output
    assert open_build(slot / "current", trusted_keys=[public]).family == "qwen2_vl"
    code, output = run("rollback", slot)
    assert code == 5 and "keeps no earlier build" in output
    image = tmp_path / "a.png"
    from PIL import Image

    Image.new("RGB", (40, 40), "red").save(image)
    asked = ["ask", slot / "current", image, "what?", "--max-new-tokens", 2, "--threads", 1]
    code, output = run(*asked, "--trusted-key", other)
    assert code == 5 and "is signed by none" in output
    assert run(*asked, "--trusted-key", public)[0] == 0
    assert run(*asked, "--manifest-sha256", "0" * 64)[0] == 5
