//! The rules that every grant obeys, checked at load. All faults of all files are found at once, each with its line.
//!
//! A grant
//! - stands in the file of its matter and of the department that provides its certificate type;
//! - names a consumer other than that department, no more than the consumer's kind may have, and for a utility or a bank
//!   the provider's consent (Decree 809, art. 2, 25);
//! - states 使用依据、场景、范围、方式、时限 (art. 20); the basis is the matter's where it states none, but a type that is
//!   不予共享 needs a citation of its own;
//! - names fields one by one or by their parent, none that the catalog lets nobody have, and those that may only be
//!   compared only to compare;
//! - masks only what it gives, with masks no weaker than the catalog's, and so that nothing else reveals what they hide;
//! - names conditions of the vocabulary that its certificate type can be asked for.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use time::Date;
use time::macros::format_description;
use toml::Spanned;

use super::cells;
use super::facts::{FactSet, Stage, Vocabulary};
use super::file::{DenyEntry, GrantEntry, GrantFile, GrantsTable};
use super::grant::{Deny, Grant, Mode, is_third_party};
use super::mask::Mask;
use crate::catalog::{Catalog, CertificateType, ConsumerKind, Faults, Fields, Matter, ROLES, SharingClass, Wire};
use crate::ids::DepartmentCode;

/// What grants may name.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) types: BTreeMap<String, Arc<CertificateType>>,
    pub(super) matters: BTreeMap<String, Arc<Matter>>,
    pub(super) departments: BTreeMap<String, (DepartmentCode, ConsumerKind)>,
}

impl Known {
    /// All but the facts, which are checked against it first.
    pub(super) fn of(catalog: &Catalog) -> Self {
        Self {
            vocabulary: Arc::default(),
            types: catalog.certificate_types().map(|ty| (ty.code.clone(), Arc::clone(ty))).collect(),
            matters: catalog.matters().map(|matter| (matter.code.clone(), Arc::clone(matter))).collect(),
            departments: (catalog.departments())
                .map(|department| (department.code.to_string(), (department.code.clone(), department.kind)))
                .collect(),
        }
    }
}

/// Grants and denies of all files; only meaningful if no fault was added.
pub(super) fn check(files: &[GrantFile], known: &Known, faults: &mut Faults) -> Checked {
    let mut checked = Checked::default();
    for (index, file) in files.iter().enumerate() {
        if let Some(table) = file.parse(faults) {
            FileCheck { file, index, known, faults }.table(&table, &mut checked);
        }
    }
    cells::check(&checked.grants, &checked.denies, files, known, faults);
    checked
}

/// What the files say.
#[derive(Default)]
pub(super) struct Checked {
    /// Each with its place: index of the file and offset in it.
    pub(super) grants: Vec<(Arc<Grant>, (usize, usize))>,
    pub(super) denies: Vec<Deny>,
    /// Where pseudonyms are granted, each a fault if there is no key.
    pub(super) pseudonyms: Faults,
    /// Every id of a grant or deny, with the file that has it.
    ids: HashMap<String, String>,
}

/// Checks one file.
struct FileCheck<'a> {
    file: &'a GrantFile,
    index: usize,
    known: &'a Known,
    faults: &'a mut Faults,
}

