//! `oncegate call`: a client for the engineers of other systems.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use prost::Message as _;
use prost_reflect::DescriptorPool;
use serde_json::{Value, json};
use tonic::Status;
use tonic::metadata::MetadataValue;

use super::answer::{self, Refusal};
use super::case::Case;
use super::client::{Client, Profile};
use super::table::{Cell, Look, Table, Tone};
use super::{Exit, Failure};
use crate::clock::Clock;
use crate::ids::DepartmentCode;
use crate::pb::gateway as pb;
use crate::pb::gateway::catalog_service_client::CatalogServiceClient;
use crate::pb::gateway::collect_response::Event;
use crate::pb::gateway::lookup_service_client::LookupServiceClient;

/// Calls a gateway as another system's engineer would.
#[derive(Debug, Args)]
pub struct CallArgs {
    /// Who calls and whom: a profile file.
    #[arg(long, value_name = "FILE", global = true, default_value = "target/demo/platform.toml")]
    profile: PathBuf,
    /// Prints JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Longest time for an answer, in milliseconds.
    #[arg(long, value_name = "MS", global = true, default_value_t = 10_000)]
    timeout_ms: u64,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The records of one certificate type of one subject.
    Lookup(LookupArgs),
    /// Compares claimed values with the record, which stays inside the gateway.
    Verify(VerifyArgs),
    /// What a lookup would release, and why, without looking.
    Explain(ExplainArgs),
    /// Everything that the case's matter grants one consumer.
    Collect(CollectArgs),
    /// What may be asked for.
    #[command(subcommand)]
    Catalog(CatalogWhat),
}

#[derive(Debug, Args)]
struct CaseArgs {
    /// The department that asks, for example GA.
    #[arg(long, value_name = "CODE", value_parser = |text: &str| text.parse::<DepartmentCode>())]
    consumer: DepartmentCode,
    /// A case file: matter, number, legal basis, subjects.
    #[arg(long, value_name = "FILE")]
    case: PathBuf,
}

#[derive(Debug, Args)]
struct LookupArgs {
    #[command(flatten)]
    case: CaseArgs,
    /// Code of the certificate type.
    #[arg(long = "type", value_name = "CODE")]
    certificate_type: String,
    /// Role of the subject that the certificate is about.
    #[arg(long)]
    role: String,
    /// Fields wanted, by path.
    #[arg(long, value_name = "PATH,…", value_delimiter = ',', required = true)]
    fields: Vec<String>,
    /// Asks for a signed receipt (JWS) and writes it to this file.
    #[arg(long, value_name = "FILE")]
    signed_receipt: Option<PathBuf>,
    /// Writes the answer as it came, a `LookupResponse`, to this file: what the receipt is for.
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    #[command(flatten)]
    case: CaseArgs,
    /// Code of the certificate type.
    #[arg(long = "type", value_name = "CODE")]
    certificate_type: String,
    /// Role of the subject that the certificate is about.
    #[arg(long)]
    role: String,
    /// A claim, once for each: a field's value, or whether a predicate holds (`true`, `false`, or a day).
    #[arg(long = "value", value_name = "PATH=VALUE", required = true, value_parser = claim)]
    claims: Vec<pb::Claim>,
}

fn claim(text: &str) -> Result<pb::Claim, &'static str> {
    let (path, value) = text.split_once('=').ok_or("a claim is PATH=VALUE")?;
    Ok(pb::Claim { path: path.to_owned(), value: value.to_owned() })
}

#[derive(Debug, Args)]
struct ExplainArgs {
    #[command(flatten)]
    lookup: LookupArgs,
    /// Asks what may be compared instead of read.
    #[arg(long)]
    verify: bool,
}

