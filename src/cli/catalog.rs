//! `oncegate catalog`: certificate types and matters of a deployment, offline, and the compiler for a department's own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use protox::Compiler;
use protox::file::{ChainFileResolver, DescriptorSetFileResolver, GoogleFileResolver, IncludeFileResolver};
use serde_json::{Value, json};

use super::table::{Cell, Look, Table, Tone};
use super::{Exit, Failure};
use crate::catalog::{Catalog, CertificateType, Department, Faults, Matter, SharingClass};
use crate::config::Config;
use crate::policy::{Grant, Policy, check_masks};

/// Lists and shows certificate types and matters; compiles a department's own types.
#[derive(Debug, Args)]
pub struct CatalogArgs {
    #[command(subcommand)]
    command: CatalogCommand,
}

#[derive(Debug, Subcommand)]
enum CatalogCommand {
    /// Lists the certificate types and the matters.
    List(Source),
    /// Shows one certificate type with its fields, or one matter with its grants.
    Show {
        /// Code of a certificate type or a matter.
        code: String,
        #[command(flatten)]
        source: Source,
    },
    /// Compiles `.proto` files with certificate types into a descriptor set that a gateway loads.
    Build {
        /// The files; each imports `oncegate/records/v1/options.proto`, which the program carries.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Where imports are looked for besides; the files' own folders are.
        #[arg(long, value_name = "DIR")]
        include: Vec<PathBuf>,
        /// Where the descriptor set goes.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The deployment whose departments the types may name.
        #[arg(long, value_name = "FILE", default_value = "deploy/heshan/gateway.toml")]
        config: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Source {
    /// The deployment.
    #[arg(long, value_name = "FILE", default_value = "deploy/heshan/gateway.toml")]
    config: PathBuf,
    /// Writes JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CatalogArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let look = Look::stdout();
    match &args.command {
        CatalogCommand::List(source) => {
            let (catalog, policy) = load(&source.config)?;
            if source.json { list_json(&catalog, out) } else { list(&catalog, &policy, out, look) }?;
        }
        CatalogCommand::Show { code, source } => {
            let (catalog, policy) = load(&source.config)?;
            match (catalog.certificate_type(code), catalog.matter(code)) {
                (Some(kind), _) if source.json => writeln!(out, "{:#}", type_json(kind))?,
                (Some(kind), _) => show_type(kind, &policy, out, look)?,
                (None, Some(matter)) if source.json => writeln!(out, "{:#}", matter_json(matter))?,
                (None, Some(matter)) => show_matter(matter, &catalog, &policy, out, look)?,
                (None, None) => {
                    let what = format!("no certificate type and no matter `{code}`; see `oncegate catalog list`");
                    return Err(Failure::new(Exit::Usage, what));
                }
            }
        }
        CatalogCommand::Build { files, include, out: to, config } => {
            // Not the catalog: a set that is to be made anew may be the faulty one.
            let departments = Catalog::read_departments(&Config::load(config)?.policy.bundle)?;
            let (set, types) = build(files, include, departments)?;
            std::fs::write(to, &set)?;
            for kind in types {
                let line = format!("{} {} {} ({} fields)", kind.code, kind.name_zh, kind.name_en, kind.leaves.len());
                writeln!(out, "  {}", look.paint(Tone::Good, &line))?;
            }
            writeln!(out, "  {} bytes in {}", set.len(), to.display())?;
        }
    }
    Ok(Exit::Ok)
}

fn load(config: &Path) -> Result<(Arc<Catalog>, Policy), Failure> {
    let policy = Policy::open(&Config::load(config)?.policy.bundle)?;
    Ok((policy.catalog().clone(), policy))
}

/// Compiles certificate types: a descriptor set with all that it imports and where each declaration stands, and the types
/// in it, checked as the gateway checks them.
///
/// # Errors
/// What the compiler refuses, with file, line and column; or every rule of the catalog that a type breaks.
pub fn build(
    files: &[PathBuf],
    include: &[PathBuf],
    departments: Vec<Department>,
) -> Result<(Vec<u8>, Vec<CertificateType>), Failure> {
    let refused = |error: protox::Error| Failure::new(Exit::Config, format!("{error:?}"));
    let mut resolver = ChainFileResolver::new();
    resolver.add(DescriptorSetFileResolver::decode(crate::pb::DESCRIPTOR_SET)?);
    resolver.add(GoogleFileResolver::new());
    let mut names: Vec<PathBuf> = Vec::new();
    for file in files {
        let (folder, name) = (file.parent().unwrap_or(Path::new("")), file.file_name().unwrap_or_default());
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        resolver.add(IncludeFileResolver::new(folder.to_owned()));
        // Imports and reflection know a file by its name alone.
        if names.iter().any(|other| other.as_os_str() == name) {
            let mut faults = Faults::default();
            faults.of(file, "another file has the same name; give each its own");
            return Err(faults.into());
        }
        names.push(PathBuf::from(name));
    }
    for folder in include {
        resolver.add(IncludeFileResolver::new(folder.clone()));
    }
    let mut compiler = Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(true).open_files(&names).map_err(refused)?;
    let set = compiler.encode_file_descriptor_set();
    let catalog = Catalog::from_parts(&[crate::pb::DESCRIPTOR_SET, &set], departments, Vec::new())?;
    let mut faults = Faults::default();
    check_masks(&catalog, &mut faults);
    faults.or(())?;
    let own = |kind: &&Arc<CertificateType>| {
        let message = catalog.pool().get_message_by_name(&kind.message);
        message.is_some_and(|message| names.iter().any(|name| name.as_os_str() == message.parent_file().name()))
    };
    let types: Vec<_> = catalog.certificate_types().filter(own).map(|kind| (**kind).clone()).collect();
    if types.is_empty() {
        let mut faults = Faults::default();
        for file in files {
            faults.of(file, "no message has the option (oncegate.records.v1.certificate_type)");
        }
        return Err(faults.into());
    }
    Ok((set, types))
}

fn list(catalog: &Catalog, policy: &Policy, out: &mut dyn Write, look: Look) -> std::io::Result<()> {
    let mut types = Table::new(&["certificate type", "证照类型", "from", "sharing", "fields", "keys", "grants"]);
    for kind in catalog.certificate_types() {
        let grants = policy.grants().filter(|grant| grant.certificate_type == kind.code).count();
        let sets: Vec<_> = kind.lookup_sets.iter().map(|set| keys(set).join("+")).collect();
        types.row([
            kind.code.clone().into(),
            kind.name_zh.clone().into(),
            kind.provider.to_string().into(),
            sharing(kind.sharing).into(),
            kind.leaves.len().to_string().into(),
            sets.join(", ").into(),
            grants.to_string().into(),
        ]);
    }
    types.write(out, look)?;
    writeln!(out)?;
    let mut matters = Table::new(&["matter", "一件事", "list", "lead", "taking part", "grants"]);
    for matter in catalog.matters() {
        let others: Vec<_> = matter.participants().skip(1).map(ToString::to_string).collect();
        let grants = policy.grants().filter(|grant| grant.matter == matter.code).count();
        matters.row([
            matter.code.clone().into(),
            matter.name_zh.clone().into(),
            matter.batch.clone().into(),
            matter.lead.to_string().into(),
            others.join(" ").into(),
            grants.to_string().into(),
        ]);
    }
    matters.write(out, look)
}

fn list_json(catalog: &Catalog, out: &mut dyn Write) -> std::io::Result<()> {
    let types: Vec<_> = catalog.certificate_types().map(|kind| type_json(kind)).collect();
    let matters: Vec<_> = catalog.matters().map(|matter| matter_json(matter)).collect();
    writeln!(out, "{:#}", json!({ "certificate_types": types, "matters": matters }))
}

fn show_type(kind: &CertificateType, policy: &Policy, out: &mut dyn Write, look: Look) -> std::io::Result<()> {
    let title = format!("{} · {} · {}", kind.code, kind.name_zh, kind.name_en);
    writeln!(out, "{}", look.paint(Tone::Heading, &title))?;
    let many = if kind.many { "several records" } else { "one record" };
    let fresh = kind.freshness.as_secs();
    writeln!(out, "  from {}, {}, {many}, kept {fresh} s at most", kind.provider, sharing(kind.sharing))?;
    for set in &kind.lookup_sets {
        let keys: Vec<_> =
            set.keys.iter().map(|key| format!("{} ← {}.{}", key.name, key.role, key.attribute)).collect();
        writeln!(out, "  found by {}", keys.join(", "))?;
    }
    let mut fields = Table::new(&["field", "字段", "label", "level", "kind", "mask", "share"]);
    for (index, leaf) in kind.leaves.iter().enumerate() {
        let share = match (kind.never.contains(index), kind.verify_only.contains(index)) {
            (true, _) => Cell::toned("nobody", Tone::Bad),
            (_, true) => Cell::toned("compare only", Tone::Caution),
            _ => "".into(),
        };
        fields.row([
            leaf.path.clone().into(),
            leaf.label_zh.clone().into(),
            leaf.label_en.clone().into(),
            format!("L{}", leaf.sensitivity).into(),
            format!("{:?}", leaf.kind).into(),
            leaf.mask.clone().unwrap_or_default().into(),
            share,
        ]);
    }
    fields.write(out, look)?;
    if !kind.predicates.is_empty() {
        let mut predicates = Table::new(&["predicate", "结论", "label", "drawn from"]);
        for predicate in &kind.predicates {
            let inputs: Vec<_> = predicate.inputs.iter().map(|leaf| kind.path(leaf)).collect();
            let (name, zh, en) = (predicate.name.clone(), predicate.label_zh.clone(), predicate.label_en.clone());
            predicates.row([name.into(), zh.into(), en.into(), inputs.join(" ").into()]);
        }
        predicates.write(out, look)?;
    }
    let mut granted = Table::new(&["matter", "consumer", "roles", "mode", "fields"]).limit(4, 70);
    for grant in policy.grants().filter(|grant| grant.certificate_type == kind.code) {
        granted.row([
            grant.matter.clone().into(),
            grant.consumer.to_string().into(),
            grant.roles.join(" ").into(),
            grant.mode.name().into(),
            paths(kind, grant).join(" ").into(),
        ]);
    }
    if granted.is_empty() { writeln!(out, "  granted to nobody") } else { granted.write(out, look) }
}

fn show_matter(
    matter: &Matter,
    catalog: &Catalog,
    policy: &Policy,
    out: &mut dyn Write,
    look: Look,
) -> std::io::Result<()> {
    let title = format!("{} · {} · {}", matter.code, matter.name_zh, matter.name_en);
    writeln!(out, "{}", look.paint(Tone::Heading, &title))?;
    let others: Vec<_> = matter.participants().skip(1).map(ToString::to_string).collect();
    writeln!(out, "  lead {}, with {}", matter.lead, others.join(", "))?;
    writeln!(out, "  legal basis: {}", matter.legal_basis.join("、"))?;
    writeln!(out, "  items: {}", matter.linked_items.join("、"))?;
    let mut grants = Table::new(&["consumer", "certificate", "from", "roles", "mode", "fields", "replaces", "until"]);
    grants = grants.limit(5, 60);
    for grant in policy.grants().filter(|grant| grant.matter == matter.code) {
        let fields = catalog.certificate_type(&grant.certificate_type).map(|kind| paths(kind, grant).join(" "));
        grants.row([
            grant.consumer.to_string().into(),
            grant.certificate_type.clone().into(),
            grant.provider.to_string().into(),
            grant.roles.join(" ").into(),
            grant.mode.name().into(),
            fields.unwrap_or_default().into(),
            grant.replaces.clone().into(),
            grant.valid_until.to_string().into(),
        ]);
    }
    grants.write(out, look)
}

fn paths(kind: &CertificateType, grant: &Grant) -> Vec<String> {
    let masked = |leaf| grant.masks.iter().find(|(_, fields)| fields.contains(leaf)).map(|(mask, _)| mask.name());
    let path = |leaf| match masked(leaf) {
        Some(mask) => format!("{}({mask})", kind.path(leaf)),
        None => kind.path(leaf).to_owned(),
    };
    grant.fields.iter().map(path).collect()
}

fn keys(set: &crate::catalog::LookupSet) -> Vec<&str> {
    set.keys.iter().map(|key| key.name.as_str()).collect()
}

const fn sharing(class: SharingClass) -> &'static str {
    match class {
        SharingClass::Unconditional => "unconditional 无条件共享",
        SharingClass::Conditional => "conditional 有条件共享",
        SharingClass::None => "none 不予共享",
    }
}

fn type_json(kind: &CertificateType) -> Value {
    let field = |(index, leaf): (usize, &crate::catalog::Leaf)| {
        json!({
            "path": leaf.path, "label_zh": leaf.label_zh, "label_en": leaf.label_en, "sensitivity": leaf.sensitivity,
            "kind": format!("{:?}", leaf.kind), "mask": leaf.mask,
            "never_shared": kind.never.contains(index), "verify_only": kind.verify_only.contains(index),
        })
    };
    let predicate = |predicate: &crate::catalog::Predicate| {
        json!({
            "name": predicate.name, "label_zh": predicate.label_zh, "label_en": predicate.label_en,
            "paths": predicate.inputs.iter().map(|leaf| kind.path(leaf)).collect::<Vec<_>>(),
        })
    };
    json!({
        "code": kind.code, "name_zh": kind.name_zh, "name_en": kind.name_en, "provider": kind.provider.to_string(),
        "message": kind.message, "sharing_class": sharing(kind.sharing), "several_records": kind.many,
        "freshness_seconds": kind.freshness.as_secs(), "subject_minor": kind.subject_minor,
        "lookup_sets": kind.lookup_sets.iter().map(keys).collect::<Vec<_>>(),
        "fields": kind.leaves.iter().enumerate().map(field).collect::<Vec<_>>(),
        "predicates": kind.predicates.iter().map(predicate).collect::<Vec<_>>(),
    })
}

fn matter_json(matter: &Matter) -> Value {
    json!({
        "code": matter.code, "name_zh": matter.name_zh, "name_en": matter.name_en, "batch": matter.batch,
        "lead": matter.lead.to_string(),
        "participants": matter.participants().map(ToString::to_string).collect::<Vec<_>>(),
        "linked_items": matter.linked_items, "legal_basis": matter.legal_basis,
    })
}
