//! Keys that sign tokens and policy, and their public halves as JWK Sets.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use zeroize::Zeroizing;

use super::PkiError;
use super::authority::new_key;
use super::output::Output;

/// Writes a new ES256 key: `<name>.key` (PKCS#8 PEM) and `<name>.jwks.json`.
pub(super) fn write_key(output: &Output, name: &str) -> Result<(), PkiError> {
    write_pair(output, &format!("{name}.key"), &format!("{name}.jwks.json"))
}

/// Writes the keys that sign policy: each department's for its grant files, the competent department's for manifests, and
/// a security administrator's for approvals. Public halves of departments stand together, as a bundle's `keys/` has them.
pub(super) fn write_policy_keys<'a>(
    output: &Output,
    departments: impl Iterator<Item = &'a str>,
) -> Result<(), PkiError> {
    for code in departments {
        write_pair(output, &format!("policy/{code}.key"), &format!("policy/keys/{code}.jwks.json"))?;
    }
    write_key(output, "policy/authority")?;
    write_pair(output, "policy/approver.key", "policy/approvers.jwks.json")
}

fn write_pair(output: &Output, private: &str, public: &str) -> Result<(), PkiError> {
    let key = new_key()?;
    let pem = Zeroizing::new(key.serialize_pem());
    // SEC 1 §2.3.3, uncompressed: 0x04, x, y.
    let (x, y) = key
        .public_key_raw()
        .strip_prefix(&[4])
        .and_then(|point| point.split_at_checked(32))
        .filter(|(_, y)| y.len() == 32)
        .ok_or(rcgen::Error::CouldNotParseKeyPair)?;
    let jwks = jwks(&URL_SAFE_NO_PAD.encode(x), &URL_SAFE_NO_PAD.encode(y));
    output.private(private, pem.as_bytes())?;
    output.public(public, jwks.as_bytes())
}

fn jwks(x: &str, y: &str) -> String {
    let key = json!({
        "kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": thumbprint(x, y), "use": "sig", "alg": "ES256",
    });
    format!("{:#}\n", json!({ "keys": [key] }))
}

/// RFC 7638 §3: SHA-256 over the required members in lexicographic order, without blanks.
fn thumbprint(x: &str, y: &str) -> String {
    let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    URL_SAFE_NO_PAD.encode(digest(&SHA256, members.as_bytes()))
}