#[derive(Debug, Args)]
struct CollectArgs {
    #[command(flatten)]
    case: CaseArgs,
    /// Only these certificate types.
    #[arg(long = "types", value_name = "CODE,…", value_delimiter = ',')]
    certificate_types: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum CatalogWhat {
    /// The certificate types you may use.
    Types,
    /// One certificate type: its fields and lookup keys.
    Type {
        /// Its code.
        code: String,
    },
    /// The matters you may use.
    Matters,
    /// The grants to the consumers you may act for.
    Grants {
        /// Only those of one matter.
        #[arg(long)]
        matter: Option<String>,
    },
}

pub(super) async fn run(args: CallArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let profile = Profile::load(&args.profile).map_err(|error| Failure::new(Exit::Config, error))?;
    let client = profile.client(Clock::system()).map_err(|error| Failure::new(Exit::Config, error))?;
    let pool = DescriptorPool::decode(crate::pb::DESCRIPTOR_SET)?;
    let timeout = Duration::from_millis(args.timeout_ms);
    let mut call = Call { client, pool, timeout, json: args.json, look: Look::stdout(), out };
    let ended = match args.what {
        What::Lookup(args) => call.lookup(args).await,
        What::Verify(args) => call.verify(args).await,
        What::Explain(args) => call.explain(args).await,
        What::Collect(args) => call.collect(args).await,
        What::Catalog(what) => call.catalog(what).await,
    };
    match ended {
        Err(Stop::Refused(status)) => call.refused(&status),
        Err(Stop::Failed(failure)) => Err(failure),
        Ok(exit) => Ok(exit),
    }
}

struct Call<'a> {
    client: Client,
    pool: DescriptorPool,
    timeout: Duration,
    json: bool,
    look: Look,
    out: &'a mut dyn Write,
}

/// Why a call did not end well: the gateway refused it, or this program failed.
enum Stop {
    Refused(Box<Status>),
    Failed(Failure),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

macro_rules! failures {
    ($($error:ty),*) => {
        $(impl From<$error> for Stop {
            fn from(error: $error) -> Self {
                Self::Failed(error.into())
            }
        })*
    };
}
failures!(
    std::io::Error,
    super::client::ProfileError,
    super::case::CaseError,
    super::render::RenderError,
    crate::ids::IdError
);

impl Call<'_> {
    async fn lookup(&mut self, args: LookupArgs) -> Result<Exit, Stop> {
        let case = Case::load(&args.case.case)?;
        let token = self.client.token(&case.token_for(&args.case.consumer)?)?;
        let message = pb::LookupRequest {
            matter: case.matter.clone(),
            case_id: case.case_id.clone(),
            certificate_type: args.certificate_type,
            subject_role: args.role,
            subjects: case.subjects(),
            read_mask: Some(prost_types::FieldMask { paths: args.fields }),
        };
        let mut request = self.client.request(message, &token, self.timeout)?;
        if args.signed_receipt.is_some() {
            request.metadata_mut().insert("oncegate-sign-receipt", MetadataValue::from_static("1"));
        }
        let mut service = LookupServiceClient::new(self.client.channel.clone());
        let answer = service.lookup(request).await?.into_inner();
        if let (Some(file), Some(receipt)) = (&args.signed_receipt, &answer.receipt) {
            std::fs::write(file, format!("{}\n", receipt.signed))?;
        }
        if let Some(file) = &args.answer {
            std::fs::write(file, answer.encode_to_vec())?;
        }
        if self.json {
            let receipt = answer.receipt.as_ref().map(answer::json_receipt);
            let records = answer::json_records(&self.pool, &answer.records)?;
            self.print_json(&json!({ "records": records, "receipt": receipt }))?;
        } else {
            answer::write_records(&self.pool, &answer.records, self.out, self.look)?;
            self.receipt(answer.receipt.as_ref())?;
        }
        let whole = answer.records.iter().all(|record| record.withheld.is_empty());
        Ok(if whole { Exit::Ok } else { Exit::Partial })
    }

    async fn verify(&mut self, args: VerifyArgs) -> Result<Exit, Stop> {
        let case = Case::load(&args.case.case)?;
        let token = self.client.token(&case.token_for(&args.case.consumer)?)?;
        let message = pb::VerifyRequest {
            matter: case.matter.clone(),
            case_id: case.case_id.clone(),
            certificate_type: args.certificate_type,
            subject_role: args.role,
            subjects: case.subjects(),
            claims: args.claims,
        };
        let request = self.client.request(message, &token, self.timeout)?;
        let mut service = LookupServiceClient::new(self.client.channel.clone());
        let answer = service.verify(request).await?.into_inner();
        if self.json {
            let receipt = answer.receipt.as_ref().map(answer::json_receipt);
            let comparisons = answer::json_comparisons(&answer.comparisons);
            self.print_json(&json!({ "comparisons": comparisons, "receipt": receipt }))?;
        } else {
            answer::write_comparisons(&answer.comparisons, self.out, self.look)?;
            self.receipt(answer.receipt.as_ref())?;
        }
        let any = |result| answer.comparisons.iter().any(|comparison| comparison.result() == result);
        Ok(match (any(pb::ComparisonResult::Mismatch), any(pb::ComparisonResult::CannotTell)) {
            (true, _) => Exit::Mismatch,
            (false, true) => Exit::Partial,
            (false, false) => Exit::Ok,
        })
    }