impl FileCheck<'_> {
    fn table(&mut self, table: &GrantsTable, checked: &mut Checked) {
        for (what, stated, of_path) in
            [("matter", &table.matter, &self.file.matter), ("provider", &table.provider, &self.file.provider)]
        {
            if stated.get_ref() != of_path {
                self.fault(stated.span(), format!("{what} is `{}`, but the path says `{of_path}`", stated.get_ref()));
            }
        }
        let matter = self.lookup("matter", &table.matter, |known| &known.matters);
        let provider = self.lookup("department", &table.provider, |known| &known.departments).map(|(code, _)| code);
        let (Some(matter), Some(provider)) = (matter, provider) else { return };

        let head = self.facts(&table.when);
        for entry in &table.grant {
            self.id("grant", &entry.get_ref().id, entry.span(), checked);
            for name in entry.get_ref().mask.values().filter(|name| name.get_ref() == Mask::Pseudonym.name()) {
                let message = "a pseudonym needs [policy] pseudonym_key: the file with its key";
                checked.pseudonyms.at(&self.file.path, &self.file.text, name.span().start, message);
            }
            for grant in self.grants(entry, head, &matter, &provider) {
                checked.grants.push((Arc::new(grant), (self.index, entry.span().start)));
            }
        }
        for entry in &table.deny {
            self.id("deny", &entry.get_ref().id, entry.span(), checked);
            if let Some(deny) = self.deny(entry, &matter, &provider) {
                checked.denies.push(deny);
            }
        }
    }

    /// The grant, once for each consumer: `kind:bank` stands for every bank that takes part in the matter.
    fn grants(
        &mut self,
        entry: &Spanned<GrantEntry>,
        head: FactSet,
        matter: &Matter,
        provider: &DepartmentCode,
    ) -> Vec<Grant> {
        let consumers = self.consumers(entry.get_ref(), matter, &entry.span());
        let Some(grant) = self.grant(entry, head, matter, provider, &consumers) else { return Vec::new() };
        let single = consumers.len() == 1;
        let to = |consumer: DepartmentCode| {
            let id = if single { Arc::clone(&grant.id) } else { format!("{}.{consumer}", grant.id).into() };
            Grant { id, consumer, ..grant.clone() }
        };
        consumers.into_iter().map(|(consumer, _)| to(consumer)).collect()
    }

    fn grant(
        &mut self,
        entry: &Spanned<GrantEntry>,
        head: FactSet,
        matter: &Matter,
        provider: &DepartmentCode,
        consumers: &[(DepartmentCode, ConsumerKind)],
    ) -> Option<Grant> {
        let (here, entry) = (entry.span(), entry.get_ref());
        for (what, stated) in [("scene (使用场景)", &entry.scene), ("replaces", &entry.replaces)] {
            if stated.trim().is_empty() {
                self.fault(here.clone(), format!("{what} is missing"));
            }
        }
        let exemption = self.required("exemption", entry.exemption.as_ref(), &here);
        if let Some(exemption) = exemption
            && !matches!(exemption.get_ref().as_str(), "1" | "2" | "3" | "4" | "5")
        {
            self.fault(exemption.span(), "exemption (免提交方式) is `1` to `5`");
        }
        self.roles(entry, &here);
        let valid_from = self.date("valid_from", entry.valid_from.as_ref(), &here);
        let valid_until = self.date("valid_until (使用时限)", entry.valid_until.as_ref(), &here);
        if let (Some(from), Some(until)) = (valid_from, valid_until)
            && from > until
        {
            self.fault(here.clone(), "valid_from is after valid_until");
        }
        let mode = self.required("mode (共享方式)", entry.mode.as_ref(), &here).and_then(|mode| {
            let found = Mode::named(mode.get_ref());
            if found.is_none() {
                self.fault(mode.span(), unknown("mode", mode.get_ref(), Mode::ALL.iter().map(|mode| mode.name())));
            }
            found
        });
        for (consumer, kind) in consumers {
            self.consumer_may(entry, consumer, *kind, mode, provider, &here);
        }
        let certificate_type = self.certificate_type(entry.certificate_type.as_ref(), provider, &here);
        let legal_basis = self.legal_basis(entry, matter, certificate_type.as_deref(), &here);
        let (certificate_type, mode) = (certificate_type?, mode?);
        let fields = self.grant_fields(entry, &certificate_type, mode, &here);
        let masks = self.masks(entry, &certificate_type, mode, fields);
        let when = head | self.facts(&entry.when);
        self.decidable(when, &certificate_type, entry.when.first().map_or(here, Spanned::span));
        Some(Grant {
            id: entry.id.as_str().into(),
            consumer: consumers.first()?.0.clone(),
            provider: provider.clone(),
            matter: matter.code.clone(),
            certificate_type: certificate_type.code.clone(),
            roles: entry.roles.iter().map(|role| role.get_ref().clone()).collect(),
            mode,
            fields,
            masks,
            when,
            valid_from: valid_from?,
            valid_until: valid_until?,
            replaces: entry.replaces.clone(),
            exemption: exemption?.get_ref().clone(),
            legal_basis,
            scene: entry.scene.clone(),
            provider_consent: entry.provider_consent.clone(),
        })
    }

    fn deny(&mut self, entry: &Spanned<DenyEntry>, matter: &Matter, provider: &DepartmentCode) -> Option<Deny> {
        let (here, entry) = (entry.span(), entry.get_ref());
        if entry.reason.trim().is_empty() {
            self.fault(here.clone(), "reason is missing");
        }
        if entry.consumers.is_empty() {
            self.fault(here.clone(), "consumers is missing; `[\"*\"]` is for everybody");
        }
        let everybody = entry.consumers.iter().any(|consumer| consumer.get_ref() == "*");
        let consumers: Vec<_> = (entry.consumers.iter())
            .filter(|consumer| consumer.get_ref() != "*")
            .filter_map(|consumer| self.lookup("department", consumer, |known| &known.departments))
            .map(|(code, _)| code)
            .collect();
        let certificate_type = self.certificate_type(entry.certificate_type.as_ref(), provider, &here)?;
        if entry.fields.is_empty() {
            self.fault(here.clone(), "fields is missing; `[\"*\"]` is for all");
        }
        let when = self.facts(&entry.when);
        self.decidable(when, &certificate_type, entry.when.first().map_or(here, Spanned::span));
        let mut fields = Fields::EMPTY;
        for path in &entry.fields {
            fields |= if path.get_ref() == "*" { certificate_type.all() } else { self.path(path, &certificate_type) };
        }
        // What may not be had may not be concluded from either.
        let fields = certificate_type.with_conclusions(fields);
        Some(Deny {
            consumers: (!everybody).then_some(consumers),
            matter: matter.code.clone(),
            certificate_type: certificate_type.code.clone(),
            fields,
            when,
        })
    }

    /// The facts of a `when`.
    fn facts(&mut self, names: &[Spanned<String>]) -> FactSet {
        let mut facts = FactSet::EMPTY;
        for name in names {
            let vocabulary = Arc::clone(&self.known.vocabulary);
            match vocabulary.index(name.get_ref()) {
                Some(fact) if facts.contains(fact) => self.fault(name.span(), format!("`{}` twice", name.get_ref())),
                Some(fact) => facts |= FactSet::one(fact),
                None => {
                    let names = vocabulary.facts().iter().map(|fact| &*fact.name);
                    self.fault(name.span(), unknown("fact", name.get_ref(), names));
                }
            }
        }
        facts
    }

    /// A condition on the record must be one that the type's records can be asked for.
    fn decidable(&mut self, when: FactSet, certificate_type: &CertificateType, here: Range<usize>) {
        let vocabulary = Arc::clone(&self.known.vocabulary);
        for fact in when.iter().filter_map(|fact| vocabulary.get(fact)) {
            if fact.stage() == Stage::Record && fact.inputs(&certificate_type.code).is_empty() {
                let message = format!("facts.toml names no path of `{}` for `{}`", certificate_type.code, fact.name);
                self.fault(here.clone(), message);
            }
        }
    }

    fn id(&mut self, what: &str, id: &str, here: Range<usize>, checked: &mut Checked) {
        let form = (1..=96).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if !form {
            self.fault(here, format!("the {what}'s id has 1 to 96 letters, digits, `.`, `_` or `-`"));
        } else if let Some(other) = checked.ids.insert(id.to_owned(), self.file.relative()) {
            self.fault(here, format!("id `{id}` stands already in {other}"));
        }
    }

    fn roles(&mut self, entry: &GrantEntry, here: &Range<usize>) {
        if entry.roles.is_empty() {
            self.fault(here.clone(), "roles is missing");
        }
        for role in &entry.roles {
            if !ROLES.contains(&role.get_ref().as_str()) {
                self.fault(role.span(), unknown("role", role.get_ref(), ROLES.into_iter()));
            }
        }
    }

    /// Who is granted something: a department by its code, or all organisations of a kind that take part in the matter.
    fn consumers(
        &mut self,
        entry: &GrantEntry,
        matter: &Matter,
        here: &Range<usize>,
    ) -> Vec<(DepartmentCode, ConsumerKind)> {
        let Some(stated) = self.required("consumer", entry.consumer.as_ref(), here) else { return Vec::new() };
        let takes_part = |code: &DepartmentCode| matter.participants().any(|participant| participant == code);
        let Some(name) = stated.get_ref().strip_prefix("kind:") else {
            let found = self.lookup("department", stated, |known| &known.departments);
            if let Some((code, _)) = &found
                && !takes_part(code)
            {
                let message = format!(
                    "{code} takes no part in `{}`: it is neither its lead, nor cooperating, nor external",
                    matter.code
                );
                self.fault(stated.span(), message);
            }
            return found.into_iter().collect();
        };
        let Some(kind) = ConsumerKind::named(name) else {
            let names = ConsumerKind::ALL.into_iter().map(ConsumerKind::name);
            self.fault(stated.span(), unknown("kind of consumer", name, names));
            return Vec::new();
        };
        let of_kind = |(code, found): &&(DepartmentCode, ConsumerKind)| *found == kind && takes_part(code);
        let found: Vec<_> = self.known.departments.values().filter(of_kind).cloned().collect();
        if found.is_empty() {
            self.fault(stated.span(), format!("no organisation of the kind `{name}` takes part in `{}`", matter.code));
        }
        found
    }

    fn consumer_may(
        &mut self,
        entry: &GrantEntry,
        consumer: &DepartmentCode,
        kind: ConsumerKind,
        mode: Option<Mode>,
        provider: &DepartmentCode,
        here: &Range<usize>,
    ) {
        let place = entry.consumer.as_ref().map_or(here.clone(), Spanned::span);
        if consumer == provider {
            self.fault(place.clone(), "no department is granted its own data");
        }
        let most = Mode::most_for(kind);
        if mode.is_some_and(|mode| mode > most) {
            self.fault(place, format!("an organisation of this kind may have `{}` at most", most.name()));
        }
        if is_third_party(kind) && entry.provider_consent.trim().is_empty() {
            self.fault(
                here.clone(),
                "a grant to a utility or a bank needs provider_consent: the reference of the consent",
            );
        }
    }

    fn certificate_type(
        &mut self,
        stated: Option<&Spanned<String>>,
        provider: &DepartmentCode,
        here: &Range<usize>,
    ) -> Option<Arc<CertificateType>> {
        let stated = self.required("certificate_type", stated, here)?;
        let found = self.lookup("certificate type", stated, |known| &known.types)?;
        if found.provider != *provider {
            self.fault(
                stated.span(),
                format!(
                    "`{}` is provided by {}, not by {provider}: only {} may grant it",
                    found.code, found.provider, found.provider
                ),
            );
        }
        Some(found)
    }

    fn legal_basis(
        &mut self,
        entry: &GrantEntry,
        matter: &Matter,
        certificate_type: Option<&CertificateType>,
        here: &Range<usize>,
    ) -> Vec<String> {
        if entry.basis.iter().any(|citation| citation.trim().is_empty()) {
            self.fault(here.clone(), "basis (使用依据) has an empty citation");
        }
        if entry.basis.is_empty() && certificate_type.is_some_and(|ty| ty.sharing == SharingClass::None) {
            self.fault(here.clone(), "the type is 不予共享: the grant needs a basis (使用依据) of its own");
        }
        let basis = if entry.basis.is_empty() { &matter.legal_basis } else { &entry.basis };
        if basis.is_empty() {
            self.fault(here.clone(), "basis (使用依据) is missing, and the matter has none");
        }
        basis.clone()
    }

    fn grant_fields(
        &mut self,
        entry: &GrantEntry,
        certificate_type: &CertificateType,
        mode: Mode,
        here: &Range<usize>,
    ) -> Fields {
        if entry.fields.is_empty() {
            self.fault(here.clone(), "fields (使用范围) is missing");
        }
        let mut all = Fields::EMPTY;
        for path in &entry.fields {
            if path.get_ref().contains('*') {
                self.fault(path.span(), "wildcards are for denies: a field added later would be granted by accident");
                continue;
            }
            let fields = self.path(path, certificate_type);
            for leaf in (fields & certificate_type.never).iter() {
                self.fault(path.span(), format!("nobody may have `{}`", certificate_type.path(leaf)));
            }
            if mode > Mode::Verify {
                for leaf in (fields & certificate_type.verify_only).iter() {
                    let leaf = certificate_type.path(leaf);
                    self.fault(path.span(), format!("`{leaf}` may only be compared: grant it with mode `verify`"));
                }
            }
            all |= fields;
        }
        all
    }

    fn masks(
        &mut self,
        entry: &GrantEntry,
        certificate_type: &CertificateType,
        mode: Mode,
        granted: Fields,
    ) -> Vec<(Mask, Fields)> {
        let mut masks: BTreeMap<Mask, Fields> = BTreeMap::new();
        let mut taken = Fields::EMPTY;
        for (path, name) in &entry.mask {
            let here = name.span();
            if mode == Mode::Verify {
                self.fault(here.clone(), "a grant to compare releases nothing that a mask could hide");
            }
            let names = || Mask::ALL.into_iter().map(Mask::name).chain(Mask::ALIASES);
            let Some(mask) = Mask::named(name.get_ref()) else {
                self.fault(here, unknown("mask", name.get_ref(), names()));
                continue;
            };
            let Some(fields) = certificate_type.expand(path) else {
                self.fault(here, unknown_field(path, certificate_type));
                continue;
            };
            if !granted.covers(fields) {
                self.fault(here.clone(), format!("`{path}` is masked but not granted"));
            }
            if fields.intersects(taken) {
                self.fault(here.clone(), format!("`{path}` is masked twice"));
            }
            for leaf in fields.iter().filter_map(|leaf| certificate_type.leaves.get(leaf)) {
                if mask != Mask::Present && leaf.wire != Wire::String {
                    self.fault(here.clone(), format!("`{}` is no text: it can only be masked as `present`", leaf.path));
                }
                match leaf.mask.as_deref().map(|name| (name, Mask::named(name))) {
                    Some((name, None)) => {
                        self.fault(
                            here.clone(),
                            format!("the catalog names an unknown mask `{name}` for `{}`", leaf.path),
                        );
                    }
                    Some((name, Some(least))) if mask < least => self.fault(
                        here.clone(),
                        format!("`{}` is weaker than the catalog's mask for `{}`, `{name}`", mask.name(), leaf.path),
                    ),
                    _ => {}
                }
            }
            taken |= fields;
            *masks.entry(mask).or_default() |= fields;
        }
        masks.into_iter().collect()
    }

    /// The leaves of a path, or a predicate.
    fn path(&mut self, path: &Spanned<String>, certificate_type: &CertificateType) -> Fields {
        certificate_type.named(path.get_ref()).unwrap_or_else(|| {
            self.fault(path.span(), unknown_field(path.get_ref(), certificate_type));
            Fields::EMPTY
        })
    }

    fn date(&mut self, what: &str, stated: Option<&Spanned<String>>, here: &Range<usize>) -> Option<Date> {
        let stated = self.required(what, stated, here)?;
        let date = Date::parse(stated.get_ref(), format_description!("[year]-[month]-[day]")).ok();
        if date.is_none() {
            self.fault(stated.span(), format!("{what} is a date, YYYY-MM-DD"));
        }
        date
    }

    fn required<'e>(
        &mut self,
        what: &str,
        stated: Option<&'e Spanned<String>>,
        here: &Range<usize>,
    ) -> Option<&'e Spanned<String>> {
        if stated.is_none() {
            self.fault(here.clone(), format!("{what} is missing"));
        }
        stated
    }

    fn lookup<T: Clone>(
        &mut self,
        what: &str,
        stated: &Spanned<String>,
        table: impl Fn(&Known) -> &BTreeMap<String, T>,
    ) -> Option<T> {
        let table = table(self.known);
        let found = table.get(stated.get_ref()).cloned();
        if found.is_none() {
            self.fault(stated.span(), unknown(what, stated.get_ref(), table.keys().map(String::as_str)));
        }
        found
    }

    fn fault(&mut self, place: Range<usize>, message: impl Into<String>) {
        self.faults.at(&self.file.path, &self.file.text, place.start, message);
    }
}

pub(super) fn unknown_field(path: &str, certificate_type: &CertificateType) -> String {
    let paths = certificate_type.all().iter().map(|field| certificate_type.path(field));
    format!("{} of `{}`", unknown("field", path, paths), certificate_type.code)
}

/// "no mask `namezh` (`name_zh`?)".
pub(super) fn unknown<'a>(what: &str, name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    // A third of the letters may be wrong, or two of them exchanged; beyond that a suggestion is noise.
    let bound = match name.chars().count() {
        ..=3 => 1,
        letters => (letters / 3).max(2),
    };
    let near = candidates.map(|candidate| (distance(name, candidate), candidate)).min();
    match near.filter(|(distance, _)| *distance <= bound) {
        Some((_, near)) => format!("no {what} `{name}` (`{near}`?)"),
        None => format!("no {what} `{name}`"),
    }
}

/// Levenshtein's distance: insertions, deletions and replacements.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, a) in left.chars().enumerate() {
        let mut diagonal = line;
        let mut before = line + 1;
        let mut next = vec![before];
        for (b, above) in right.iter().zip(row.iter().skip(1)) {
            before = (diagonal + usize::from(a != *b)).min(above + 1).min(before + 1);
            diagonal = *above;
            next.push(before);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
