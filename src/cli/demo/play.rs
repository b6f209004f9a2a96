//! Plays a matter: the platform collects for each consumer what the matter grants it, and shows every field.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use super::account::Ledger;
use super::cast;
use super::exact::{Exactness, Tally};
use super::scene::Scene;
use super::verify;
use crate::catalog::Matter;
use crate::cli::answer::{self, Refusal};
use crate::cli::case::Case;
use crate::cli::table::{Cell, Look, Table, Tone, Verdict};
use crate::cli::{Exit, Failure};
use crate::ids::DepartmentCode;
use crate::pb::gateway as pb;
use crate::pb::gateway::catalog_service_client::CatalogServiceClient;
use crate::pb::gateway::collect_item::Result as ItemResult;
use crate::pb::gateway::collect_response::Event;
use crate::pb::gateway::lookup_service_client::LookupServiceClient;

/// The matters that are played unless others are named.
pub(super) const MATTERS: [&str; 4] =
    ["newborn_birth", "school_enrolment", "disability_services", "individual_to_enterprise"];

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// Every field with its value.
    Fields,
    /// One line an item.
    Items,
}

pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// Materials that a matter demands, and those that need not be brought; each counts once per matter.
#[derive(Debug, Default)]
pub(super) struct Materials {
    demanded: BTreeSet<String>,
    avoided: BTreeSet<String>,
}

impl Materials {
    pub(super) fn demanded(&self) -> usize {
        self.demanded.len()
    }

    pub(super) fn avoided(&self) -> usize {
        self.avoided.len()
    }

    pub(super) fn add(&mut self, other: Self) {
        self.demanded.extend(other.demanded);
        self.avoided.extend(other.avoided);
    }
}

/// Plays one matter for each consumer that it grants anything, and holds every answer against the grants.
pub(super) async fn matter(
    scene: &Scene,
    matter: &Matter,
    detail: Detail,
    ledger: &mut Ledger,
    out: &mut dyn Write,
    look: Look,
) -> Result<(Materials, Tally), Failure> {
    let case = cast::case(&scene.population, matter)?;
    let code = matter.code.as_str();
    super::heading(out, look, &matter.name_en, &matter.name_zh)?;

    let mut catalog = CatalogServiceClient::new(scene.platform.channel.clone());
    let grants = catalog.list_grants(pb::ListGrantsRequest { matter: code.to_owned() }).await?.into_inner().grants;
    let mut consumers: Vec<String> = Vec::new();
    for grant in &grants {
        if !consumers.contains(&grant.consumer) {
            consumers.push(grant.consumer.clone());
        }
    }
    let mut materials = Materials::default();
    let mut exactness = Exactness::new(scene, grants, &case.subjects());
    for consumer in consumers {
        let heard = Heard { materials: &mut materials, exactness: &mut exactness, ledger };
        collect(scene, &case, &consumer.parse()?, detail, heard, out, look).await?;
        let heard = Heard { materials: &mut materials, exactness: &mut exactness, ledger };
        compare(scene, &case, &consumer, detail, heard, out, look).await?;
    }
    let (tally, faults) = exactness.finish();
    for fault in faults {
        writeln!(out, "  {}", look.paint(Tone::Bad, &fault))?;
        ledger.fault(fault);
    }
    let (avoided, demanded) = (materials.avoided(), materials.demanded());
    let names = materials.avoided.iter().cloned().collect::<Vec<_>>().join("、");
    let line = format!("{avoided} of {demanded} materials need not be brought: {names}");
    writeln!(out, "  {}", look.paint(if avoided > 0 { Tone::Good } else { Tone::Caution }, &line))?;

    // The same names in two matters are two materials.
    let of_matter = |names: BTreeSet<String>| names.into_iter().map(|name| format!("{code}: {name}")).collect();
    Ok((Materials { demanded: of_matter(materials.demanded), avoided: of_matter(materials.avoided) }, tally))
}

