//! The `[policy]` part of the configuration, and what a bundle must satisfy under it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Policy, PolicyHash, PseudonymKey, Record, signed};
use crate::catalog::Faults;
use crate::identity::jws::{KeySet, Signs};

/// Where the policy is, and who answers for it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// The bundle: a folder with everything that decides what may be released. Default: `policy`.
    ///
    /// `departments.toml`, `matters/<code>.toml` and `types/*.binpb` are the catalog's; `facts.toml` and `holidays.toml`
    /// the conditions; `grants/<matter>/<PROVIDER>.toml` the grants. It becomes the first generation of an empty store;
    /// later ones come by `oncegate policy activate`.
    pub bundle: PathBuf,
    /// The gateway's own folder of generations, which no other gateway shares; made if it does not exist. Default:
    /// `policy-store`.
    pub store: PathBuf,
    /// Whether bundles must be signed. Default: `unsigned`, of which the status warns.
    pub mode: PolicyMode,
    /// JWKS file with the keys of the competent department, which signs a bundle's manifest; needed in signed mode.
    pub authority: Option<PathBuf>,
    /// JWKS file with the keys of the security administrators, one of whom approves each activation. Without it no bundle
    /// can be activated.
    pub approvers: Option<PathBuf>,
    /// File with the key of pseudonyms, at least 32 bytes in hexadecimal; several gateways share it. Without it no grant
    /// may name the mask `pseudonym`.
    pub pseudonym_key: Option<PathBuf>,
}

/// Whether bundles must be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyMode {
    /// Whoever can write the files can widen access.
    #[default]
    Unsigned,
    /// Grants are signed by their providers, all else by the competent department.
    Signed,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            bundle: "policy".into(),
            store: "policy-store".into(),
            mode: PolicyMode::Unsigned,
            authority: None,
            approvers: None,
            pseudonym_key: None,
        }
    }
}

impl PolicyConfig {
    /// Takes relative paths as relative to `base`, the configuration file's folder.
    pub fn rebase(&mut self, base: &Path) {
        let keys = [&mut self.authority, &mut self.approvers, &mut self.pseudonym_key];
        for path in [&mut self.bundle, &mut self.store].into_iter().chain(keys.into_iter().flatten()) {
            *path = base.join(&*path);
        }
    }
}

/// What a bundle must satisfy: pinned when the gateway starts.
#[derive(Debug)]
pub struct Rules {
    /// Keys of the competent department; none in unsigned mode.
    authority: Option<KeySet>,
    /// Keys of the security administrators.
    approvers: Option<KeySet>,
    pseudonym_key: Option<PseudonymKey>,
}

impl Rules {
    /// Reads the keys that the configuration names; `file` is that configuration.
    ///
    /// # Errors
    /// All faults at once.
    pub fn load(config: &PolicyConfig, file: &Path) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let authority = match (config.mode, &config.authority) {
            (PolicyMode::Unsigned, None) => None,
            // A key that is pinned and not asked for would look like protection.
            (PolicyMode::Unsigned, Some(_)) => {
                faults.of(file, "[policy] authority is for mode = \"signed\"");
                None
            }
            (PolicyMode::Signed, None) => {
                faults.of(file, "[policy] mode = \"signed\" needs authority: the competent department's JWKS file");
                None
            }
            (PolicyMode::Signed, Some(keys)) => KeySet::load(keys, &mut faults),
        };
        let approvers = config.approvers.as_ref().and_then(|keys| KeySet::load(keys, &mut faults));
        let pseudonym_key = config.pseudonym_key.as_deref().map(PseudonymKey::load).transpose();
        let pseudonym_key = pseudonym_key.unwrap_or_else(|error| {
            faults.of(file, format!("[policy] pseudonym_key {error}"));
            None
        });
        faults.or(Self { authority, approvers, pseudonym_key })
    }

    /// For a bundle of which only the signatures are asked: signed mode with these keys.
    pub fn signed_by(authority: KeySet) -> Self {
        Self { authority: Some(authority), approvers: None, pseudonym_key: None }
    }

    /// True if bundles must be signed.
    pub fn are_signed(&self) -> bool {
        self.authority.is_some()
    }

    /// Ids of the keys of the competent department, and of the security administrators.
    pub fn kids(&self) -> [Vec<String>; 2] {
        [&self.authority, &self.approvers].map(|keys| keys.as_ref().map(KeySet::kids).unwrap_or_default())
    }

    /// Reads and checks a bundle, its signatures included in signed mode. The folder must be one that nobody else writes
    /// while it is read. With `serving`, its catalog is kept if the bundle's is equal; in signed mode no file may be older
    /// than `before` has it.
    ///
    /// # Errors
    /// All faults of all files at once.
    pub fn open(&self, bundle: &Path, serving: Option<&Policy>, before: Option<&Record>) -> Result<Policy, Faults> {
        let mut faults = Faults::default();
        let manifest = self.authority.as_ref().map(|keys| signed::verify(bundle, keys, &mut faults));
        let opened = match serving {
            Some(serving) => Policy::open_beside(bundle, serving),
            None => Policy::open(bundle),
        };
        let opened = opened.and_then(|policy| policy.with_pseudonyms(self.pseudonym_key.as_ref()));
        let mut policy = opened.map_err(|found| faults.0.extend(found.0)).ok();
        if let (Some(policy), Some(Some(version))) = (&mut policy, manifest) {
            policy.versions.insert(signed::MANIFEST.to_owned(), version);
            if let Some(before) = before {
                signed::fallen(bundle, &before.versions(), &policy.versions, &mut faults);
            }
        }
        match policy {
            Some(policy) => faults.or(policy),
            None => Err(faults),
        }
    }

    /// The id of the security administrator's key that approved this hash.
    ///
    /// # Errors
    /// Why nobody enrolled approved it.
    pub fn approved(&self, hash: &PolicyHash, approval: &str) -> Result<String, String> {
        let Some(keys) = &self.approvers else {
            return Err("nobody is enrolled to approve: [policy] approvers is missing".to_owned());
        };
        let kid = keys.verify(Signs::Approval, hash.to_string().as_bytes(), approval);
        kid.map(str::to_owned).map_err(|error| format!("the approval {error}"))
    }
}
