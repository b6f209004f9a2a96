"""The source of tests/clients/python/source.py with bad manners: what it does depends on the name it is asked about.

    python odd_source.py PORT CERTIFICATE KEY CLIENT_CA
"""

import sys
import threading

import source
from oncegate.records.v1 import disability_certificate_pb2 as records

SLOW = ("990784199007040028", "乌有慢")  # answers after ten seconds, unless it is told to stop
MORE = ("990784196501180030", "乌有多")  # sends a field that no descriptor knows
OTHER = ("990784197111300046", "乌有他")  # sends the record of somebody else
TYPE = ("990784198803120016", "乌有型")  # says that the record is of another type

SECRET = "kept-from-everybody"
UNKNOWN_FIELD = b"\xc2\x3e" + bytes([len(SECRET)]) + SECRET.encode()  # number 1000, a string


def record(id_no, name):
    return {"id_no": id_no, "name": name, "disability_grade": 3, "status": records.DisabilityCertificate.STATUS_VALID}


class Odd(source.Disability):
    def FetchRecords(self, request, context):
        asked = {key.name: key.value for key in request.keys}
        person = (asked.get("id_no"), asked.get("name"))
        if person == SLOW:
            ended = threading.Event()
            context.add_callback(ended.set)
            print("asked", flush=True)
            print("told to stop" if ended.wait(10) else "nobody told it", flush=True)
        answer = super().FetchRecords(request, context)
        if person == MORE:
            answer.records[0].record.value += UNKNOWN_FIELD
        elif person == OTHER:
            answer.records[0].record.Pack(records.DisabilityCertificate(**record("990784198803120016", "乌有强")))
        elif person == TYPE:
            answer.records[0].record.type_url = "type.googleapis.com/oncegate.records.v1.ResidentIdentity"
        return answer


if __name__ == "__main__":
    source.PEOPLE.update({person: record(*person) for person in (SLOW, MORE, OTHER, TYPE)})
    source.serve(Odd(), *sys.argv[1:])
