//! Sealing: one random data key per epoch, AES-256-GCM per entry, the data key wrapped to every recipient.
//!
//! The gateway keeps the data key in memory while its epoch lasts and never on disk, so neither a stolen disk nor an
//! administrator with the directory can read a body; whoever destroys the recipients' private keys shreds every copy.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use time::Date;
use zeroize::Zeroizing;

use super::entry::{WrappedKey, decode_epoch, encode_epoch};
use super::frame::{self, Header, TAG};
use super::keys::{KeyError, PrivateKey, PublicKey};
use crate::clock::Timestamp;

const INFO: &[u8] = b"oncegate/audit/epoch/v1";

/// The data key of one epoch.
pub(super) struct EpochKey {
    number: u32,
    key: LessSafeKey,
}

impl EpochKey {
    /// A random key, and the body of the EPOCH entry that hands it to the recipients.
    pub(super) fn generate(number: u32, origin: &str, recipients: &[PublicKey]) -> Result<(Self, Vec<u8>), SealError> {
        let mut secret = Zeroizing::new([0; 32]);
        rand::fill(secret.as_mut_slice()).map_err(|_| SealError)?;
        let aad = wrap_aad(origin, number);
        let wrapped = recipients
            .iter()
            .map(|recipient| {
                let (encapsulated, ciphertext) = recipient.wrap(INFO, &aad, secret.as_slice())?;
                Ok(WrappedKey { recipient: recipient.id(), encapsulated, ciphertext })
            })
            .collect::<Result<Vec<_>, KeyError>>()
            .map_err(|_| SealError)?;
        Ok((Self::new(number, secret.as_slice())?, encode_epoch(wrapped)))
    }

    /// The key out of an EPOCH entry's body, if it was wrapped to this recipient and nobody touched it.
    pub(super) fn unwrap(number: u32, origin: &str, body: &[u8], recipient: &PrivateKey) -> Result<Self, SealError> {
        let id = recipient.public().id();
        let wrapped = decode_epoch(body).map_err(|_| SealError)?;
        let mine = wrapped.iter().find(|key| key.recipient == id).ok_or(SealError)?;
        let secret = recipient
            .unwrap(INFO, &wrap_aad(origin, number), &mine.encapsulated, &mine.ciphertext)
            .map_err(|_| SealError)?;
        Self::new(number, &secret)
    }

    /// Number of the epoch.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Appends a framed entry to `out` and returns its leaf hash. The body is sealed where it lies, unless its kind stands
    /// in clear.
    pub(super) fn put(&self, out: &mut Vec<u8>, header: &Header, body: &mut [u8]) -> Result<[u8; 32], SealError> {
        let bound = header.bound();
        if header.kind.is_clear() {
            return frame::put(out, &bound, body, &[]).ok_or(SealError);
        }
        let nonce = Nonce::assume_unique_for_key(header.nonce());
        let tag =
            self.key.seal_in_place_separate_tag(nonce, Aad::from(bound.as_slice()), body).map_err(|_| SealError)?;
        frame::put(out, &bound, body, tag.as_ref()).ok_or(SealError)
    }

    /// The plaintext of a sealed body.
    pub(super) fn open(&self, header: &Header, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut body = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(header.nonce());
        self.key.open_in_place(nonce, Aad::from(header.bound()), &mut body).map_err(|_| SealError)?;
        body.truncate(body.len().saturating_sub(TAG));
        Ok(body)
    }

    fn new(number: u32, secret: &[u8]) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, secret).map_err(|_| SealError)?;
        Ok(Self { number, key: LessSafeKey::new(key) })
    }
}

/// The day an epoch lasts: a new one starts with the first batch of another day in China (UTC+8).
pub(super) fn epoch_day(now: Timestamp) -> Date {
    now.date_in_china()
}

/// Sealing or opening failed; the cryptography gives no reason.
#[derive(Debug, thiserror::Error)]
#[error("sealing or opening an entry failed")]
pub(super) struct SealError;

/// Associated data of a wrapped key: origin ‖ 0 ‖ epoch, so that it can't be moved to another log or epoch.
fn wrap_aad(origin: &str, number: u32) -> Vec<u8> {
    let mut aad = origin.as_bytes().to_vec();
    aad.push(0);
    aad.extend_from_slice(&number.to_be_bytes());
    aad
}

#[cfg(test)]
mod tests {
    use super::super::frame::Kind;
    use super::*;

    fn header(seq: u64) -> Header {
        Header { kind: Kind::ACCESS, epoch: 4, seq, batch_pos: 0, time: Timestamp::from_secs(1) }
    }

    #[test]
    fn both_recipients_open_what_was_sealed_and_nobody_else() {
        let (auditor, escrow, other) =
            (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let recipients = [auditor.public().clone(), escrow.public().clone()];
        let (key, epoch) = EpochKey::generate(4, "gw1", &recipients).unwrap();
        let mut out = Vec::new();
        key.put(&mut out, &header(9), &mut b"who looked".to_vec()).unwrap();
        let (read, sealed) = frame::parse(&out[2..]).unwrap();
        for recipient in [&auditor, &escrow] {
            let theirs = EpochKey::unwrap(4, "gw1", &epoch, recipient).unwrap();
            assert_eq!(theirs.open(&read, sealed).unwrap(), b"who looked");
            assert!(theirs.open(&header(10), sealed).is_err(), "a body can't be moved to another place");
        }
        assert!(EpochKey::unwrap(4, "gw1", &epoch, &other).is_err());
        assert!(EpochKey::unwrap(4, "gw2", &epoch, &auditor).is_err(), "a key can't be moved to another log");
        assert!(EpochKey::unwrap(5, "gw1", &epoch, &auditor).is_err(), "nor to another epoch");
    }

    #[test]
    fn every_epoch_has_its_own_key() {
        let recipient = PrivateKey::generate().unwrap();
        let recipients = [recipient.public().clone()];
        let (one, _) = EpochKey::generate(4, "gw1", &recipients).unwrap();
        let (two, _) = EpochKey::generate(4, "gw1", &recipients).unwrap();
        let mut out = Vec::new();
        one.put(&mut out, &header(9), &mut b"body".to_vec()).unwrap();
        let (read, sealed) = frame::parse(&out[2..]).unwrap();
        assert!(two.open(&read, sealed).is_err());
    }
}
