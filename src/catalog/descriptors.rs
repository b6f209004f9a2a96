//! Descriptor sets to one pool. prost-reflect skips a file whose name it knows, and panics on some damaged descriptors and
//! on custom options that do not decode; all of it is refused here before anything is read from the pool.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, FileDescriptor};

use super::fault::Faults;

/// One pool of all sets, or `None` with the faults added. `sets` are serialized `FileDescriptorSet`s, each with the name
/// that its faults carry.
pub(super) fn pool(sets: &[(&Path, &[u8])], faults: &mut Faults) -> Option<DescriptorPool> {
    let before = faults.0.len();
    let mut pool = DescriptorPool::new();
    let mut known: BTreeMap<String, RawFile> = BTreeMap::new();
    for (place, bytes) in sets {
        let files = RawSet::decode(*bytes)
            .and_then(|set| set.file.into_iter().map(RawFile::decode).collect::<Result<Vec<_>, _>>());
        let Ok(files) = files else {
            faults.of(place, "not a serialized FileDescriptorSet");
            continue;
        };
        for file in files {
            // Compilers bring Google's files with them, each in its own version.
            let differs =
                !file.name.starts_with("google/") && known.get(&file.name).is_some_and(|known| *known != file);
            if differs {
                faults.of(
                    place,
                    format!("{} differs from the file of that name in a set before; compile it anew", file.name),
                );
            }
            known.entry(file.name.clone()).or_insert(file);
        }
        match added(pool.clone(), bytes) {
            Ok(larger) => pool = larger,
            Err(why) => faults.of(place, format!("descriptors that do not fit together: {why}")),
        }
    }
    for file in pool.files() {
        if !options_decode(&pool, &file) {
            faults.of(Path::new(file.name()), "options that do not decode");
        }
    }
    (faults.0.len() == before).then_some(pool)
}

/// The file and all it imports, imports first, as a serialized `FileDescriptorSet` with every option.
pub(super) fn closure(file: FileDescriptor) -> Vec<u8> {
    let mut set = RawSet::default();
    let mut seen = BTreeSet::new();
    let mut stack = vec![(file, false)];
    while let Some((file, imports_done)) = stack.pop() {
        if imports_done {
            set.file.push(file.encode_to_vec().into());
        } else if seen.insert(file.name().to_owned()) {
            let imports: Vec<_> = file.dependencies().map(|import| (import, false)).collect();
            stack.push((file, true));
            stack.extend(imports);
        }
    }
    set.encode_to_vec()
}

/// The pool with one set more. A panic on the way is a fault of the set: the pool that it left half-made is dropped.
fn added(mut pool: DescriptorPool, bytes: &[u8]) -> Result<DescriptorPool, String> {
    let adding = AssertUnwindSafe(|| pool.decode_file_descriptor_set(bytes).map(|()| pool));
    match catch_unwind(adding) {
        Ok(Ok(larger)) => Ok(larger),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the set is damaged".into()),
    }
}

/// Decodes the whole file, options included, the way that does not panic.
fn options_decode(pool: &DescriptorPool, file: &FileDescriptor) -> bool {
    const NAME: &str = "google.protobuf.FileDescriptorProto";
    let descriptor = pool.get_message_by_name(NAME).or_else(|| DescriptorPool::global().get_message_by_name(NAME));
    descriptor.is_some_and(|descriptor| DynamicMessage::decode(descriptor, file.encode_to_vec().as_slice()).is_ok())
}

/// `google.protobuf.FileDescriptorSet` with its files left encoded.
#[derive(Clone, PartialEq, prost::Message)]
struct RawSet {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file: Vec<Bytes>,
}

/// `google.protobuf.FileDescriptorProto` with its parts left encoded, custom options and all, but without the comments
/// of `source_code_info`: two files are the same if these are.
#[derive(Clone, PartialEq, prost::Message)]
struct RawFile {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    package: String,
    #[prost(string, repeated, tag = "3")]
    dependency: Vec<String>,
    #[prost(bytes = "bytes", repeated, tag = "4")]
    message_type: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    enum_type: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    service: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    extension: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "8")]
    options: Vec<Bytes>,
    #[prost(int32, repeated, tag = "10")]
    public_dependency: Vec<i32>,
    #[prost(string, tag = "12")]
    syntax: String,
}
