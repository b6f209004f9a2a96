//! The outside of an entry: its clear header, its checksum, its leaf hash.
//!
//! ```text
//! u16 length ‖ version u8 ‖ kind u8 ‖ epoch u32 ‖ seq u64 ‖ batch_pos u32 ‖ time_us u64 ‖ crc32c u32 ‖ body
//!              └────────────────────── 26 bytes, "bound" ──────────────────────┘
//! ```
//! All numbers are big-endian. The CRC covers the bound header and the body; the AEAD binds the same 26 bytes. The CRC
//! finds torn writes and bit rot without a key; it is no defence against people, which is the Merkle tree's work.

use super::merkle::leaf_hash;
use crate::clock::Timestamp;

/// Entries in one segment: 256 C2SP entry bundles of 256, one full level-1 tile.
pub(crate) const PER_SEGMENT: u64 = 65_536;
/// Bytes of the clear header, CRC included.
pub(super) const HEADER: usize = BOUND + 4;
/// Bytes of the AES-GCM tag.
pub(super) const TAG: usize = 16;
/// Longest plaintext body: 65,535 (the length is a u16) - 30 - 16 = 65,489 bytes.
pub(super) const MAX_BODY: usize = u16::MAX as usize - HEADER - TAG;
/// Bytes of the length in front of an entry.
pub(super) const LENGTH: usize = 2;

/// Header bytes that CRC and AEAD cover: 1 + 1 + 4 + 8 + 4 + 8.
const BOUND: usize = 26;
/// Version of the format.
const VERSION: u8 = 1;

/// Number of an entry's kind, in clear. Never reused; 0 is no kind, so that blank space never looks like an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Kind(pub(super) u8);

impl Kind {
    /// A decision about one subject's certificate, or a refused call.
    pub(super) const ACCESS: Self = Self(1);
    /// The data key of what follows, wrapped to each recipient; its body is in clear.
    pub(super) const EPOCH: Self = Self(2);
    /// The gateway began to write.
    pub(super) const START: Self = Self(3);
    /// The gateway ended in order.
    pub(super) const STOP: Self = Self(4);
    /// Another policy generation serves.
    pub(super) const POLICY_CHANGE: Self = Self(5);
    /// An act of an operator.
    pub(super) const ADMIN: Self = Self(6);
    /// The log is less safe than it should be.
    pub(super) const DEGRADED: Self = Self(7);
    /// It is as safe again.
    pub(super) const RECOVERED: Self = Self(8);
    /// This log goes on where another one ended; in clear: that one's last checkpoint.
    pub(super) const CONTINUES: Self = Self(9);
    /// An auditor allows to delete old entries; in clear: a note signed by the auditor.
    pub(super) const PRUNE_AUTH: Self = Self(10);
    /// Another key signs this log from here on; in clear: a note signed by the key before.
    pub(super) const LOG_KEY: Self = Self(11);

    /// Its name as documents and screens show it.
    pub(super) fn name(self) -> &'static str {
        const NAMES: [&str; 11] = [
            "ACCESS",
            "EPOCH",
            "START",
            "STOP",
            "POLICY_CHANGE",
            "ADMIN",
            "DEGRADED",
            "RECOVERED",
            "CONTINUES",
            "PRUNE_AUTH",
            "LOG_KEY",
        ];
        usize::from(self.0).checked_sub(1).and_then(|place| NAMES.get(place)).copied().unwrap_or("UNKNOWN")
    }

    /// True if the body is in clear: it is for everybody and names nobody.
    pub(super) fn is_clear(self) -> bool {
        [Self::EPOCH, Self::CONTINUES, Self::PRUNE_AUTH, Self::LOG_KEY].contains(&self)
    }
}

/// The clear header, without version and CRC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Number of the data key; grows by one with every EPOCH entry.
    pub(super) epoch: u32,
    /// Index in the log, from 0.
    pub(super) seq: u64,
    /// Position in the batch that one write and one sync made durable, from 0.
    pub(super) batch_pos: u32,
    pub(super) time: Timestamp,
}

impl Header {
    /// Index of the first entry of this entry's batch.
    pub(super) fn batch_start(&self) -> u64 {
        self.seq.saturating_sub(u64::from(self.batch_pos))
    }

