"""A department's system as a source, with stock grpcio: one certificate type from a table in memory.

    python source.py PORT CERTIFICATE KEY CLIENT_CA

PORT 0 takes a free one; it is printed. The gateway connects with its own client certificate, which CLIENT_CA has
issued. People in the table do not exist.
"""

import sys
from concurrent import futures

import grpc
from oncegate.department.v1 import record_source_service_pb2 as api
from oncegate.department.v1 import record_source_service_pb2_grpc as services
from oncegate.records.v1 import disability_certificate_pb2 as records

#: Division 990784 is impossible; the check digit is right.
PEOPLE = {
    ("990784198803120016", "乌有强"): {
        "certificate_no": "99078419880312001643", "name": "乌有强", "id_no": "990784198803120016",
        "disability_category": 4, "disability_grade": 3, "valid_until": "2031-05-06",
        "status": records.DisabilityCertificate.STATUS_VALID,
    },
}


class Disability(services.RecordSourceServiceServicer):
    def FetchRecords(self, request, context):
        if request.certificate_type != "disability_certificate":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such certificate type here")
        keys = {key.name: key.value for key in request.keys}
        found = PEOPLE.get((keys.get("id_no"), keys.get("name")))
        answer = api.FetchRecordsResponse()
        # Nobody of that name and number: no record, which is not an error. The whole record may be sent; the gateway cuts
        # it to what is granted. A source that sends only `request.fields` sends less.
        if found:
            answer.records.add().record.Pack(records.DisabilityCertificate(**found))
        return answer


def read(path):
    with open(path, "rb") as file:
        return file.read()


def serve(servicer, port, certificate, key, client_ca):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    services.add_RecordSourceServiceServicer_to_server(servicer, server)
    # The last argument: nobody without a certificate of that CA gets in.
    credentials = grpc.ssl_server_credentials([(read(key), read(certificate))], read(client_ca), True)
    bound = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    print(f"source on {bound}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    serve(Disability(), *sys.argv[1:])
