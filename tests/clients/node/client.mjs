// A client of oncegate with stock @grpc/grpc-js: looks one certificate up, collects a case, and meets each kind of error.
//
//   node client.mjs PROTO PROFILE CASE lookup CONSUMER TYPE ROLE FIELD[,FIELD...] [TIMEOUT_MS]
//   node client.mjs PROTO PROFILE CASE collect CONSUMER
//   node client.mjs PROTO PROFILE CASE cancel CONSUMER        (collects, and hangs up soon after the plan has come)
//   node client.mjs PROTO PROFILE CASE keep       (calls until its standard input ends, on one channel as long as the
//                                                  certificate is the same; what was not taken up is tried once more)
//
// PROTO is the folder of the .proto files; PROFILE and CASE are the TOML files that `oncegate call` takes. Prints JSON,
// one object a line; ends with 1 if refused.

import { createHash, createPublicKey, randomUUID, X509Certificate } from 'node:crypto';
import { readFileSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';
import { calculateJwkThumbprint, exportJWK, importPKCS8, SignJWT } from 'jose';
import protobuf from 'protobufjs';
import { parse } from 'smol-toml';

const [protos, profileFile, caseFile, command, ...rest] = process.argv.slice(2);
const profile = parse(readFileSync(profileFile, 'utf8'));
const aCase = parse(readFileSync(caseFile, 'utf8'));
const say = (value) => console.log(JSON.stringify(value));

const options = { includeDirs: [protos], keepCase: true, enums: String };
const loaded = loader.loadSync('oncegate/gateway/v1/lookup_service.proto', options);
const { LookupService } = grpc.loadPackageDefinition(loaded).oncegate.gateway.v1;
/** The certificate as it is now. */
const credentials = () => grpc.credentials.createSsl(
  readFileSync(profile.ca), readFileSync(profile.key), readFileSync(profile.certificate));
// The certificate holds the address, but a TLS server name must be a host's.
const address = profile.address.replace('https://', '').replace('127.0.0.1', 'localhost');
const client = new LookupService(address, credentials());

/** A token for one consumer and this case, bound to the client certificate (RFC 8705). */
async function token(consumer) {
  const pem = readFileSync(profile.token_key, 'utf8');
  const leaf = new X509Certificate(readFileSync(profile.certificate));
  const now = Math.floor(Date.now() / 1000);
  const claims = {
    client_id: profile.caller,
    cnf: { 'x5t#S256': createHash('sha256').update(leaf.raw).digest('base64url') },
    authorization_details: [{
      type: 'oncegate', matter: aCase.matter, case: aCase.case_id, consumer,
      legal_basis: 'STATUTORY_DUTY', legal_basis_reference: aCase.citation, purpose: aCase.purpose,
    }],
  };
  const kid = await calculateJwkThumbprint(await exportJWK(createPublicKey(pem)));
  return new SignJWT(claims)
    .setProtectedHeader({ alg: 'ES256', typ: 'at+jwt', kid })
    .setIssuer(profile.issuer).setSubject(profile.officer).setAudience(`spiffe://${profile.caller.split('/')[2]}`)
    .setIssuedAt(now).setNotBefore(now).setExpirationTime(now + 300).setJti(randomUUID())
    .sign(await importPKCS8(pem, 'ES256'));
}

async function metadata(consumer) {
  const found = new grpc.Metadata();
  found.set('authorization', `Bearer ${await token(consumer)}`);
  found.set('x-request-id', 'node-client');
  return found;
}

const subjects = aCase.subjects.map(({ role, ...attributes }) => ({
  role, attributes: Object.entries(attributes).map(([name, value]) => ({ name, value })),
}));
const inCase = { matter: aCase.matter, case_id: aCase.case_id, subjects };
const within = (ms) => ({ deadline: Date.now() + ms });

async function lookup([consumer, certificate_type, subject_role, fields, timeout = '5000']) {
  const request = { ...inCase, certificate_type, subject_role, read_mask: { paths: fields.split(',') } };
  const headers = await metadata(consumer);
  return new Promise((done, failed) =>
    client.Lookup(request, headers, within(Number(timeout)), (error, answer) => (error ? failed(error) : done(answer))));
}

/** Counts of calls answered, failed, and made once more because their connection was just ending, and of the certificates
 * shown: when another is put in place, the channel is made anew with it. */
async function keep() {
  const { CatalogService } = grpc.loadPackageDefinition(
    loader.loadSync('oncegate/gateway/v1/catalog_service.proto', options)).oncegate.gateway.v1;
  let catalog = new CatalogService(address, credentials());
  let shown = realpathSync(profile.certificate);
  let ended = false;
  process.stdin.on('end', () => { ended = true; }).resume();
  const call = () => new Promise((done, failed) =>
    catalog.ListMatters({}, within(5000), (error) => (error ? failed(error) : done())));
  const counts = { answered: 0, failed: 0, retried: 0, certificates: 1 };
  while (!ended) {
    if (realpathSync(profile.certificate) !== shown) {
      shown = realpathSync(profile.certificate);
      catalog.close();
      catalog = new CatalogService(address, credentials());
      counts.certificates += 1;
    }
    try {
      await call().catch((error) => {
        if (error.code !== grpc.status.UNAVAILABLE) throw error;
        counts.retried += 1;
        return call();
      });
      counts.answered += 1;
    } catch {
      counts.failed += 1;
    }
    await new Promise((done) => setTimeout(done, 10));
  }
  catalog.close();
  return counts;
}

const root = new protobuf.Root();
root.resolvePath = (_, file) => (file.startsWith('google/protobuf/') ? null : join(protos, file));
const own = protobuf.parse(`syntax = "proto3"; package details;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message RetryInfo { Duration retry_delay = 1; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }`, { keepCase: true }).root;

/** Code, reason, metadata and retry of an error: google.rpc.Status in the trailers. */
function details(error) {
  const found = { code: grpc.status[error.code], reason: null };
  const [encoded] = error.metadata?.get('grpc-status-details-bin') ?? [];
  if (encoded) {
    for (const detail of own.lookupType('details.Status').decode(encoded).details) {
      if (detail.type_url.endsWith('google.rpc.ErrorInfo')) {
        const info = own.lookupType('details.ErrorInfo').decode(detail.value);
        Object.assign(found, { reason: info.reason, domain: info.domain, metadata: { ...info.metadata } });
      } else if (detail.type_url.endsWith('google.rpc.RetryInfo')) {
        const { seconds, nanos } = own.lookupType('details.RetryInfo').decode(detail.value).retry_delay;
        found.retry_ms = Number(seconds) * 1000 + Math.ceil(nanos / 1e6);
      }
    }
  }
  found.on_record = (error.metadata?.get('oncegate-receipt-bin') ?? []).length > 0;
  return found;
}

try {
  if (command === 'lookup') {
    const answer = await lookup(rest);
    root.loadSync(`oncegate/records/v1/${rest[1]}.proto`, { keepCase: true });
    for (const { record, masked, withheld } of answer.records) {
      const type = root.lookupType(record.type_url.split('/').pop());
      const shown = type.toObject(type.decode(record.value), { enums: String });
      say({
        record: shown,
        masked: Object.fromEntries((masked ?? []).map((field) => [field.path, field.mask])),
        withheld: Object.fromEntries((withheld ?? []).map((field) => [field.path, field.reason])),
      });
    }
    say({ receipt: { origin: answer.receipt.origin, index: Number(answer.receipt.index) } });
  } else if (command === 'keep') {
    say(await keep());
  } else if (command === 'collect' || command === 'cancel') {
    const call = client.Collect(inCase, await metadata(rest[0]), within(10000));
    await new Promise((done, failed) => {
      call.on('data', (event) => {
        if (command === 'cancel') setTimeout(() => call.cancel(), 500);
        else if (event.plan) say({ plan: event.plan.items.map((item) => `${item.certificate_type} of ${item.subject_role}`) });
        else if (event.item) {
          const { number, answer, error } = event.item;
          say({ item: number ?? 0, records: answer?.records?.length ?? 0, error: error?.message ?? null });
        } else say({ summary: event.summary });
      });
      call.on('end', done);
      call.on('error', failed);
    });
  }
} catch (error) {
  if (!(error?.code in grpc.status)) throw error;
  say(details(error));
  process.exitCode = 1;
}
client.close();