    async fn explain(&mut self, ExplainArgs { lookup: args, verify }: ExplainArgs) -> Result<Exit, Stop> {
        let case = Case::load(&args.case.case)?;
        let token = self.client.token(&case.token_for(&args.case.consumer)?)?;
        let message = pb::ExplainRequest {
            matter: case.matter.clone(),
            case_id: case.case_id.clone(),
            certificate_type: args.certificate_type,
            subject_role: args.role,
            subjects: case.subjects(),
            read_mask: Some(prost_types::FieldMask { paths: args.fields }),
            verify,
        };
        let request = self.client.request(message, &token, self.timeout)?;
        let mut service = LookupServiceClient::new(self.client.channel.clone());
        let answer = service.explain(request).await?.into_inner();
        if self.json {
            let receipt = answer.receipt.as_ref().map(answer::json_receipt);
            let fields: Vec<_> = answer.fields.iter().map(answer::json_explained).collect();
            self.print_json(&json!({ "fields": fields, "grants": answer.grants, "receipt": receipt }))?;
        } else {
            answer::write_explained(&answer.fields, self.out, self.look)?;
            self.receipt(answer.receipt.as_ref())?;
        }
        let mut forms = answer.fields.iter().flat_map(|field| &field.forms);
        Ok(if answer.grants.is_empty() {
            Exit::Denied
        } else if forms.all(|form| form.form() != pb::FieldForm::Withheld) {
            Exit::Ok
        } else {
            Exit::Partial
        })
    }

    async fn collect(&mut self, args: CollectArgs) -> Result<Exit, Stop> {
        let case = Case::load(&args.case.case)?;
        let token = self.client.token(&case.token_for(&args.case.consumer)?)?;
        let message = pb::CollectRequest {
            matter: case.matter.clone(),
            case_id: case.case_id.clone(),
            subjects: case.subjects(),
            certificate_types: args.certificate_types,
        };
        let request = self.client.request(message, &token, self.timeout)?;
        let mut service = LookupServiceClient::new(self.client.channel.clone());
        let mut stream = service.collect(request).await?.into_inner();
        let (mut plan, mut items, mut summary) = (Vec::new(), Vec::new(), pb::CollectSummary::default());
        while let Some(message) = stream.message().await? {
            match message.event {
                Some(Event::Plan(planned)) => plan = planned.items,
                Some(Event::Item(item)) if self.json => items.push(self.json_item(&plan, &item)?),
                Some(Event::Item(item)) => self.write_item(&plan, &item)?,
                Some(Event::Summary(found)) => summary = found,
                None => {}
            }
        }
        let pb::CollectSummary { answered, failed, materials_demanded, materials_avoided } = summary;
        if self.json {
            let summary = json!({
                "answered": answered,
                "failed": failed,
                "materials_demanded": materials_demanded,
                "materials_avoided": materials_avoided,
            });
            self.print_json(&json!({ "items": items, "summary": summary }))?;
        } else {
            writeln!(self.out, "{answered} answered, {failed} failed")?;
            writeln!(self.out, "{materials_avoided} of {materials_demanded} materials need not be brought")?;
        }
        Ok(match (answered, failed) {
            (_, 0) => Exit::Ok,
            (0, _) => Exit::Denied,
            _ => Exit::Partial,
        })
    }

