"""A client of oncegate with stock grpcio: looks one certificate up, collects a case, and meets each kind of error.

    python client.py PROFILE CASE lookup CONSUMER TYPE ROLE FIELD[,FIELD...] [TIMEOUT_MS]
    python client.py PROFILE CASE collect CONSUMER
    python client.py PROFILE CASE cancel CONSUMER        (collects, and hangs up soon after the plan has come)
    python client.py PROFILE CASE keep          (calls until its standard input ends, on one channel as long as the
                                                 certificate is the same; what was not taken up is tried once more)

PROFILE and CASE are the TOML files that `oncegate call` takes. Prints JSON, one object a line; ends with 1 if refused.
"""

import base64
import hashlib
import importlib
import json
import os
import sys
import threading
import time
import tomllib
import uuid

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2, status_pb2
from oncegate.gateway.v1 import catalog_service_pb2, catalog_service_pb2_grpc
from oncegate.gateway.v1 import lookup_service_pb2 as api
from oncegate.gateway.v1 import lookup_service_pb2_grpc, types_pb2


def read(path):
    with open(path, "rb") as file:
        return file.read()


class Client:
    def __init__(self, profile, case):
        self.profile, self.case = profile, case
        self.key = serialization.load_pem_private_key(read(profile["token_key"]), None)
        self.connect()

    def connect(self):
        """A channel with the certificate as it is now."""
        profile = self.profile
        self.shown = os.path.realpath(profile["certificate"])
        credentials = grpc.ssl_channel_credentials(
            read(profile["ca"]), read(profile["key"]), read(profile["certificate"])
        )
        self.channel = grpc.secure_channel(profile["address"].removeprefix("https://"), credentials)
        leaf = x509.load_pem_x509_certificate(read(profile["certificate"])).public_bytes(serialization.Encoding.DER)
        self.thumbprint = encode(hashlib.sha256(leaf).digest())

    def token(self, consumer):
        """A token for one consumer and this case, bound to the client certificate (RFC 8705)."""
        now = int(time.time())
        numbers = self.key.public_key().public_numbers()
        jwk = {"crv": "P-256", "kty": "EC", "x": coordinate(numbers.x), "y": coordinate(numbers.y)}
        kid = encode(hashlib.sha256(json.dumps(jwk, separators=(",", ":")).encode()).digest())  # RFC 7638
        domain = self.profile["caller"].split("/")[2]
        claims = {
            "iss": self.profile["issuer"], "sub": self.profile["officer"], "aud": f"spiffe://{domain}",
            "client_id": self.profile["caller"], "iat": now, "nbf": now, "exp": now + 300, "jti": str(uuid.uuid4()),
            "cnf": {"x5t#S256": self.thumbprint},
            "authorization_details": [{
                "type": "oncegate", "matter": self.case["matter"], "case": self.case["case_id"], "consumer": consumer,
                "legal_basis": "STATUTORY_DUTY", "legal_basis_reference": self.case["citation"],
                "purpose": self.case["purpose"],
            }],
        }
        return jwt.encode(claims, self.key, algorithm="ES256", headers={"typ": "at+jwt", "kid": kid})

    def metadata(self, consumer):
        return [("authorization", "Bearer " + self.token(consumer)), ("x-request-id", "python-client")]

    def subjects(self):
        return [
            types_pb2.CaseSubject(
                role=subject["role"],
                attributes=[types_pb2.Attribute(name=n, value=v) for n, v in subject.items() if n != "role"],
            )
            for subject in self.case["subjects"]
        ]

    def lookup(self, consumer, certificate_type, role, fields, timeout_ms=5000):
        request = api.LookupRequest(
            matter=self.case["matter"], case_id=self.case["case_id"], certificate_type=certificate_type,
            subject_role=role, subjects=self.subjects(), read_mask=FieldMask(paths=fields.split(",")),
        )
        stub = lookup_service_pb2_grpc.LookupServiceStub(self.channel)
        return stub.Lookup(request, timeout=int(timeout_ms) / 1000, metadata=self.metadata(consumer))

    def collect(self, consumer, timeout=10):
        request = api.CollectRequest(
            matter=self.case["matter"], case_id=self.case["case_id"], subjects=self.subjects()
        )
        stub = lookup_service_pb2_grpc.LookupServiceStub(self.channel)
        return stub.Collect(request, timeout=timeout, metadata=self.metadata(consumer))

    def keep(self):
        """Counts of calls answered, failed, and made once more because their connection was just ending, and of the
        certificates shown: when another is put in place, the channel is made anew with it."""
        counts = {"answered": 0, "failed": 0, "retried": 0, "certificates": 1}
        ended = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
        while not ended.is_set():
            if os.path.realpath(self.profile["certificate"]) != self.shown:
                self.channel.close()
                self.connect()
                counts["certificates"] += 1
            stub = catalog_service_pb2_grpc.CatalogServiceStub(self.channel)
            for attempt in range(2):
                try:
                    stub.ListMatters(catalog_service_pb2.ListMattersRequest(), timeout=5)
                    counts["answered"] += 1
                    break
                except grpc.RpcError as error:
                    again = attempt == 0 and error.code() == grpc.StatusCode.UNAVAILABLE
                    counts["retried" if again else "failed"] += 1
                    if not again:
                        break
            time.sleep(0.01)
        return counts

    def served_class(self, certificate_type):
        """The record's class from the descriptors that the gateway serves; also for types that came after this client."""
        stub = catalog_service_pb2_grpc.CatalogServiceStub(self.channel)
        found = stub.GetCertificateType(catalog_service_pb2.GetCertificateTypeRequest(code=certificate_type), timeout=5)
        pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(found.descriptor_set).file:
            pool.Add(file)
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(found.summary.message))


