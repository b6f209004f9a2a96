//! Providers' answers in memory, never on disk, for as long as their type allows. What a caller may see of an answer is
//! decided anew on each hit.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use moka::Expiry;
use serde::Deserialize;

use crate::catalog::{CertificateType, Fields, Subject};
use crate::clock::{Clock, Timestamp};
use crate::ids::{DepartmentCode, RequestId};

/// What an entry weighs besides its texts and records, in bytes: about what the structures around them take.
const ENTRY_OVERHEAD: usize = 256;

/// Bounds of the cache.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Memory for answers, in bytes; 0 turns the cache off. Default 67108864 (64 MiB).
    pub max_bytes: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { max_bytes: 64 << 20 }
    }
}

/// Answers by what was asked. Cheap to clone; clones share their entries.
#[derive(Clone)]
pub struct AnswerCache {
    entries: moka::sync::Cache<Key, Entry>,
    clock: Clock,
}

impl AnswerCache {
    /// An empty cache.
    pub fn new(config: &CacheConfig, clock: Clock) -> Self {
        let entries = moka::sync::Cache::builder()
            .max_capacity(config.max_bytes)
            .weigher(|key: &Key, entry: &Entry| u32::try_from(key.bytes() + entry.answer.bytes()).unwrap_or(u32::MAX))
            .expire_after(PerEntry)
            .build();
        Self { entries, clock }
    }

    /// The answer under `key`, if it is fresh and was fetched with every field of `need`.
    pub fn get(&self, key: &Key, need: Fields) -> Option<Arc<CachedAnswer>> {
        let entry = self.entries.get(key)?;
        let fresh = self.clock.now().since(entry.answer.fetched_at) < entry.freshness;
        (fresh && entry.answer.fields.covers(need)).then_some(entry.answer)
    }

    /// Keeps an answer for `freshness` from its fetch on, in place of an older one. One without a record is not kept:
    /// what was not found may be found a moment later.
    pub fn put(&self, key: Key, answer: &CachedAnswer, freshness: Duration) {
        if answer.records.is_empty() || freshness.is_zero() {
            return;
        }
        // A record may be a slice of a larger buffer; a copy holds no more memory than it weighs.
        let records = answer.records.iter().map(|record| Bytes::copy_from_slice(record)).collect();
        let answer = Arc::new(CachedAnswer { records, ..*answer });
        self.entries.insert(key, Entry { answer, freshness });
    }
}

/// Answers stay out of logs.
impl fmt::Debug for AnswerCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerCache").field("entries", &self.entries.entry_count()).finish_non_exhaustive()
    }
}

/// What was asked: for whom, in which matter, of which type, by which keys. Two consumers never share an answer.
///
/// The type is that of one catalog: field indexes mean the same only within it, so what was fetched under another catalog
/// is never found. An entry keeps its type alive, so no other can take its place in memory.
#[derive(Clone)]
pub struct Key {
    consumer: DepartmentCode,
    matter: Arc<str>,
    certificate_type: Arc<CertificateType>,
    set: usize,
    values: Box<[Box<str>]>,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.consumer == other.consumer
            && self.matter == other.matter
            && Arc::ptr_eq(&self.certificate_type, &other.certificate_type)
            && self.set == other.set
            && self.values == other.values
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.consumer, &self.matter, Arc::as_ptr(&self.certificate_type), self.set, &self.values).hash(state);
    }
}

impl Key {
    /// The key of a subject's look-up.
    pub fn of(consumer: &DepartmentCode, matter: &str, subject: &Subject) -> Self {
        let values = subject.keys().iter().map(|key| key.value.as_str());
        Self::new(consumer, matter, subject.certificate_type(), subject.set(), values)
    }

    /// From its parts; `values` in the order of lookup set number `set`.
    pub fn new<'a>(
        consumer: &DepartmentCode,
        matter: &str,
        certificate_type: &Arc<CertificateType>,
        set: usize,
        values: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        Self {
            consumer: consumer.clone(),
            matter: matter.into(),
            certificate_type: certificate_type.clone(),
            set,
            values: values.into_iter().map(Box::from).collect(),
        }
    }

    fn bytes(&self) -> usize {
        let values: usize = self.values.iter().map(|value| value.len() + size_of::<Box<str>>()).sum();
        ENTRY_OVERHEAD + self.matter.len() + values
    }
}

