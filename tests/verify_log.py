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


def signed(note, vkey):
    """True if the key has signed the note: as a log, or as a witness."""
    text, lines = note.rsplit("\n\n", 1)
    name, key_id, key = vkey.split("+", 2)
    key, message = base64.b64decode(key), (text + "\n").encode()
    assert key_id == sha256(name.encode(), b"\n", key[:33])[:4].hex(), "a key's id does not fit"
    lines = [(line.split(" ")[1], base64.b64decode(line.split(" ")[2])) for line in lines.splitlines()]
    mine = [data[4:] for who, data in lines if (who, data[:4].hex()) == (name, key_id)]
    if key[0] == 4:
        times = [int.from_bytes(data[:8], "big") for data in mine]
        return bool(mine) and all(ed25519(key[1:], b"cosignature/v1\ntime %d\n" % time + message, data[8:])
                                  for time, data in zip(times, mine))
    return bool(mine) and all(ed25519(key[1:], message, data) for data in mine)


def checkpoint(note, policy, handovers):
    """Size and root, if the log's key of that size and every witness of the policy have signed."""
    origin, size, root_then = note.splitlines()[:3]
    keys = [key for index, key in handovers if index < int(size)][-1:] or policy["log"]
    assert any(signed(note, key) and key.split("+")[0] == origin for key in keys), "not signed by the log"
    assert all(signed(note, key) for key in policy["witness"]), "not signed by every witness"
    return int(size), base64.b64decode(root_then)


def handover(note, keys):
    """The key that a LOG_KEY entry hands over to, which the key of then must have signed."""
    head, origin, key = note.splitlines()[:3]
    assert head == "oncegate/log-key/v1" and key.split("+")[0] == origin, "not a handover"
    assert any(signed(note, before) and before.split("+")[0] == origin for before in keys), "nobody vouches for the new key"
    return key


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
    tree, words = Path(tree), [line.split() for line in Path(policy).read_text().splitlines()]
    policy = {kind: [line[at] for line in words if line and line[0] == kind] for kind, at in (("log", 1), ("witness", 2))}
    note = (tree / "checkpoint").read_text()
    size, leaves, handovers = int(note.splitlines()[1]), [], []
    for number in range((size + 255) // 256):
        bundle = (tree / path("entries", number, min(256, size - number * 256))).read_bytes()
        for data in entries(bundle):
            if data[1] == 11:
                keys = [key for _, key in handovers][-1:] or policy["log"]
                if data[30:].decode().splitlines()[2] not in keys:
                    handovers.append((len(leaves), handover(data[30:].decode(), keys)))
            leaves.append(sha256(b"\0", data))
    assert checkpoint(note, policy, handovers) == (size, root(leaves)), "the entries are not those that were signed"
    level, hashes = 0, leaves
    while hashes:
        for number in range((len(hashes) + 255) // 256):
            mine = hashes[number * 256:number * 256 + 256]
            assert b"".join(mine) == (tree / path(level, number, len(mine))).read_bytes(), f"tile {level}/{number} is wrong"
        level, hashes = level + 1, [root(hashes[at:at + 256]) for at in range(0, len(hashes) - 255, 256)]
    if proof:
        head, note = Path(proof).read_text().split("\n\n", 1)
        _, index, *path_up = head.splitlines()
        node, leaf = int(index.split()[1]), sha256(b"\0", Path(entry).read_bytes())
        size_then, root_then = checkpoint(note, policy, handovers)
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
