//! Plays a matter: the platform collects for each consumer what the matter grants it, and shows every field.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use super::account::Ledger;
use super::population::{Person, Population};
use super::scene::Scene;
use crate::catalog::Catalog;
use crate::cli::answer::{self, Refusal};
use crate::cli::case::{Case, Subject};
use crate::cli::table::{Cell, Look, Table, Tone, Verdict};
use crate::cli::{Exit, Failure};
use crate::ids::DepartmentCode;
use crate::pb::gateway as pb;
use crate::pb::gateway::catalog_service_client::CatalogServiceClient;
use crate::pb::gateway::collect_item::Result as ItemResult;
use crate::pb::gateway::collect_response::Event;
use crate::pb::gateway::lookup_service_client::LookupServiceClient;

/// The matters that are played.
pub(super) const MATTERS: [&str; 4] =
    ["newborn_birth", "school_enrolment", "disability_services", "individual_to_enterprise"];

const TIMEOUT: Duration = Duration::from_secs(10);

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

/// Plays one matter for each consumer that it grants anything.
pub(super) async fn matter(
    scene: &Scene,
    code: &str,
    ledger: &mut Ledger,
    out: &mut dyn Write,
    look: Look,
) -> Result<Materials, Failure> {
    let case = case(&scene.population, &scene.catalog, code)?;
    let names = scene.catalog.matter(code).map(|matter| (matter.name_en.clone(), matter.name_zh.clone()));
    let (english, chinese) = names.unwrap_or_default();
    super::heading(out, look, &english, &chinese)?;

    let mut catalog = CatalogServiceClient::new(scene.platform.channel.clone());
    let grants = catalog.list_grants(pb::ListGrantsRequest { matter: code.to_owned() }).await?.into_inner().grants;
    let mut consumers: Vec<String> = Vec::new();
    for grant in grants {
        if !consumers.contains(&grant.consumer) {
            consumers.push(grant.consumer);
        }
    }
    let mut materials = Materials::default();
    for consumer in consumers {
        collect(scene, code, &case, &consumer.parse()?, &mut materials, ledger, out, look).await?;
    }
    let (avoided, demanded) = (materials.avoided(), materials.demanded());
    let names = materials.avoided.iter().cloned().collect::<Vec<_>>().join("、");
    let line = format!("{avoided} of {demanded} materials need not be brought: {names}");
    writeln!(out, "  {}", look.paint(if avoided > 0 { Tone::Good } else { Tone::Caution }, &line))?;

    // The same names in two matters are two materials.
    let of_matter = |names: BTreeSet<String>| names.into_iter().map(|name| format!("{code}: {name}")).collect();
    Ok(Materials { demanded: of_matter(materials.demanded), avoided: of_matter(materials.avoided) })
}

/// One `Collect`, and a table of what came.
#[expect(clippy::too_many_arguments, reason = "what is asked, for whom, and where it is noted")]
async fn collect(
    scene: &Scene,
    matter: &str,
    case: &Case,
    consumer: &DepartmentCode,
    materials: &mut Materials,
    ledger: &mut Ledger,
    out: &mut dyn Write,
    look: Look,
) -> Result<(), Failure> {
    let token = scene.platform.token(&case.token_for(consumer)?)?;
    let message = pb::CollectRequest {
        matter: matter.to_owned(),
        case_id: case.case_id.clone(),
        subjects: case.subjects(),
        certificate_types: Vec::new(),
    };
    let request = scene.platform.request(message, &token, TIMEOUT)?;
    let started = tokio::time::Instant::now();
    let mut service = LookupServiceClient::new(scene.platform.channel.clone());
    let mut stream = service.collect(request).await?.into_inner();
    let mut table = Table::new(&["certificate", "of", "from", "字段", "value", "decision", "why"]).limit(4, 36);
    let mut plan = Vec::new();
    while let Some(message) = stream.message().await? {
        match message.event {
            Some(Event::Plan(planned)) => {
                materials.demanded.extend(planned.items.iter().map(|item| item.replaces.clone()));
                plan = planned.items;
            }
            Some(Event::Item(item)) => {
                let planned = plan.iter().find(|planned| planned.number == item.number);
                let planned = planned.ok_or_else(|| Failure::new(Exit::Failed, "an item that was not planned"))?;
                if matches!(item.result, Some(ItemResult::Answer(_))) {
                    materials.avoided.insert(planned.replaces.clone());
                }
                rows(scene, planned, &item, &mut table)?;
                ledger.item(&item)?;
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

/// Why nothing came, in the words of the one who waits for it.
fn honest(refusal: &Refusal) -> String {
    let more = match refusal.reason.as_str() {
        "PROVIDER_NOT_CONNECTED" => "no source yet",
        "VERIFY_ONLY" => "Verify is not built yet",
        "SUBJECT_NOT_GIVEN" => "nobody in this role",
        "GRANT_EXPIRED" => "to be renewed",
        _ => refusal.message.as_str(),
    };
    format!("{}: {more}", refusal.reason)
}

/// The case of a matter: real roles, synthetic people.
pub(super) fn case(population: &Population, catalog: &Catalog, matter: &str) -> Result<Case, Failure> {
    let missing = || Failure::new(Exit::Failed, format!("the population has nobody for {matter}"));
    let (number, purpose, subjects) = match matter {
        "newborn_birth" => {
            let family = population.newborn_family().ok_or_else(missing)?;
            let child = family.children.first().ok_or_else(missing)?;
            let mut subjects = vec![born("child", &child.person), person("mother", &family.mother)];
            subjects.extend(family.father.as_ref().map(|father| person("father", father)));
            (1, "新生儿出生一件事", subjects)
        }
        "school_enrolment" => {
            let (family, child) = population.school_family().ok_or_else(missing)?;
            let subjects =
                vec![born("child", &child.person), person("guardian", family.head()), person("mother", &family.mother)];
            (2, "教育入学一件事", subjects)
        }
        "disability_services" => {
            let (_, found) = population.disabled_person().ok_or_else(missing)?;
            (3, "残疾人服务一件事", vec![person("applicant", found)])
        }
        "individual_to_enterprise" => {
            let business = population.converted_business().ok_or_else(missing)?;
            let operator = Subject {
                role: "operator".to_owned(),
                attributes: [
                    ("id_no".to_owned(), business.legal_representative_id_no.clone()),
                    ("name".to_owned(), business.legal_representative.clone()),
                ]
                .into(),
            };
            let entity = Subject {
                role: "entity".to_owned(),
                attributes: [
                    ("uscc".to_owned(), business.uscc.clone()),
                    ("name".to_owned(), business.entity_name.clone()),
                ]
                .into(),
            };
            (4, "个体工商户转型为企业一件事", vec![operator, entity])
        }
        _ => return Err(missing()),
    };
    let citation = catalog.matter(matter).and_then(|matter| matter.legal_basis.first().cloned());
    Ok(Case {
        matter: matter.to_owned(),
        case_id: format!("HS-DEMO-{number:06}"),
        citation: citation.unwrap_or_default(),
        consent: String::new(),
        purpose: purpose.to_owned(),
        subjects,
    })
}

fn person(role: &str, person: &Person) -> Subject {
    let attributes = [("id_no".to_owned(), person.id_no.clone()), ("name".to_owned(), person.name.clone())].into();
    Subject { role: role.to_owned(), attributes }
}

fn born(role: &str, child: &Person) -> Subject {
    let mut subject = person(role, child);
    subject.attributes.insert("birth_date".to_owned(), child.birth_date.to_string());
    subject
}
