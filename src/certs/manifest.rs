//! `generation.toml`: the CAs of callers and what each may issue for, the local block list, and who made the generation.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::crl::Serial;
use crate::catalog::Faults;
use crate::ids::{DepartmentCode, SpiffeId};

/// The file's name in a generation's directory.
pub(super) const MANIFEST: &str = "generation.toml";

/// What stands beside the certificates of a generation. Every list may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Manifest {
    /// What becomes of connections whose CA this generation no longer has.
    pub removed: Removed,
    /// The older generation that came back, if this is a rollback: CAs and lists of callers may have expired since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_to: Option<u64>,
    /// Who made it, when and how; absent if it was written by hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
    /// CAs of callers.
    pub client_cas: Vec<ClientCa>,
    /// SHA-256 of the keys, in hexadecimal, of CAs of callers that are believed no more. The newest list of each,
    /// `former-<key>.crl`, holds on, with `former-<key>.pem`, the certificate it is checked by: connections may still
    /// end, and the CA may come back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub former_cas: Vec<String>,
    /// Callers refused whatever their CA says.
    pub blocked: Vec<Blocked>,
    /// Blocks of the generation before that are taken back; any other holds on, though it stands in `blocked` no more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unblocked: Vec<Blocked>,
}

/// How connections end whose CA was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Removed {
    /// At once; requests under way are reset.
    #[default]
    Kill,
    /// GOAWAY; the connection may be used for `connection_grace_ms` more.
    Drain,
}

/// A CA of callers: `<name>.pem` is its certificate, `<name>.crl` its revocation list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCa {
    /// Name of its files: 1 to 64 ASCII letters, digits, `-` and `_`.
    pub name: String,
    /// Codes of the departments it may issue for.
    pub departments: Vec<String>,
}

/// A caller, or all callers of a CA, refused by the operator. At least one of `id`, `serial` and `ca` says who; what is
/// given must all fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Blocked {
    /// SPIFFE ID of a system, whichever certificate it shows.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Serial number of a certificate in hexadecimal.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub serial: String,
    /// SHA-256 of a CA's public key in hexadecimal.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca: String,
    /// When it was blocked, RFC 3339.
    pub at: String,
    /// Who blocked it.
    pub by: String,
}

/// Where a generation comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// RFC 3339.
    pub at: String,
    /// The operator.
    pub by: String,
    /// What was done, in words.
    pub act: String,
}

impl Manifest {
    /// Reads the text of `file`.
    pub(super) fn parse(file: &Path, text: &[u8], faults: &mut Faults) -> Option<Self> {
        let Ok(text) = std::str::from_utf8(text) else {
            faults.of(file, "is not UTF-8");
            return None;
        };
        toml::from_str(text)
            .map_err(|error| faults.at(file, text, error.span().map_or(0, |span| span.start), error.message()))
            .ok()
    }

    /// Its text.
    pub(super) fn to_text(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

/// Names of files that are not a CA's.
const TAKEN: [&str; 4] = ["server", "server_ca", "client", "generation"];

/// True if a CA may be called so.
pub(super) fn is_ca_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        && !TAKEN.contains(&name)
}

impl ClientCa {
    /// The departments, each a valid code; faults otherwise.
    pub(super) fn departments(&self, file: &Path, faults: &mut Faults) -> Vec<DepartmentCode> {
        if self.departments.is_empty() {
            faults.of(file, format!("departments of client CA {} are empty; it could issue for nobody", self.name));
        }
        let parse = |code: &String| match code.parse() {
            Ok(code) => Some(code),
            Err(error) => {
                faults.of(file, format!("client CA {}: {error}", self.name));
                None
            }
        };
        self.departments.iter().filter_map(parse).collect()
    }
}

/// A block as it is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) id: Option<SpiffeId>,
    pub(super) serial: Option<Serial>,
    pub(super) ca: Option<[u8; 32]>,
}

impl Blocked {
    /// What it says, or what is wrong with it.
    pub(super) fn parse(&self) -> Result<Block, String> {
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        let id = given(&self.id).map(|id| id.parse()).transpose();
        let id = id.map_err(|_| format!("blocked id `{}` is no SPIFFE ID of a system", self.id.escape_debug()))?;
        let serial = given(&self.serial).map(|text| Serial::from_hex(&text).ok_or(()));
        let serial = serial.transpose().map_err(|()| "a blocked serial is 1 to 40 hexadecimal digits".to_owned())?;
        let ca = given(&self.ca).map(|text| {
            let mut key = [0; 32];
            hex::decode_to_slice(text, &mut key).map(|()| key)
        });
        let ca = ca.transpose().map_err(|_| "a blocked ca is the 64 hexadecimal digits of its key's SHA-256")?;
        if id.is_none() && serial.is_none() && ca.is_none() {
            return Err("a block names an id, a serial or a ca".to_owned());
        }
        Ok(Block { id, serial, ca })
    }

    /// True if both block the same.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        match (self.parse(), other.parse()) {
            (Ok(one), Ok(two)) => one == two,
            _ => false,
        }
    }
}