/// Where what comes is noted.
struct Heard<'a, 'b> {
    materials: &'a mut Materials,
    exactness: &'a mut Exactness<'b>,
    ledger: &'a mut Ledger,
}

/// One `Collect`, and a table of what came.
async fn collect(
    scene: &Scene,
    case: &Case,
    consumer: &DepartmentCode,
    detail: Detail,
    heard: Heard<'_, '_>,
    out: &mut dyn Write,
    look: Look,
) -> Result<(), Failure> {
    let token = scene.platform.token(&case.token_for(consumer)?)?;
    let message = pb::CollectRequest {
        matter: case.matter.clone(),
        case_id: case.case_id.clone(),
        subjects: case.subjects(),
        certificate_types: Vec::new(),
    };
    let request = scene.platform.request(message, &token, TIMEOUT)?;
    let started = tokio::time::Instant::now();
    let mut service = LookupServiceClient::new(scene.platform.channel.clone());
    let mut stream = service.collect(request).await?.into_inner();
    let mut table = match detail {
        Detail::Fields => Table::new(&["certificate", "of", "from", "字段", "value", "decision", "why"]).limit(4, 36),
        Detail::Items => Table::new(&["certificate", "of", "from", "fields", "masked", "withheld", "answer"]),
    };
    let mut plan = Vec::new();
    while let Some(message) = stream.message().await? {
        match message.event {
            Some(Event::Plan(planned)) => {
                heard.materials.demanded.extend(planned.items.iter().map(|item| item.replaces.clone()));
                plan = planned.items;
            }
            Some(Event::Item(item)) => {
                let planned = plan.iter().find(|planned| planned.number == item.number);
                let planned = planned.ok_or_else(|| Failure::new(Exit::Failed, "an item that was not planned"))?;
                if matches!(item.result, Some(ItemResult::Answer(_))) {
                    heard.materials.avoided.insert(planned.replaces.clone());
                }
                match detail {
                    Detail::Fields => rows(scene, planned, &item, &mut table)?,
                    Detail::Items => row(scene, planned, &item, &mut table)?,
                }
                heard.exactness.item(consumer.as_str(), planned, &item)?;
                heard.ledger.item(&item)?;
            }
            Some(Event::Summary(_)) | None => {}
        }
    }
    let took = started.elapsed();
    let department = scene.catalog.department(consumer);
    let name = department.map(|found| format!("{} {}", found.name_en, found.name_zh)).unwrap_or_default();
    let title = format!("{consumer} {name}");
    writeln!(out, "{}  {}", look.paint(Tone::Heading, &title), look.paint(Tone::Quiet, &format!("{took:.1?}")))?;
    table.write(out, look)?;
    Ok(())
}

/// Every grant to a consumer that only compares, asked with the truth and with a lie, and a table of what came.
async fn compare(
    scene: &Scene,
    case: &Case,
    consumer: &str,
    detail: Detail,
    heard: Heard<'_, '_>,
    out: &mut dyn Write,
    look: Look,
) -> Result<(), Failure> {
    let grants = heard.exactness.comparing(consumer);
    if grants.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["compared", "of", "from", "claim", "the truth", "one lie"]);
    for grant in grants {
        let played = verify::grant(scene, case, &grant).await?;
        heard.exactness.played(&grant, played.as_ref());
        let Some(played) = played else { continue };
        heard.ledger.verification(&played.truth);
        heard.ledger.verification(&played.lie);
        if played.is_right() {
            heard.materials.avoided.insert(grant.replaces.clone());
        }
        let kind = scene.catalog.certificate_type(&grant.certificate_type);
        let provider = kind.map(|kind| kind.provider.to_string()).unwrap_or_default();
        let mut head: [Cell; 3] = [grant.certificate_type.into(), played.role.clone().into(), provider.into()];
        let results = |answer: &Result<pb::VerifyResponse, tonic::Status>| match answer {
            Ok(answer) => answer.comparisons.iter().map(|found| answer::result_cell(found.result())).collect(),
            Err(status) => vec![Refusal::of(status).cell()],
        };
        let (truth, lie) = (results(&played.truth), results(&played.lie));
        let claims = played.truth.as_ref().map(|answer| answer.comparisons.as_slice()).unwrap_or_default();
        let names: Vec<_> = match detail {
            Detail::Fields => claims.iter().map(|claim| claim.path.clone()).collect(),
            Detail::Items => vec![claims.iter().map(|claim| claim.path.as_str()).collect::<Vec<_>>().join(" ")],
        };
        for ((name, truth), lie) in names.into_iter().zip(truth).zip(lie) {
            let [certificate, role, provider] = std::mem::take(&mut head);
            table.row([certificate, role, provider, name.into(), truth, lie]);
        }
    }
    table.write(out, look)?;
    Ok(())
}