/// The values stay out of logs.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("consumer", &self.consumer)
            .field("matter", &self.matter)
            .field("certificate_type", &self.certificate_type.code)
            .field("set", &self.set)
            .finish_non_exhaustive()
    }
}

/// An answer as the provider gave it.
pub struct CachedAnswer {
    /// The records, encoded; never empty in the cache.
    pub records: Vec<Bytes>,
    /// The fields that were asked for, whether the records have them or not.
    pub fields: Fields,
    /// When the provider answered.
    pub fetched_at: Timestamp,
    /// The request that fetched it.
    pub fetched_by: RequestId,
}

impl CachedAnswer {
    fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.len() + size_of::<Bytes>()).sum()
    }
}

/// The records stay out of logs.
impl fmt::Debug for CachedAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedAnswer")
            .field("records", &self.records.len())
            .field("fields", &self.fields)
            .field("fetched_at", &self.fetched_at)
            .field("fetched_by", &self.fetched_by)
            .finish()
    }
}

#[derive(Clone)]
struct Entry {
    answer: Arc<CachedAnswer>,
    freshness: Duration,
}

/// Frees the memory in time. Whether an answer is fresh is for [`AnswerCache::get`] to say, by the gateway's clock; this
/// one runs on even if that is set back.
struct PerEntry;

impl Expiry<Key, Entry> for PerEntry {
    fn expire_after_create(&self, _: &Key, entry: &Entry, _: StdInstant) -> Option<Duration> {
        Some(entry.freshness)
    }

    fn expire_after_update(&self, _: &Key, entry: &Entry, _: StdInstant, _: Option<Duration>) -> Option<Duration> {
        Some(entry.freshness)
    }
}

