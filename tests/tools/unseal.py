#!/usr/bin/env python3
"""Opens objects of an encrypted lastgood repository, from docs/format.md alone: nothing here is shared with the program.

  unseal.py root KEY                       the key's epochs, one line each: epoch and R in hex
  unseal.py trailer KEY OBJECT-KEY FILE    the opened body of an object's trailer
  unseal.py content KEY OBJECT-KEY FILE    the opened content: zstd frames, for `| zstd -dc`
  unseal.py keyring PASSPHRASE-FILE FILE   R of a keyring, in hex

KEY is a reader key as `lastgood key export` writes it. Needs the Python package `cryptography` and the program zstd.
"""

import hashlib
import json
import struct
import subprocess
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def hkdf(secret, salt, info):
    return HKDF(algorithm=SHA256(), length=32, salt=salt or None, info=info).derive(secret)


def raw(public):
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)


class Epoch:
    """Everything that follows from R."""

    def __init__(self, root):
        self.root = root
        self.meta = hkdf(root, b"", b"lastgood meta")
        self.secret = X25519PrivateKey.from_private_bytes(hkdf(root, b"", b"lastgood data"))
        self.public = raw(self.secret.public_key())
        self.verify = raw(Ed25519PrivateKey.from_private_bytes(hkdf(root, b"", b"lastgood sign")).public_key())

    def trailer_key(self, key, seed):
        return AESGCM(hkdf(self.meta, seed, b"lastgood trailer\0" + key.encode()))

    def content_key(self, key, seed):
        info = b"lastgood content\0" + key.encode()
        if not is_data(key):
            return AESGCM(hkdf(self.meta, seed, info))
        shared = self.secret.exchange(X25519PublicKey.from_public_bytes(seed))
        return AESGCM(hkdf(shared + self.meta, seed + self.public, info))


def is_data(key):
    parts = key.split("/")
    if parts[0] != "clusters" or len(parts) < 5:
        return False
    return parts[2] == "packs" and parts[4].startswith("d") or parts[2] == "wal" and parts[4] in ("segments", "partial")


def read_key(path):
    """Epochs of an exported reader key."""
    data = b""
    for line in open(path, encoding="utf-8"):
        if not line.startswith("["):
            continue
        digits = line.split("]")[1].split("=")[0].replace(" ", "")
        bits = "".join(f"{DIGITS.index(d):05b}" for d in digits)
        data += bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) // 8 * 8, 8))
    assert data[0] == 1 and data[1] == 1, "not a reader key of version 1"
    assert hashlib.sha256(data[:-4]).digest()[:4] == data[-4:], "checksum"
    rest, epochs = data[34:-4], {}
    while rest:
        epochs[struct.unpack("<I", rest[:4])[0]] = Epoch(rest[4:36])
        rest = rest[36:]
    first = hashlib.sha256(epochs[min(epochs)].verify).digest()[:16]
    assert min(epochs) != 1 or first == data[18:34], "key id"
    return epochs


def parse(data):
    """Content, body and the last 16 bytes of the footer."""
    footer = data[-48:]
    assert footer[40:] == b"lastgood"
    length = struct.unpack("<I", footer[32:36])[0]
    body = data[-48 - length : -48]
    assert hashlib.sha256(body).digest() == footer[:32]
    return data[: -48 - length - 8], body, footer[32:], footer[38], footer[39]


def unseal(epochs, key, data):
    content, body, end, kind, flags = parse(data)
    assert flags == 1, "not sealed"
    epoch, seed = epochs[struct.unpack("<I", body[:4])[0]], body[4:36]
    trailer = epoch.trailer_key(key, seed).decrypt(bytes(12), body[36:], struct.pack("<Q", len(content)) + end)
    return trailer, open_content(epoch.content_key(key, seed), kind, trailer, content)


def open_content(key, kind, trailer, content):
    def piece(at, length, flag):
        return key.decrypt(struct.pack("<QI", at, flag), content[at : at + length], None)

    if kind == 1:
        return piece(0, len(content), 0)
    if kind == 2:
        out, at = b"", 0
        for entry in range(0, len(trailer), 40):
            stored = struct.unpack("<I", trailer[entry + 4 : entry + 8])[0]
            out += piece(at, stored, 0)
            at += stored
        assert at == len(content)
        return out
    chunk = (128 << 10) + 16
    starts = range(0, len(content), chunk)
    return b"".join(piece(at, chunk, int(at == starts[-1])) for at in starts)


def open_keyring(passphrase, data):
    content, _, _, _, flags = parse(data)
    assert flags == 0, "a keyring is not sealed"
    text = subprocess.run(["zstd", "-dcq"], input=content, stdout=subprocess.PIPE, check=True).stdout
    first, second = text.split(b"\n")[:2]
    ring = json.loads(first)
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(ring["lineage"][-1]["verify"])).verify(
        bytes.fromhex(json.loads(second)["signature"]), first
    )
    for before, after in zip(ring["lineage"], ring["lineage"][1:]):
        message = f"lastgood epoch\0{ring['repository']}\0{after['epoch']}\0".encode() + bytes.fromhex(after["verify"])
        signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(before["verify"]))
        signer.verify(bytes.fromhex(after["signature"]), message)
    for slot in ring["slots"]:
        if slot["kind"] != "passphrase" or slot["role"] != "reader":
            continue
        kdf = Argon2id(
            salt=bytes.fromhex(slot["salt"]),
            length=32,
            iterations=slot["passes"],
            lanes=slot["lanes"],
            memory_cost=slot["memory_kib"],
        )
        bound = f"lastgood slot\0{ring['repository']}\0{ring['epoch']}\0{slot['id']}\0{slot['role']}".encode()
        root = AESGCM(kdf.derive(passphrase)).decrypt(bytes(12), bytes.fromhex(slot["wrapped"]), bound)
        own = Epoch(root)
        assert own.verify.hex() == ring["lineage"][-1]["verify"]
        for earlier in ring["earlier"]:
            info = f"lastgood earlier reader\0{ring['epoch']}\0{earlier['epoch']}".encode()
            old = AESGCM(hkdf(root, b"", info)).decrypt(bytes(12), bytes.fromhex(earlier["reader"]), b"")
            print(f"{earlier['epoch']} {old.hex()}")
        print(f"{ring['epoch']} {root.hex()}")
        return
    sys.exit("no reader's passphrase slot")


def main(command, *args):
    if command == "root":
        for epoch, key in sorted(read_key(args[0]).items()):
            print(f"{epoch} {key.root.hex()}")
    elif command == "keyring":
        open_keyring(open(args[0], "rb").read().strip(), open(args[1], "rb").read())
    else:
        trailer, content = unseal(read_key(args[0]), args[1], open(args[2], "rb").read())
        sys.stdout.buffer.write(trailer if command == "trailer" else content)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