    fn write_item(&mut self, plan: &[pb::PlannedItem], item: &pb::CollectItem) -> Result<(), Stop> {
        use pb::collect_item::Result as ItemResult;
        let planned = plan.iter().find(|planned| planned.number == item.number).cloned().unwrap_or_default();
        let pb::PlannedItem { certificate_type, provider, subject_role, .. } = planned;
        let title = format!("{certificate_type} of {subject_role} from {provider}");
        writeln!(self.out, "{}", self.look.paint(Tone::Heading, &title))?;
        match &item.result {
            Some(ItemResult::Answer(answer)) => match answer.same_as {
                Some(number) => writeln!(self.out, "  the same as item {number}")?,
                None => answer::write_records(&self.pool, &answer.records, self.out, self.look)?,
            },
            Some(ItemResult::Error(error)) => {
                writeln!(self.out, "  {}", self.look.paint(Tone::Bad, &Refusal::of_message(error).line()))?;
            }
            None => {}
        }
        self.receipt(item.receipt.as_ref())?;
        Ok(())
    }

    fn json_item(&self, plan: &[pb::PlannedItem], item: &pb::CollectItem) -> Result<Value, Stop> {
        use pb::collect_item::Result as ItemResult;
        let planned = plan.iter().find(|planned| planned.number == item.number).cloned().unwrap_or_default();
        let mut value = json!({
            "number": item.number,
            "certificate_type": planned.certificate_type,
            "provider": planned.provider,
            "subject_role": planned.subject_role,
            "receipt": item.receipt.as_ref().map(answer::json_receipt),
        });
        let (name, result) = match &item.result {
            Some(ItemResult::Answer(answer)) => match answer.same_as {
                Some(number) => ("same_as", json!(number)),
                None => ("records", answer::json_records(&self.pool, &answer.records)?),
            },
            Some(ItemResult::Error(error)) => ("error", Refusal::of_message(error).json()),
            None => return Ok(value),
        };
        if let Some(value) = value.as_object_mut() {
            value.insert(name.to_owned(), result);
        }
        Ok(value)
    }

    async fn catalog(&mut self, what: CatalogWhat) -> Result<Exit, Stop> {
        let mut service = CatalogServiceClient::new(self.client.channel.clone());
        let (table, value) = match what {
            CatalogWhat::Types => {
                let found = service.list_certificate_types(pb::ListCertificateTypesRequest {}).await?.into_inner();
                certificate_types(&found.certificate_types)
            }
            CatalogWhat::Type { code } => {
                let found = service.get_certificate_type(pb::GetCertificateTypeRequest { code }).await?.into_inner();
                certificate_type(&found)
            }
            CatalogWhat::Matters => {
                matters(&service.list_matters(pb::ListMattersRequest {}).await?.into_inner().matters)
            }
            CatalogWhat::Grants { matter } => {
                let request = pb::ListGrantsRequest { matter: matter.unwrap_or_default() };
                grants(&service.list_grants(request).await?.into_inner().grants)
            }
        };
        if self.json {
            self.print_json(&value)?;
        } else {
            table.write(self.out, self.look)?;
        }
        Ok(Exit::Ok)
    }

    /// Says why the gateway refused, and where that is on record.
    fn refused(&mut self, status: &Status) -> Result<Exit, Failure> {
        use prost::Message as _;
        let refusal = Refusal::of(status);
        let receipt = (status.metadata().get_bin(crate::api::status::RECEIPT))
            .and_then(|value| value.to_bytes().ok())
            .and_then(|bytes| pb::Receipt::decode(bytes).ok());
        if self.json {
            let receipt = receipt.as_ref().map(answer::json_receipt);
            self.print_json(&json!({ "error": refusal.json(), "receipt": receipt }))?;
        } else {
            writeln!(self.out, "{}", self.look.paint(Tone::Bad, &refusal.line()))?;
            self.receipt(receipt.as_ref())?;
        }
        Ok(refusal.exit())
    }

    fn receipt(&mut self, receipt: Option<&pb::Receipt>) -> std::io::Result<()> {
        match receipt {
            Some(receipt) => {
                let line = format!("  recorded as {}", answer::receipt_line(receipt));
                writeln!(self.out, "{}", self.look.paint(Tone::Quiet, &line))
            }
            None => Ok(()),
        }
    }

    fn print_json(&mut self, value: &Value) -> std::io::Result<()> {
        serde_json::to_writer_pretty(&mut *self.out, value)?;
        writeln!(self.out)
    }
}