    /// The AEAD nonce: epoch ‖ seq. Unique: an epoch has a key of its own, and a key never sees a `seq` twice.
    pub(super) fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        let (epoch, seq) = nonce.split_at_mut(4);
        epoch.copy_from_slice(&self.epoch.to_be_bytes());
        seq.copy_from_slice(&self.seq.to_be_bytes());
        nonce
    }

    /// The 26 bytes that CRC and AEAD cover.
    pub(super) fn bound(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BOUND);
        bytes.push(VERSION);
        bytes.push(self.kind.0);
        bytes.extend_from_slice(&self.epoch.to_be_bytes());
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(&self.batch_pos.to_be_bytes());
        bytes.extend_from_slice(&self.time.as_micros().to_be_bytes());
        bytes
    }

    /// The header at the start of `entry`, CRC not checked.
    pub(super) fn peek(entry: &[u8]) -> Option<Self> {
        let mut rest = entry;
        let [version, kind] = take(&mut rest)?;
        if version != VERSION {
            return None;
        }
        Some(Self {
            kind: Kind(kind),
            epoch: u32::from_be_bytes(take(&mut rest)?),
            seq: u64::from_be_bytes(take(&mut rest)?),
            batch_pos: u32::from_be_bytes(take(&mut rest)?),
            time: Timestamp::from_micros(u64::from_be_bytes(take(&mut rest)?)),
        })
    }
}

/// Appends `u16 length ‖ entry` to `out` and returns the leaf hash; `None` if the entry would be too long.
pub(super) fn put(out: &mut Vec<u8>, bound: &[u8], body: &[u8], tag: &[u8]) -> Option<[u8; 32]> {
    let length = u16::try_from(bound.len() + 4 + body.len() + tag.len()).ok()?;
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(bound), body), tag);
    out.extend_from_slice(&length.to_be_bytes());
    let start = out.len();
    out.extend_from_slice(bound);
    out.extend_from_slice(&crc.to_be_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(tag);
    out.get(start..).map(leaf_hash)
}

/// Header and body of a whole entry whose version and CRC are right.
pub(super) fn parse(entry: &[u8]) -> Option<(Header, &[u8])> {
    let (bound, rest) = entry.split_first_chunk::<BOUND>()?;
    let (crc, body) = rest.split_first_chunk::<4>()?;
    let right = crc32c::crc32c_append(crc32c::crc32c(bound), body);
    if u32::from_be_bytes(*crc) != right {
        return None;
    }
    Some((Header::peek(bound)?, body))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk::<N>()?;
    *rest = left;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: Kind::ADMIN,
            epoch: 7,
            seq: 70_000,
            batch_pos: 3,
            time: Timestamp::from_micros(1_795_449_599_000_001),
        }
    }

    #[test]
    fn an_entry_parses_as_it_was_put() {
        let mut out = Vec::new();
        let leaf = put(&mut out, &header().bound(), b"body", b"tag").unwrap();
        assert_eq!(out.len(), LENGTH + HEADER + 7);
        assert_eq!(leaf, leaf_hash(&out[2..]));
        assert_eq!(parse(&out[2..]), Some((header(), b"bodytag".as_slice())));
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let mut out = Vec::new();
        put(&mut out, &header().bound(), b"body", b"tag").unwrap();
        for bit in 0..(out.len() - 2) * 8 {
            let mut bad = out[2..].to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn an_entry_beyond_its_length_is_refused() {
        let (mut out, bound) = (Vec::new(), header().bound());
        assert!(put(&mut out, &bound, &vec![1; MAX_BODY], &[0; TAG]).is_some());
        assert!(put(&mut out, &bound, &vec![1; MAX_BODY + 1], &[0; TAG]).is_none());
        assert_eq!(out.len(), LENGTH + 65_535);
    }

    #[test]
    fn the_format_is_fixed() {
        // Written once, kept for decades: these bytes may never change.
        let mut out = Vec::new();
        put(&mut out, &header().bound(), b"x", b"").unwrap();
        let time = format!("{:016x}", 1_795_449_599_000_001_u64);
        let bound = ["001f", "01", "06", "00000007", "0000000000011170", "00000003", &time].concat();
        assert_eq!(hex::encode(&out[..28]), bound);
        assert_eq!(out[28..32], crc32c::crc32c(&[&out[2..28], b"x"].concat()).to_be_bytes());
        assert_eq!(&out[32..], b"x");
    }
}