def generated_class(certificate_type, message):
    """The record's class from code generated when this client was built."""
    return getattr(importlib.import_module(f"oncegate.records.v1.{certificate_type}_pb2"), message.split(".")[-1])


def shown(record, record_class):
    """The record as JSON; what was not released is not there."""
    message = record_class()
    if not record.Unpack(message):
        raise ValueError(f"not the expected type: {record.type_url}")
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def coordinate(number):
    return encode(number.to_bytes(32, "big"))


def details(error):
    """Code, reason, metadata and retry of an error: google.rpc.Status in the trailers."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    found = {"code": error.code().name, "reason": None}
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            found |= {"reason": info.reason, "domain": info.domain, "metadata": dict(info.metadata)}
        elif detail.Unpack(retry):
            found["retry_ms"] = retry.retry_delay.ToMilliseconds()
    found["on_record"] = "oncegate-receipt-bin" in trailers
    return found


def say(value):
    print(json.dumps(value, ensure_ascii=False), flush=True)


def main(profile, case, command, *arguments):
    client = Client(tomllib.loads(read(profile).decode()), tomllib.loads(read(case).decode()))
    try:
        if command == "lookup":
            answer = client.lookup(*arguments)
            served = client.served_class(arguments[1])
            for record in answer.records:
                generated = generated_class(arguments[1], record.record.TypeName())
                say({
                    "record": shown(record.record, generated),
                    "by_served_descriptor": shown(record.record, served),
                    "masked": {field.path: field.mask for field in record.masked},
                    "withheld": {field.path: types_pb2.WithheldReason.Name(field.reason) for field in record.withheld},
                })
            say({"receipt": {"origin": answer.receipt.origin, "index": answer.receipt.index}})
        elif command == "collect":
            for event in client.collect(*arguments):
                kind = event.WhichOneof("event")
                if kind == "plan":
                    say({"plan": [f"{item.certificate_type} of {item.subject_role}" for item in event.plan.items]})
                elif kind == "item":
                    say({"item": event.item.number, "records": len(event.item.answer.records),
                         "error": event.item.error.message or None})
                else:
                    say({"summary": json_format.MessageToDict(event.summary)})
        elif command == "keep":
            say(client.keep())
        elif command == "cancel":
            call = client.collect(*arguments)
            next(call)
            threading.Timer(0.5, call.cancel).start()
            for _ in call:
                pass
    except grpc.RpcError as error:
        say(details(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