fn rows(scene: &Scene, planned: &pb::PlannedItem, item: &pb::CollectItem, table: &mut Table) -> Result<(), Failure> {
    let pb::PlannedItem { certificate_type, subject_role, provider, .. } = planned.clone();
    let mut head: [Cell; 3] = [certificate_type.into(), subject_role.into(), provider.into()];
    let mut row = |label: Cell, value: Cell, verdict: Verdict, why: String| {
        let [certificate, role, provider] = std::mem::take(&mut head);
        table.row([certificate, role, provider, label, value, verdict.into(), why.into()]);
    };
    match &item.result {
        Some(ItemResult::Answer(answer)) if answer.same_as.is_some() => {
            let why = format!("the same record as item {}", answer.same_as.unwrap_or_default());
            row("".into(), "".into(), Verdict::Released, why);
        }
        Some(ItemResult::Answer(answer)) => {
            for record in &answer.records {
                for line in answer::lines(&scene.pool, record)? {
                    row(line.label.into(), line.value.into(), line.verdict, line.why);
                }
            }
        }
        Some(ItemResult::Error(error)) => {
            let why = honest(&Refusal::of_message(error));
            row("".into(), "".into(), Verdict::Withheld, why);
        }
        None => {}
    }
    Ok(())
}

/// One line an item: how many fields came in which form.
fn row(scene: &Scene, planned: &pb::PlannedItem, item: &pb::CollectItem, table: &mut Table) -> Result<(), Failure> {
    let mut counts = [0_usize; 3];
    let said = match &item.result {
        Some(ItemResult::Answer(answer)) if answer.same_as.is_some() => {
            format!("the same record as item {}", answer.same_as.unwrap_or_default())
        }
        Some(ItemResult::Answer(answer)) => {
            for record in &answer.records {
                for line in answer::lines(&scene.pool, record)? {
                    let place = match line.verdict {
                        Verdict::Released => 0,
                        Verdict::Masked => 1,
                        Verdict::Withheld => 2,
                    };
                    if let Some(count) = counts.get_mut(place) {
                        *count += 1;
                    }
                }
            }
            match answer.records.len() {
                1 => "1 record".to_owned(),
                many => format!("{many} records"),
            }
        }
        Some(ItemResult::Error(error)) => honest(&Refusal::of_message(error)),
        None => String::new(),
    };
    let pb::PlannedItem { certificate_type, subject_role, provider, .. } = planned.clone();
    let count = |count: usize| Cell::from(if count == 0 { String::new() } else { count.to_string() });
    let [released, masked, withheld] = counts.map(count);
    table.row([certificate_type.into(), subject_role.into(), provider.into(), released, masked, withheld, said.into()]);
    Ok(())
}

/// Why nothing came, in the words of the one who waits for it.
fn honest(refusal: &Refusal) -> String {
    let more = match refusal.reason.as_str() {
        "PROVIDER_NOT_CONNECTED" => "no source yet",
        "VERIFY_ONLY" => "to be compared, see below",
        "SUBJECT_NOT_GIVEN" => "nobody in this role",
        "GRANT_EXPIRED" => "to be renewed",
        _ => refusal.message.as_str(),
    };
    format!("{}: {more}", refusal.reason)
}