fn certificate_types(found: &[pb::CertificateTypeSummary]) -> (Table, Value) {
    let mut table = Table::new(&["certificate type", "名称", "name", "provider", "connected"]);
    for kind in found {
        let connected = if kind.connected { Cell::toned("yes", Tone::Good) } else { Cell::toned("no", Tone::Quiet) };
        let (code, zh, en) = (kind.code.clone(), kind.name_zh.clone(), kind.name_en.clone());
        table.row([code.into(), zh.into(), en.into(), kind.provider.clone().into(), connected]);
    }
    let value = found.iter().map(summary).collect();
    (table, value)
}

fn summary(kind: &pb::CertificateTypeSummary) -> Value {
    json!({
        "code": kind.code, "name_zh": kind.name_zh, "name_en": kind.name_en, "provider": kind.provider,
        "message": kind.message, "connected": kind.connected,
    })
}

fn certificate_type(found: &pb::GetCertificateTypeResponse) -> (Table, Value) {
    let mut table = Table::new(&["field", "字段", "label", "sensitivity"]);
    for field in &found.fields {
        let (path, zh, en) = (field.path.clone(), field.label_zh.clone(), field.label_en.clone());
        table.row([path.into(), zh.into(), en.into(), format!("L{}", field.sensitivity).into()]);
    }
    for (number, set) in found.lookup_sets.iter().enumerate() {
        for key in &set.keys {
            table.row([format!("key set {}", number + 1).into(), "".into(), key.from.clone().into(), "".into()]);
        }
    }
    for predicate in &found.predicates {
        let (name, zh, en) = (predicate.name.clone(), predicate.label_zh.clone(), predicate.label_en.clone());
        table.row([name.into(), zh.into(), en.into(), "verify".into()]);
    }
    let fields: Vec<_> = (found.fields.iter())
        .map(|field| {
            json!({ "path": field.path, "label_zh": field.label_zh, "label_en": field.label_en,
            "sensitivity": field.sensitivity })
        })
        .collect();
    let sets: Vec<Vec<_>> = (found.lookup_sets.iter())
        .map(|set| set.keys.iter().map(|key| json!({ "name": key.name, "from": key.from })).collect())
        .collect();
    let predicates: Vec<_> = (found.predicates.iter())
        .map(|predicate| {
            json!({ "name": predicate.name, "label_zh": predicate.label_zh, "label_en": predicate.label_en,
            "paths": predicate.paths })
        })
        .collect();
    let value = json!({
        "summary": found.summary.as_ref().map(summary), "fields": fields, "lookup_sets": sets, "predicates": predicates,
        "freshness_seconds": found.freshness_seconds,
    });
    (table, value)
}

fn matters(found: &[pb::Matter]) -> (Table, Value) {
    let mut table = Table::new(&["matter", "名称", "name", "lead", "legal basis"]);
    for matter in found {
        let (code, zh, en) = (matter.code.clone(), matter.name_zh.clone(), matter.name_en.clone());
        table.row([
            code.into(),
            zh.into(),
            en.into(),
            matter.lead.clone().into(),
            matter.legal_basis.join("; ").into(),
        ]);
    }
    let value = (found.iter())
        .map(|matter| {
            json!({ "code": matter.code, "name_zh": matter.name_zh, "name_en": matter.name_en,
            "lead": matter.lead, "legal_basis": matter.legal_basis })
        })
        .collect();
    (table, value)
}

fn grants(found: &[pb::Grant]) -> (Table, Value) {
    let mut table = Table::new(&["grant", "consumer", "roles", "mode", "fields", "until"]);
    for grant in found {
        let (id, consumer, mode) = (grant.id.clone(), grant.consumer.clone(), grant.mode.clone());
        let (roles, fields) = (grant.roles.join(", "), grant.fields.join(", "));
        let until = grant.valid_until.clone();
        table.row([id.into(), consumer.into(), roles.into(), mode.into(), fields.into(), until.into()]);
    }
    let value = (found.iter())
        .map(|grant| {
            json!({ "id": grant.id, "matter": grant.matter, "consumer": grant.consumer,
            "certificate_type": grant.certificate_type, "roles": grant.roles, "mode": grant.mode,
            "fields": grant.fields, "valid_from": grant.valid_from, "valid_until": grant.valid_until,
            "replaces": grant.replaces })
        })
        .collect();
    (table, value)
}
