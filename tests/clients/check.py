"""Runs the Python and Node clients against a demo, and the Python source behind a gateway; checks what each prints and
what the access log says of it. Started by tests/clients/run with the program's path."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = sys.argv[1]
AT = Path("target/clients")
PYTHON = [str(AT / "venv/bin/python"), str(AT / "python/client.py")]
NODE = ["node", str(AT / "node/client.mjs"), "proto"]


def run(command, code=0):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


class Started:
    """A program that runs until the end of the block; it is ready once it prints `ready`."""

    def __init__(self, command, ready):
        self.command, self.ready = command, ready

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if self.ready in line:
                return self
        raise AssertionError(f"{self.command} ended early\n{''.join(self.lines)}")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=30)


def clients(directory):
    profile, case = str(directory / "platform.toml"), str(directory / "newborn_birth.toml")
    for name, client in [("python", PYTHON), ("node", NODE)]:
        call = [*client, profile, case]
        birth = ["birth_medical_certificate", "child"]
        answer, receipt = run([*call, "lookup", "JK", *birth, "infant_name,mother_name,father_name"])
        assert set(answer["record"]) == {"infant_name", "mother_name"}, answer
        assert answer["record"]["mother_name"].endswith("*") and answer["masked"] == {"mother_name": "name_zh"}
        assert answer["withheld"] == {"father_name": "WITHHELD_REASON_NOT_GRANTED"}
        [refused] = run([*call, "lookup", "JK", *birth, "father_id_no"], 1)
        assert (refused["code"], refused["reason"], refused["domain"]) == ("PERMISSION_DENIED", "NOT_GRANTED", "oncegate")
        assert refused["on_record"] and refused["metadata"] == {"certificate_type": birth[0]}
        plan, *items, summary = run([*call, "collect", "GA"])
        assert len(plan["plan"]) == len(items) == 3 and sum(item["records"] for item in items) == 1, items
        assert summary["summary"]["answered"] == 1
        [late] = run([*call, "deadline", "JK", *birth, "infant_name"], 1)
        assert late["code"] == "DEADLINE_EXCEEDED", late
        [gone] = run([*call, "cancel", "GA"], 1)
        assert gone["code"] == "CANCELLED", gone
        search = [PROGRAM, "audit", "search", "--log", str(directory / "log"), "--json",
                  "--key", "certs-dev/out/audit/auditor.key"]
        entries = [entry for entry in entries_of(search) if entry.get("caller_request_id") == f"{name}-client"]
        outcomes = {entry["outcome"] for entry in entries}
        assert {"PARTIAL", "DENIED", "RELEASED"} <= outcomes, outcomes
        assert any(entry["index"] == receipt["receipt"]["index"] for entry in entries)
        print(f"{name}: lookup, collect, error details, deadline and cancellation as they should; {len(entries)} entries")


def entries_of(search):
    text = subprocess.run(search, capture_output=True, text=True, check=True, timeout=60).stdout
    decoder, entries, place = json.JSONDecoder(), [], 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        value, place = decoder.raw_decode(text, place)
        entries.extend(value if isinstance(value, list) else [value])
    return entries


def source(directory):
    pki = Path("certs-dev/out").resolve()
    command = [str(AT / "venv/bin/python"), "-u", str(AT / "python/source.py"), "0", str(pki / "sources/CL/disability.pem"),
               str(pki / "sources/CL/disability.key"), str(pki / "ca/ZS.pem")]
    with Started(command, "source on") as running:
        port = running.lines[-1].split()[-1]
        shutil.copytree("deploy/heshan", directory / "heshan", ignore=shutil.ignore_patterns("run"))
        config = directory / "heshan/gateway.toml"
        text = config.read_text().replace("../../certs-dev/out", str(pki))
        text = text.replace("https://127.0.0.1:7453", f"https://127.0.0.1:{port}")
        config.write_text(text.replace("127.0.0.1:7443", "127.0.0.1:0").replace("127.0.0.1:7490", "127.0.0.1:0"))
        with Started([PROGRAM, "serve", "--config", str(config)], "observe") as gateway:
            address = re.search(r"https://\S+", "".join(gateway.lines))[0]
            profile = directory / "profile.toml"
            zs = pki / "systems/ZS/platform"
            profile.write_text(
                f'address = "{address}"\nserver_id = "spiffe://heshan.gov.example/ZS/oncegate"\n'
                f'ca = "{pki}/ca/gateway.pem"\ncertificate = "{zs}.pem"\nkey = "{zs}.key"\n'
                'caller = "spiffe://heshan.gov.example/ZS/platform"\n'
                'issuer = "https://token.platform.heshan.gov.example"\n'
                f'token_key = "{pki}/tokens/platform.key"\nofficer = "window-3"\n')
            case = directory / "case.toml"
            person = 'role = "applicant"\nid_no = "990784198803120016"\nname = "{}"\n'
            head = ('matter = "disability_services"\ncase_id = "HS-2026-000077"\n'
                    'citation = "残疾人保障法 第二条"\npurpose = "补贴"\n[[subjects]]\n')
            call = [PROGRAM, "call", "--profile", str(profile), "--json", "lookup", "--consumer", "RS", "--case", str(case),
                    "--type", "disability_certificate", "--role", "applicant", "--fields"]
            case.write_text(head + person.format("乌有强"))
            answer = subprocess.run([*call, "disability_grade,status"], capture_output=True, text=True, timeout=60)
            assert answer.returncode == 0 and "2031" not in answer.stdout, answer
            assert "DISABILITY_GRADE" in answer.stdout or "disability_grade" in answer.stdout, answer.stdout
            case.write_text(head + person.format("乌有弱"))
            nobody = subprocess.run([*call, "status"], capture_output=True, text=True, timeout=60)
            assert nobody.returncode == 12, nobody
    print("python source: answers through the gateway, field by field; nobody of another name is found")


def main():
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        with Started([PROGRAM, "demo", "--keep", "--dir", str(directory)], "until Ctrl-C"):
            clients(directory)
        source(directory)


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    begun = time.monotonic()
    main()
    print(f"clients of other languages: {time.monotonic() - begun:.0f} s")
