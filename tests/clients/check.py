"""Runs the Python and Node clients against a demo, and against a gateway whose source is a Python program with bad
manners; checks what each prints and what the access log says of it. Started by tests/clients/run with the program's path.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import odd_source

PROGRAM = sys.argv[1]
AT = Path("target/clients")
PKI = Path("certs-dev/out").resolve()
CLIENTS = {
    "python": [sys.executable, str(AT / "python/client.py")],
    "node": ["node", str(AT / "node/client.mjs"), "proto"],
}


def run(command, code=0, seconds=60):
    """Runs a command that must end with `code` within `seconds`; returns what it prints, and the JSON objects of its lines."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == code, f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout, [json.loads(line) for line in done.stdout.splitlines() if re.match(r"\{.+\}$", line)]


def until(what, probe):
    """What `probe` returns once that is true; fails after 60 seconds."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := probe():
            return found
        time.sleep(0.05)
    raise AssertionError(f"in 60 seconds: no {what}")


class Started:
    """A program that runs until the end of the block, which begins once it has printed `ready`."""

    def __init__(self, directory, name, command, ready):
        self.log, self.command, self.ready = directory / f"{name}.out", command, ready

    def said(self):
        return self.log.read_text()

    def is_ready(self):
        assert self.process.poll() is None, f"{self.command} ended early\n{self.said()}"
        return self.ready in self.said()

    def __enter__(self):
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)
        try:
            until(f"`{self.ready}` of {self.command}", self.is_ready)
        except AssertionError:
            self.process.kill()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=40)


class Log:
    """The access log of one gateway."""

    def __init__(self, directory):
        key = str(PKI / "audit/auditor.key")
        self.search = [PROGRAM, "audit", "search", "--json", "--log", str(directory), "--key", key]

    def entries(self, **wanted):
        _, entries = run(self.search)
        return [entry for entry in entries if wanted.items() <= entry.items()]

    def await_entries(self, **wanted):
        """As `entries`; a call that the caller gave up is on record only after it has gone."""
        return until(f"entry with {wanted}", lambda: self.entries(**wanted))


def with_the_demo(directory):
    """The whole conversation: answers, masks, refusals, a collection, and each of them on record."""
    log = Log(directory / "log")
    birth = ["birth_medical_certificate", "child"]
    for name, client in CLIENTS.items():
        call = [*client, str(directory / "platform.toml"), str(directory / "newborn_birth.toml")]
        _, [answer, receipt] = run([*call, "lookup", "JK", *birth, "infant_name,mother_name,father_name"])
        assert set(answer["record"]) == {"infant_name", "mother_name"}, answer
        assert answer["record"]["mother_name"].endswith("*") and answer["masked"] == {"mother_name": "name_zh"}, answer
        assert answer["withheld"] == {"father_name": "WITHHELD_REASON_NOT_GRANTED"}, answer
        assert name == "node" or answer["by_served_descriptor"] == answer["record"], answer

        _, [refused] = run([*call, "lookup", "JK", *birth, "father_id_no"], 1)
        assert (refused["code"], refused["reason"]) == ("PERMISSION_DENIED", "NOT_GRANTED"), refused
        assert refused["domain"] == "oncegate", refused
        assert refused["on_record"] and refused["metadata"] == {"certificate_type": birth[0]}, refused

        _, [plan, *items, summary] = run([*call, "collect", "GA"])
        assert len(plan["plan"]) == len(items) == 3 and sum(item["records"] for item in items) == 1, items
        assert summary["summary"]["answered"] == 1, summary

        ours = {"caller_request_id": f"{name}-client"}
        [partial] = log.entries(**ours, outcome="PARTIAL")
        assert partial["index"] == receipt["receipt"]["index"] and partial["consumer"] == "JK", partial
        [denied] = log.entries(**ours, outcome="DENIED", consumer="JK")
        assert denied["error"] == "NOT_GRANTED", denied
        assert len(log.entries(**ours, consumer="GA")) == len(items)
        print(f"{name}: lookup, refusal and collection as they should, and on record")


def under_rotation(directory):
    """The gateway's certificate, the clients' CA and their certificates change, ONCEGATE_ROUNDS times, and every connection
    gets GOAWAY each second: with one retry no call fails."""
    rounds = int(os.environ.get("ONCEGATE_ROUNDS", "3"))
    shutil.copytree("deploy/heshan", directory / "short-lived", ignore=shutil.ignore_patterns("run"))
    for file in (directory / "short-lived").glob("*.toml"):
        file.write_text(file.read_text().replace("../../certs-dev/out", str(PKI)))
    config = directory / "short-lived/gateway.toml"
    text = config.read_text()
    assert "connection_age_s = 3600" in text
    config.write_text(text.replace("connection_age_s = 3600", "connection_age_s = 1"))
    here = directory / "rotated"
    demo = [PROGRAM, "demo", "--keep", "--dir", str(here), "--config", str(config)]
    with Started(directory, "rotated", demo, "until Ctrl-C"):
        # The system of the department whose CA is rotated; rotate-demo puts its next certificates where `current` leads.
        first = here / "rotate/first"
        first.mkdir(parents=True)
        for ending in ["pem", "key"]:
            shutil.copy(PKI / f"systems/JY/enrolment.{ending}", first / f"system.{ending}")
        (here / "rotate/current").symlink_to("first")
        text = (here / "household.toml").read_text()
        for key, value in [("caller", "spiffe://heshan.gov.example/JY/enrolment"),
                           ("certificate", here / "rotate/current/system.pem"),
                           ("key", here / "rotate/current/system.key")]:
            text, count = re.subn(f'(?m)^{key} = .*', f'{key} = "{value}"', text)
            assert count == 1, (key, text)
        profile, case = here / "enrolment.toml", str(here / "newborn_birth.toml")
        profile.write_text(text)
        keeping = {
            name: subprocess.Popen([*client, str(profile), case, "keep"], text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for name, client in CLIENTS.items()
        }
        rotate = [PROGRAM, "pki", "rotate-demo", "--stay", "--rounds", str(rounds), "--dir", str(here), "--pki", str(PKI)]
        try:
            said, _ = run(rotate, seconds=60 + 30 * rounds)
        finally:
            # What ends the clients.
            counted = {name: process.communicate(timeout=60)[0] for name, process in keeping.items()}
        assert " 0 failed, over " in said, said
        for name, process in keeping.items():
            counts = json.loads(counted[name])
            assert process.returncode == 0 and counts["failed"] == 0 and counts["answered"] > 20, (name, counts)
            assert counts["certificates"] == 1 + rounds, (name, counts)
            print(f"{name}: under {rounds} rounds of rotation {counts}")


@contextlib.contextmanager
def gateway_of_the_odd_source(directory):
    """The reference deployment with one other source, and a limit of four lookups about one subject."""
    command = [sys.executable, "-u", str(Path(__file__).with_name("odd_source.py")), "0",
               str(PKI / "sources/CL/disability.pem"), str(PKI / "sources/CL/disability.key"), str(PKI / "ca/ZS.pem")]
    with Started(directory, "source", command, "source on") as source:
        port = re.search(r"source on (\d+)", source.said())[1]
        shutil.copytree("deploy/heshan", directory / "heshan", ignore=shutil.ignore_patterns("run"))
        config = directory / "heshan/gateway.toml"
        text = config.read_text()
        for old, new in [("../../certs-dev/out", str(PKI)), ("127.0.0.1:7453", f"127.0.0.1:{port}"),
                         ("127.0.0.1:7443", "127.0.0.1:0"), ("127.0.0.1:7490", "127.0.0.1:0"),
                         ("127.0.0.1:7447", "127.0.0.1:0"),
                         ("subject_per_minute = 30", "subject_per_minute = 1"),
                         ("subject_burst = 60", "subject_burst = 4")]:
            assert old in text, old
            text = text.replace(old, new)
        config.write_text(text)
        # Nobody runs the platform's registers here, so the conditions on the case are taken out.
        grants = directory / "heshan/policy/grants/disability_services/CL.toml"
        lines = grants.read_text().splitlines(keepends=True)
        grants.write_text("".join(line for line in lines if not line.startswith("when = [\"case_open\"")))
        with Started(directory, "gateway", [PROGRAM, "serve", "--config", str(config)], "observe") as gateway:
            address = re.search(r"gateway  (https://\S+)", gateway.said())[1]
            profile = directory / "profile.toml"
            profile.write_text(
                f'address = "{address}"\n'
                'server_id = "spiffe://heshan.gov.example/ZS/oncegate"\n'
                f'ca = "{PKI}/ca/gateway.pem"\ncertificate = "{PKI}/systems/ZS/platform.pem"\n'
                f'key = "{PKI}/systems/ZS/platform.key"\ncaller = "spiffe://heshan.gov.example/ZS/platform"\n'
                'issuer = "https://token.platform.heshan.gov.example"\n'
                f'token_key = "{PKI}/tokens/platform.key"\nofficer = "window-3"\n')
            yield profile, source, Log(directory / "heshan/run/log")


def case(directory, id_no, name):
    """A case file about one person."""
    file = directory / f"{id_no}-{name}.toml"
    file.write_text('matter = "disability_services"\ncase_id = "HS-2026-000077"\ncitation = "残疾人保障法 第二条"\n'
                    f'purpose = "补贴"\n[[subjects]]\nrole = "applicant"\nid_no = "{id_no}"\nname = "{name}"\n')
    return str(file)


def with_a_source_in_python(directory, profile, log):
    """What a good source sends comes through field by field; what is wrong of an answer never leaves."""
    card = ["--type", "disability_certificate", "--role", "applicant", "--fields", "disability_grade,status"]

    def lookup(person, code):
        text, _ = run([PROGRAM, "call", "--profile", str(profile), "--json", "lookup", "--consumer", "RS",
                       "--case", case(directory, *person), *card], code)
        return json.loads(text), text

    strong = next(iter(odd_source.source.PEOPLE))
    answer, text = lookup(strong, 0)
    released = {"disability_grade": "DISABILITY_GRADE_THIRD", "status": "STATUS_VALID"}
    assert released.items() <= answer["records"][0]["record"].items(), text
    whole = odd_source.source.PEOPLE[strong]
    assert not any(whole[field] in text for field in ["name", "id_no", "certificate_no", "valid_until"]), text
    nobody, _ = lookup((strong[0], "乌有弱"), 12)
    assert nobody["error"]["reason"] == "RECORD_NOT_FOUND", nobody

    more, text = lookup(odd_source.MORE, 0)
    assert more["records"] and odd_source.SECRET not in text and odd_source.SECRET.encode().hex() not in text, text
    [entry] = log.entries(index=int(more["receipt"]["index"]))
    assert entry["records"][0]["unknown_dropped"] == 1, entry
    for person in [odd_source.OTHER, odd_source.TYPE]:
        thrown_away, text = lookup(person, 16)
        assert thrown_away["error"]["reason"] == "PROVIDER_ANSWER_INVALID" and whole["name"] not in text, text
        [entry] = log.entries(index=int(thrown_away["receipt"]["index"]))
        assert (entry["outcome"], entry["records"]) == ("PROVIDER_ERROR", []), entry
    print("a source in Python: answers field by field; unknown fields, another subject and another type never leave")


def with_a_slow_source(directory, profile, source, log):
    """Deadline, cancellation and limit while a department works: what the client sees, the source and the log."""
    card = ["disability_certificate", "applicant", "disability_grade"]
    strong = next(iter(odd_source.source.PEOPLE))
    for (name, client), consumer in zip(CLIENTS.items(), ["MZ", "YB"], strict=True):
        ours = {"caller_request_id": f"{name}-client", "consumer": consumer}
        asked = source.said().count("asked")
        slow = [*client, str(profile), case(directory, *odd_source.SLOW)]
        _, [late] = run([*slow, "lookup", consumer, *card, "1500"], 1)
        assert late["code"] == "DEADLINE_EXCEEDED", late
        [entry] = log.await_entries(**ours, method="/oncegate.gateway.v1.LookupService/Lookup")
        # Client, gateway and source run into the same deadline; any of them may be the first to say so.
        assert (entry["outcome"], entry["error"]) in [
            ("CANCELLED", "DEADLINE_EXCEEDED"), ("CANCELLED", "CANCELLED"), ("PROVIDER_ERROR", "PROVIDER_TIMEOUT"),
        ], entry
        assert not entry["records"] and 1_000_000 < entry["total_us"] < 2_500_000, entry

        _, [gone] = run([*slow, "cancel", consumer], 1)
        assert gone["code"] == "CANCELLED", gone
        [entry] = log.await_entries(**ours, method="/oncegate.gateway.v1.LookupService/Collect",
                                    certificate_type="disability_certificate")
        assert (entry["outcome"], entry["error"], entry["records"]) == ("CANCELLED", "CANCELLED", []), entry
        # A call that was given up before the gateway had asked the source is one that the source never hears of.
        until("word to the source that nobody waits",
              lambda: asked < source.said().count("asked") == source.said().count("told to stop"))
        assert "nobody told it" not in source.said()

        often = [*client, str(profile), case(directory, *strong), "lookup", consumer, *card]
        for _ in range(4):
            run(often)
        _, [limited] = run(often, 1)
        assert (limited["code"], limited["reason"]) == ("RESOURCE_EXHAUSTED", "SUBJECT_LIMITED"), limited
        assert 0 < limited["retry_ms"] <= 60_000, limited
        [entry] = log.entries(**ours, outcome="LIMITED")
        assert entry["error"] == "SUBJECT_LIMITED", entry
        print(f"{name}: deadline, cancellation and limit as they should, told to the source, and on record")


def a_request_for_an_odd_key(directory):
    """The signature of a P-384 key may have the algorithm that P-256 keys use; the CA looks at the key."""
    key, csr, out = (str(directory / f"odd.{ending}") for ending in ["key", "csr", "pem"])
    for kind, code in [("P-384", 1), ("P-256", 0)]:
        run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{kind}", "-out", key])
        run(["openssl", "req", "-new", "-sha256", "-key", key, "-subj", "/CN=odd", "-out", csr])
        run([PROGRAM, "pki", "sign", "--csr", csr, "--department", "GA", "--system", "odd", "--out", out], code)
        assert Path(out).exists() == (code == 0), kind
    print("pki sign: a key of another curve is refused")


def main():
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        demo = [PROGRAM, "demo", "--keep", "--dir", str(directory)]
        with Started(directory, "demo", demo, "until Ctrl-C"):
            with_the_demo(directory)
        under_rotation(directory)
        with gateway_of_the_odd_source(directory) as (profile, source, log):
            with_a_source_in_python(directory, profile, log)
            with_a_slow_source(directory, profile, source, log)
        a_request_for_an_odd_key(directory)


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    begun = time.monotonic()
    main()
    print(f"clients of other languages: {time.monotonic() - begun:.0f} s")