#[allow(clippy::disallowed_types, reason = "the signature of moka's trait; its value is not used")]
type StdInstant = std::time::Instant;

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::catalog::Catalog;

    const START: Timestamp = Timestamp::from_secs(1_800_000_000);
    const MINUTE: Duration = Duration::from_mins(1);

    fn empty(max_bytes: u64) -> (AnswerCache, Clock) {
        let clock = Clock::manual(START);
        (AnswerCache::new(&CacheConfig { max_bytes }, clock.clone()), clock)
    }

    /// The catalog of every test.
    static CATALOG: LazyLock<Catalog> = LazyLock::new(catalog);

    fn catalog() -> Catalog {
        Catalog::load("deploy/heshan/policy".as_ref()).unwrap()
    }

    fn kind(code: &str) -> &'static Arc<CertificateType> {
        CATALOG.certificate_type(code).unwrap()
    }

    fn key(consumer: &str, matter: &str, values: &[&str]) -> Key {
        Key::new(&consumer.parse().unwrap(), matter, kind("birth_medical_certificate"), 0, values.iter().copied())
    }

    fn answer(record: &'static [u8], fields: impl IntoIterator<Item = usize>) -> CachedAnswer {
        CachedAnswer {
            records: vec![Bytes::from_static(record)],
            fields: fields.into_iter().collect(),
            fetched_at: START,
            fetched_by: RequestId::generate(),
        }
    }

    fn fields(fields: impl IntoIterator<Item = usize>) -> Fields {
        fields.into_iter().collect()
    }

    #[test]
    fn a_hit_must_cover_the_fields_needed() {
        let (cache, _) = empty(1 << 20);
        let stored = answer(b"record", [1, 2, 3]);
        cache.put(key("GA", "birth", &["a"]), &stored, MINUTE);
        let hit = cache.get(&key("GA", "birth", &["a"]), fields([1, 3])).unwrap();
        assert_eq!((hit.fetched_by, hit.records.as_slice()), (stored.fetched_by, stored.records.as_slice()));
        assert!(cache.get(&key("GA", "birth", &["a"]), fields([1, 2, 3])).is_some());
        assert!(cache.get(&key("GA", "birth", &["a"]), fields([1, 4])).is_none());
        cache.put(key("GA", "birth", &["a"]), &answer(b"wider", [1, 2, 3, 4]), MINUTE);
        assert_eq!(cache.get(&key("GA", "birth", &["a"]), fields([1, 4])).unwrap().records[0], "wider");
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let (cache, _) = empty(1 << 20);
        cache.put(key("GA", "birth", &["a", "bc"]), &answer(b"record", [1]), MINUTE);
        let set = Key::new(&"GA".parse().unwrap(), "birth", kind("birth_medical_certificate"), 1, ["a", "bc"]);
        let ty = Key::new(&"GA".parse().unwrap(), "birth", kind("marriage_record"), 0, ["a", "bc"]);
        // The same bundle loaded again is another catalog: its types may number their fields otherwise.
        let again = catalog();
        let again = again.certificate_type("birth_medical_certificate").unwrap();
        let again = Key::new(&"GA".parse().unwrap(), "birth", again, 0, ["a", "bc"]);
        for other in [
            key("WJ", "birth", &["a", "bc"]),
            key("GA", "school", &["a", "bc"]),
            key("GA", "birth", &["ab", "c"]),
            key("GA", "birth", &["bc", "a"]),
            key("GA", "birth", &["a"]),
            set,
            ty,
            again,
        ] {
            assert!(cache.get(&other, Fields::EMPTY).is_none(), "{other:?}");
        }
    }

    #[test]
    fn an_answer_is_kept_for_its_freshness() {
        let (cache, clock) = empty(1 << 20);
        clock.advance(Duration::from_secs(10));
        cache.put(key("GA", "birth", &["a"]), &answer(b"record", [1]), MINUTE);
        clock.advance(Duration::from_secs(49));
        assert!(cache.get(&key("GA", "birth", &["a"]), fields([1])).is_some());
        clock.advance(Duration::from_secs(1));
        assert!(cache.get(&key("GA", "birth", &["a"]), fields([1])).is_none(), "from the fetch on, not from the put");
    }

    #[test]
    fn memory_is_freed_in_time() {
        let (cache, _) = empty(1 << 20);
        cache.put(key("GA", "birth", &["a"]), &answer(b"record", [1]), Duration::from_millis(5));
        let give_up = tokio::time::Instant::now() + Duration::from_secs(5);
        loop {
            cache.entries.run_pending_tasks();
            if cache.entries.entry_count() == 0 {
                break;
            }
            assert!(tokio::time::Instant::now() < give_up);
            std::thread::yield_now();
        }
    }

    #[test]
    fn nothing_found_and_nothing_fresh_is_not_kept() {
        let (cache, _) = empty(1 << 20);
        let nothing = CachedAnswer { records: vec![], ..answer(b"", [1]) };
        cache.put(key("GA", "birth", &["a"]), &nothing, MINUTE);
        cache.put(key("GA", "birth", &["b"]), &answer(b"record", [1]), Duration::ZERO);
        assert!(cache.get(&key("GA", "birth", &["a"]), Fields::EMPTY).is_none());
        assert!(cache.get(&key("GA", "birth", &["b"]), Fields::EMPTY).is_none());
        let (off, _) = empty(0);
        off.put(key("GA", "birth", &["a"]), &answer(b"record", [1]), MINUTE);
        off.entries.run_pending_tasks();
        assert!(off.get(&key("GA", "birth", &["a"]), Fields::EMPTY).is_none());
    }

    #[test]
    fn memory_is_bounded_and_holds_no_larger_buffer() {
        let (cache, _) = empty(100_000);
        let buffer = Bytes::from(vec![7; 1 << 20]);
        for number in 0..500 {
            let slice = CachedAnswer { records: vec![buffer.slice(..1000)], ..answer(b"", [1]) };
            cache.put(key("GA", "birth", &[&number.to_string()]), &slice, MINUTE);
        }
        cache.entries.run_pending_tasks();
        let kept = cache.entries.entry_count();
        assert!((1..=100_000 / 1000).contains(&kept) && cache.entries.weighted_size() <= 100_000, "{kept}");
        assert!(
            cache.entries.iter().all(|(_, entry)| !buffer.as_ptr_range().contains(&entry.answer.records[0].as_ptr()))
        );
    }

    #[test]
    fn values_stay_out_of_debug_text() {
        let (cache, _) = empty(1 << 20);
        let (key, answer) = (key("GA", "birth", &["99999919900101002X"]), answer(b"secret", [1]));
        cache.put(key.clone(), &answer, MINUTE);
        let text = format!("{cache:?} {key:?} {answer:?}");
        assert!(!text.contains("9999991990") && !text.contains("secret"), "{text}");
    }
}
