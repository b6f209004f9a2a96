#!/usr/bin/env python3
"""Verifies an exported access log and a proof, from docs/log-format.md alone: nothing but Python and SHA-512, SHA-256.

    verify_log.py TREE POLICY [PROOF ENTRY]

TREE is what `oncegate audit export --format tiles` writes, POLICY the C2SP tlog-policy, PROOF and ENTRY what
`oncegate audit prove --entry` writes. Needs every witness of the policy. Exits with 0 if all of it holds.
"""
import base64
import hashlib
import sys
from pathlib import Path

# Ed25519 (RFC 8032), verification only.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def add(a, b):
    (x1, y1), (x2, y2) = a, b
    k = D * x1 * x2 * y1 * y2
    return ((x1 * y2 + x2 * y1) * pow(1 + k, P - 2, P) % P, (y1 * y2 + x1 * x2) * pow(1 - k, P - 2, P) % P)


def multiply(point, times):
    result = (0, 1)
    while times:
        if times & 1:
            result = add(result, point)
        point, times = add(point, point), times >> 1
    return result


def point(data):
    number = int.from_bytes(data, "little")
    y, sign = number % 2**255, number >> 255
    xx = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(xx, (P + 3) // 8, P)
    if (x * x - xx) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert (x * x - xx) % P == 0 and y < P, "not a point"
    return (P - x if x & 1 != sign else x, y)


BASE = point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def ed25519(public, message, signature):
    s = int.from_bytes(signature[32:], "little")
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    return s < L and multiply(BASE, s) == add(point(signature[:32]), multiply(point(public), k))


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def root(hashes):
    """MTH of RFC 6962 over leaf hashes, level by level: a node without a sibling goes up as it is."""
    while len(hashes) > 1:
        pairs = [sha256(b"\1", *hashes[i:i + 2]) for i in range(0, len(hashes) - 1, 2)]
        hashes = pairs + hashes[len(hashes) & ~1:]
    return hashes[0] if hashes else sha256()


def checkpoint(note, policy):
    """Size and root, if the log and every witness of the policy have signed."""
    text, lines = note.rsplit("\n\n", 1)
    text = (text + "\n").encode()
    signatures = [(name, base64.b64decode(data)) for _, name, data in (line.split(" ") for line in lines.splitlines())]
    keys = [line.split()[1 if line.startswith("log") else 2] for line in policy.splitlines() if line[:3] in ("log", "wit")]
    for vkey in keys:
        name, key_id, key = vkey.split("+", 2)
        key = base64.b64decode(key)
        assert key_id == sha256(name.encode(), b"\n", key)[:4].hex(), "a key's id does not fit"
        [mine] = [data[4:] for who, data in signatures if (who, data[:4].hex()) == (name, key_id)]
        message = text
        if key[0] == 4:
            message = b"cosignature/v1\ntime %d\n" % int.from_bytes(mine[:8], "big") + text
            mine = mine[8:]
        assert ed25519(key[1:], message, mine), f"the signature of {name} is wrong"
    size, signed = text.decode().splitlines()[1:3]
    return int(size), base64.b64decode(signed)


def path(kind, number, width):
    parts = [f"{number % 1000:03}"]
    while number := number // 1000:
        parts.insert(0, f"x{number % 1000:03}")
    return f"tile/{kind}/" + "/".join(parts) + (f".p/{width}" if width < 256 else "")


def entries(bundle):
    while bundle:
        length = int.from_bytes(bundle[:2], "big")
        yield bundle[2:2 + length]
        bundle = bundle[2 + length:]


def main(tree, policy, proof=None, entry=None):
    tree, policy = Path(tree), Path(policy).read_text()
    size, signed = checkpoint((tree / "checkpoint").read_text(), policy)
    leaves = []
    for number in range((size + 255) // 256):
        width = min(256, size - number * 256)
        hashes = [sha256(b"\0", entry) for entry in entries((tree / path("entries", number, width)).read_bytes())]
        assert b"".join(hashes) == (tree / path(0, number, width)).read_bytes(), f"tile {number} is not its entries'"
        leaves += hashes
    assert len(leaves) == size and root(leaves) == signed, "the entries are not those that were signed"
    if proof:
        head, note = Path(proof).read_text().split("\n\n", 1)
        _, index, *path_up = head.splitlines()
        node, leaf = int(index.split()[1]), sha256(b"\0", Path(entry).read_bytes())
        size_then, root_then = checkpoint(note, policy)
        assert root(leaves[:size_then]) == root_then and leaves[node] == leaf, "the proof is of another log or entry"
        last = size_then - 1
        for sibling in map(base64.b64decode, path_up):
            while node == last and not node & 1 and last:
                node, last = node >> 1, last >> 1
            leaf = sha256(b"\1", sibling, leaf) if node & 1 or node == last else sha256(b"\1", leaf, sibling)
            node, last = node >> 1, last >> 1
        assert leaf == root_then, "the proof does not hold"
    print(f"{size} entries are what was signed" + (", and the proof holds" if proof else ""))


main(*sys.argv[1:])
