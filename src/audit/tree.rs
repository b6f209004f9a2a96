//! The Merkle tree over a log's files: its nodes, its tiles and entry bundles as C2SP tlog-tiles names them.
//!
//! Everything here is derived from the segments. Of a full segment the hashes are kept in `NNNNNNNNNN.tiles`, so that a
//! proof reads kilobytes and not the log:
//! ```text
//! 65,536 leaf hashes ‖ 256 roots of 256 leaves each ‖ 257 × u32: where each entry bundle begins, and the last one ends
//! ```
//! A damaged `.tiles` file makes proofs that do not hold, never proofs that hold wrongly: the signed root decides.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::Tree;
use super::files::read_small;
use super::frame::{Header, LENGTH, PER_SEGMENT};
use super::medium::Medium;
use super::merkle::{self, Frontier, Hash, Nodes, leaf_hash};
use super::scan::{Window, file_name, segments};

/// Hashes of a full tile, entries of a full bundle.
pub const TILE: u64 = 256;
/// Level of a full segment's root: 2^16 leaves.
const SEGMENT_LEVEL: u32 = 16;
/// Level of a full level-0 tile's root: 2^8 leaves.
const TILE_LEVEL: u32 = 8;
/// [`TILE`] and entries of a segment, to count things in memory with.
const TILE_LEN: usize = 256;
const SEGMENT_LEN: usize = 65_536;
/// Bytes of a hash.
const HASH: usize = 32;
/// Bytes of a `.tiles` file: 65,536 × 32 + 256 × 32 + 257 × 4 = 2,106,372.
const TILES_FILE: usize = (SEGMENT_LEN + TILE_LEN) * HASH + (TILE_LEN + 1) * 4;

/// The tree over the first [`LogTree::size`] entries of the log in a directory.
#[derive(Debug)]
pub struct LogTree {
    dir: PathBuf,
    /// Keeps the hashes of segments that become full, if any does.
    keep: Option<Arc<dyn Medium>>,
    /// Trust the hashes that are kept?
    trust: bool,
    /// Roots of the full segments.
    roots: Vec<Hash>,
    /// The last, unfinished segment.
    growing: Growing,
    /// The full segment looked at last: proofs and bundles come in runs.
    recent: Option<(u64, Arc<Hashes>)>,
}

/// Hashes and bundles of one segment.
#[derive(Debug, Default)]
struct Hashes {
    leaves: Vec<Hash>,
    tiles: Vec<Hash>,
    /// Offsets of the bundles.
    starts: Vec<u32>,
    /// Offset behind the last entry.
    end: u32,
}

#[derive(Default)]
struct Growing {
    hashes: Hashes,
    window: Option<Window>,
}

impl std::fmt::Debug for Growing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Growing").field("entries", &self.hashes.leaves.len()).finish_non_exhaustive()
    }
}

impl LogTree {
    /// The tree of the log in `dir`, of the full segments whose hashes are kept there; [`LogTree::grow`] takes it further.
    /// Changes nothing there.
    pub fn open(dir: &Path) -> Result<Self, TreeError> {
        let mut tree = Self { trust: true, ..Self::from_entries(dir) };
        while let Some(root) = kept_root(dir, tree.roots.len() as u64)? {
            tree.roots.push(root);
        }
        Ok(tree)
    }

    /// As [`LogTree::open`], and keeps the hashes of segments that become full.
    pub(super) fn keeping(dir: &Path, medium: Arc<dyn Medium>) -> Result<Self, TreeError> {
        Ok(Self { keep: Some(medium), ..Self::open(dir)? })
    }

    /// As [`LogTree::open`], and trusts no kept hash: every entry is read.
    pub fn from_entries(dir: &Path) -> Self {
        let (roots, growing) = (Vec::new(), Growing::default());
        Self { dir: dir.into(), keep: None, trust: false, roots, growing, recent: None }
    }

    /// As [`LogTree::from_entries`], from the first segment that is not pruned on: of what was before, only the kept hashes
    /// are left.
    pub fn from_first(dir: &Path) -> Result<Self, TreeError> {
        Self::from_segment(dir, segments(dir)?.first().copied().unwrap_or_default())
    }

    /// As [`LogTree::from_first`], and keeps the hashes of segments that are or become full.
    pub(crate) fn keeping_from_first(dir: &Path, medium: Arc<dyn Medium>) -> Result<Self, TreeError> {
        Ok(Self { keep: Some(medium), ..Self::from_first(dir)? })
    }

    /// As [`LogTree::from_entries`], from segment `first` on.
    pub(super) fn from_segment(dir: &Path, first: u64) -> Result<Self, TreeError> {
        let mut tree = Self::from_entries(dir);
        for segment in 0..first {
            let hashes = tree.hashes(segment)?;
            // The level above is derived from the leaves here, not believed.
            let leaves = Hashes::of_leaves(&hashes.leaves);
            tree.roots.push(leaves.root());
        }
        Ok(tree)
    }

    /// True if no hashes of a full segment are kept, or the right ones.
    pub(super) fn kept_are_right(&mut self, segment: u64) -> Result<bool, TreeError> {
        match read_small(&self.dir.join(tiles_name(segment)), TILES_FILE) {
            Ok(None) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Ok(false),
            Err(error) => Err(error.into()),
            Ok(Some(kept)) => match &self.recent {
                Some((number, hashes)) if *number == segment => Ok(hashes.to_bytes() == kept),
                _ => Ok(Hashes::of_segment(&self.dir, segment)?.to_bytes() == kept),
            },
        }
    }

    /// The log's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Entries in the tree.
    pub fn size(&self) -> u64 {
        self.roots.len() as u64 * PER_SEGMENT + self.growing.hashes.leaves.len() as u64
    }

    /// Offset behind the last entry, in its segment.
    pub(crate) fn end(&self) -> u64 {
        self.growing.hashes.end.into()
    }

    /// Offset behind the last entry of the segment read last; right after it became full, too.
    pub(super) fn segment_end(&self) -> u64 {
        match &self.recent {
            Some((_, full)) if self.growing.hashes.leaves.is_empty() => full.end.into(),
            _ => self.end(),
        }
    }

    /// Reads on until the tree has `size` entries; does nothing if it has them.
    pub fn grow(&mut self, size: u64) -> Result<(), TreeError> {
        while self.size() < size {
            self.read_entry()?.ok_or(TreeError::Missing { index: self.size() })?;
        }
        Ok(())
    }

    /// Reads one entry more; `None` where no whole entry follows.
    pub(super) fn read_entry(&mut self) -> Result<Option<Header>, TreeError> {
        let (index, segment) = (self.size(), self.roots.len() as u64);
        let offset = self.growing.hashes.end;
        let window = match &mut self.growing.window {
            Some(window) => window,
            none => match File::open(self.dir.join(file_name(segment))) {
                Ok(file) => none.insert(Window::new(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            },
        };
        let mut found = window.entry(u64::from(offset))?;
        if found.is_none() {
            // A live log may have grown since.
            window.forget();
            found = window.entry(u64::from(offset))?;
        }
        let Some((header, length)) = found.filter(|(header, _)| header.seq == index) else { return Ok(None) };
        let leaf = leaf_hash(window.bytes(u64::from(offset), length)?);
        let end = u32::try_from(LENGTH + length).ok().and_then(|length| offset.checked_add(length));
        self.growing.hashes.push(leaf, end.ok_or(TreeError::Missing { index })?);
        if self.growing.hashes.leaves.len() as u64 == PER_SEGMENT {
            self.seal(segment)?;
        }
        Ok(Some(header))
    }

    /// The root of the first `size` entries, and the tree as a checkpoint tells it.
    pub fn tree(&mut self, size: u64) -> Result<Tree, TreeError> {
        self.must_have(size)?;
        Ok(Tree { size, root: merkle::root(self, size)? })
    }

    /// The frontier of the whole tree.
    pub fn frontier(&self) -> Frontier {
        let mut frontier = Frontier::default();
        for root in &self.roots {
            let _always = frontier.push_node(SEGMENT_LEVEL, *root);
        }
        for tile in &self.growing.hashes.tiles {
            let _always = frontier.push_node(TILE_LEVEL, *tile);
        }
        let rest = self.growing.hashes.tiles.len() * TILE_LEN;
        for leaf in self.growing.hashes.leaves.iter().skip(rest) {
            frontier.push(*leaf);
        }
        frontier
    }

    /// Inclusion proof of an entry in the tree of `size` entries.
    pub fn prove_inclusion(&mut self, index: u64, size: u64) -> Result<Vec<Hash>, TreeError> {
        self.must_have(size)?;
        if index >= size {
            return Err(TreeError::Missing { index });
        }
        merkle::prove_inclusion(self, index, size)
    }

    /// Consistency proof from `old` to `new` entries.
    pub fn prove_consistency(&mut self, old: u64, new: u64) -> Result<Vec<Hash>, TreeError> {
        self.must_have(new)?;
        merkle::prove_consistency(self, old, new)
    }

    /// The bytes of a resource of a tree of `size` entries, as C2SP tlog-tiles serves it; `None` if that tree has none
    /// such.
    pub fn resource(&mut self, resource: Resource, size: u64) -> Result<Option<Vec<u8>>, TreeError> {
        self.must_have(size)?;
        let (level, number, width) = match resource {
            Resource::Tile { level, number, width } => (u32::from(level) * TILE_LEVEL, number, width),
            Resource::Entries { number, width } => (0, number, width),
        };
        // Nodes of that level in the tree; level 63 of tiles is far above any tree.
        let have = size.checked_shr(level).unwrap_or_default();
        let wanted = number.checked_mul(TILE).and_then(|first| first.checked_add(u64::from(width)));
        if wanted.is_none_or(|wanted| wanted > have) {
            return Ok(None);
        }
        if matches!(resource, Resource::Entries { .. }) {
            return self.bundle(number, usize::from(width)).map(Some);
        }
        let mut bytes = Vec::with_capacity(usize::from(width) * HASH);
        for place in 0..u64::from(width) {
            bytes.extend_from_slice(&self.node(level, number * TILE + place)?);
        }
        Ok(Some(bytes))
    }

    /// One entry, without its length.
    pub fn entry(&mut self, index: u64) -> Result<Vec<u8>, TreeError> {
        self.must_have(index.checked_add(1).ok_or(TreeError::Missing { index })?)?;
        let within = usize::try_from(index % TILE).unwrap_or_default();
        let bundle = self.bundle(index / TILE, within + 1)?;
        let mut entries = Entries(&bundle);
        entries.nth(within).map(<[u8]>::to_vec).ok_or(TreeError::Missing { index })
    }

    /// The leaf hash of an entry in the tree.
    pub fn leaf(&mut self, index: u64) -> Result<Hash, TreeError> {
        self.must_have(index.checked_add(1).ok_or(TreeError::Missing { index })?)?;
        self.node(0, index)
    }

    fn must_have(&self, size: u64) -> Result<(), TreeError> {
        if size <= self.size() { Ok(()) } else { Err(TreeError::Missing { index: self.size() }) }
    }

    fn seal(&mut self, segment: u64) -> Result<(), TreeError> {
        let full = std::mem::take(&mut self.growing).hashes;
        self.roots.push(full.root());
        if let Some(medium) = &self.keep {
            let (name, bytes) = (tiles_name(segment), full.to_bytes());
            // Who opens a log reads all of it again: what is right stays.
            if read_small(&self.dir.join(&name), TILES_FILE).ok().flatten().as_ref() != Some(&bytes) {
                medium.replace(&self.dir, &name, &bytes)?;
            }
        }
        self.recent = Some((segment, Arc::new(full)));
        Ok(())
    }

    fn hashes(&mut self, segment: u64) -> Result<Arc<Hashes>, TreeError> {
        if let Some((number, hashes)) = &self.recent
            && *number == segment
        {
            return Ok(hashes.clone());
        }
        let kept = if self.trust || !self.dir.join(file_name(segment)).exists() {
            let bytes = read_small(&self.dir.join(tiles_name(segment)), TILES_FILE).ok().flatten();
            bytes.and_then(|bytes| Hashes::from_bytes(&bytes))
        } else {
            None
        };
        let hashes = match kept {
            Some(hashes) => hashes,
            None => Hashes::of_segment(&self.dir, segment)?,
        };
        let hashes = Arc::new(hashes);
        self.recent = Some((segment, hashes.clone()));
        Ok(hashes)
    }

    /// The first `width` entries of a bundle, each with its length in front.
    fn bundle(&mut self, number: u64, width: usize) -> Result<Vec<u8>, TreeError> {
        let (segment, place) = (number / TILE, usize::try_from(number % TILE).unwrap_or_default());
        let missing = TreeError::Missing { index: number * TILE };
        let (start, end) = if segment == self.roots.len() as u64 {
            self.growing.hashes.bundle(place)
        } else {
            self.hashes(segment)?.bundle(place)
        }
        .ok_or(missing)?;
        let mut file = match File::open(self.dir.join(file_name(segment))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(TreeError::Pruned { segment }),
            file => file?,
        };
        file.seek(SeekFrom::Start(start.into()))?;
        let mut bytes = vec![0; usize::try_from(end - start).unwrap_or_default()];
        file.read_exact(&mut bytes)?;
        let wanted: usize = Entries(&bytes).take(width).map(|entry| LENGTH + entry.len()).sum();
        bytes.truncate(wanted);
        Ok(bytes)
    }
}

impl Nodes for LogTree {
    type Error = TreeError;

    fn node(&mut self, level: u32, index: u64) -> Result<Hash, TreeError> {
        let missing = || TreeError::Missing { index: index.checked_shl(level).unwrap_or(u64::MAX) };
        if level >= SEGMENT_LEVEL {
            let count = 1_usize.checked_shl(level - SEGMENT_LEVEL).ok_or_else(missing)?;
            let start = usize::try_from(index).ok().and_then(|index| index.checked_mul(count)).ok_or_else(missing)?;
            return self.roots.get(start..start + count).map(fold).ok_or_else(missing);
        }
        let per_segment = SEGMENT_LEVEL - level;
        let (segment, within) = (index >> per_segment, index & ((1 << per_segment) - 1));
        let within = usize::try_from(within).unwrap_or(usize::MAX);
        if segment == self.roots.len() as u64 {
            return self.growing.hashes.node(level, within).ok_or_else(missing);
        }
        if segment > self.roots.len() as u64 {
            return Err(missing());
        }
        self.hashes(segment)?.node(level, within).ok_or_else(missing)
    }
}

impl Hashes {
    fn push(&mut self, leaf: Hash, end: u32) {
        if self.leaves.len().is_multiple_of(TILE_LEN) {
            self.starts.push(self.end);
        }
        self.leaves.push(leaf);
        self.end = end;
        if self.leaves.len().is_multiple_of(TILE_LEN)
            && let Some(tile) = self.leaves.get(self.leaves.len() - TILE_LEN..)
        {
            self.tiles.push(fold(tile));
        }
    }

    fn of_leaves(leaves: &[Hash]) -> Self {
        let mut hashes = Self::default();
        for leaf in leaves {
            hashes.push(*leaf, 0);
        }
        hashes
    }

    /// Within the segment, below its root.
    fn node(&self, level: u32, index: usize) -> Option<Hash> {
        let (hashes, level) =
            if level >= TILE_LEVEL { (&self.tiles, level - TILE_LEVEL) } else { (&self.leaves, level) };
        let start = index.checked_shl(level)?;
        hashes.get(start..start.checked_add(1 << level)?).map(fold)
    }

    fn bundle(&self, place: usize) -> Option<(u32, u32)> {
        Some((*self.starts.get(place)?, self.starts.get(place + 1).copied().unwrap_or(self.end)))
    }

    fn root(&self) -> Hash {
        fold(&self.tiles)
    }

    fn of_segment(dir: &Path, segment: u64) -> Result<Self, TreeError> {
        let file = match File::open(dir.join(file_name(segment))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(TreeError::Pruned { segment }),
            file => file?,
        };
        let (mut window, mut hashes, first) = (Window::new(file), Self::default(), segment * PER_SEGMENT);
        for index in first..first + PER_SEGMENT {
            let missing = TreeError::Missing { index };
            let Some((header, length)) = window.entry(hashes.end.into())? else { return Err(missing) };
            if header.seq != index {
                return Err(missing);
            }
            let leaf = leaf_hash(window.bytes(hashes.end.into(), length)?);
            let end = u32::try_from(LENGTH + length).ok().and_then(|length| hashes.end.checked_add(length));
            hashes.push(leaf, end.ok_or(missing)?);
        }
        Ok(hashes)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(TILES_FILE);
        for hash in self.leaves.iter().chain(&self.tiles) {
            bytes.extend_from_slice(hash);
        }
        for start in self.starts.iter().chain([&self.end]) {
            bytes.extend_from_slice(&start.to_be_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != TILES_FILE {
            return None;
        }
        let (leaves, rest) = bytes.split_at_checked(SEGMENT_LEN * HASH)?;
        let (tiles, starts) = rest.split_at_checked(TILE_LEN * HASH)?;
        let mut starts: Vec<_> = starts.as_chunks::<4>().0.iter().map(|start| u32::from_be_bytes(*start)).collect();
        let end = starts.pop()?;
        // What a bundle's range rests on.
        let ordered = starts.is_sorted() && starts.last().is_some_and(|last| *last <= end);
        let hashes = |bytes: &[u8]| bytes.as_chunks::<HASH>().0.to_vec();
        ordered.then(|| Self { leaves: hashes(leaves), tiles: hashes(tiles), starts, end })
    }
}

/// Root of 2^n hashes.
fn fold(hashes: &[Hash]) -> Hash {
    let mut frontier = Frontier::default();
    for hash in hashes {
        frontier.push(*hash);
    }
    frontier.root()
}

/// Name of the file that keeps a full segment's hashes.
pub(super) fn tiles_name(segment: u64) -> String {
    format!("{segment:010}.tiles")
}

/// Root of a full segment whose hashes are kept.
pub(super) fn kept_root(dir: &Path, segment: u64) -> io::Result<Option<Hash>> {
    let mut file = match File::open(dir.join(tiles_name(segment))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    if file.metadata()?.len() != TILES_FILE as u64 {
        return Ok(None);
    }
    let mut tiles = vec![0; TILE_LEN * HASH];
    file.seek(SeekFrom::Start(PER_SEGMENT * HASH as u64))?;
    file.read_exact(&mut tiles)?;
    Ok(Some(fold(tiles.as_chunks::<HASH>().0)))
}

/// Root of a full segment, from its entries.
pub(super) fn segment_root(dir: &Path, segment: u64) -> Result<Hash, TreeError> {
    Hashes::of_segment(dir, segment).map(|hashes| hashes.root())
}

/// Entries one after the other, each with its length in front; ends where no whole one follows.
pub struct Entries<'a>(pub &'a [u8]);

impl<'a> Iterator for Entries<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<LENGTH>()?;
        let (entry, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        self.0 = rest;
        Some(entry)
    }
}

impl std::fmt::Debug for Entries<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entries({} bytes)", self.0.len())
    }
}

/// A resource of C2SP tlog-tiles other than the checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource {
    /// `width` hashes, 1 to 256.
    Tile {
        /// Level of the tile: its hashes are roots of 256^level entries.
        level: u8,
        /// Number in its level.
        number: u64,
        /// Hashes.
        width: u16,
    },
    /// `width` entries, 1 to 256, each with its length in front.
    Entries {
        /// Number of the bundle.
        number: u64,
        /// Entries.
        width: u16,
    },
}

impl Resource {
    /// The resource of a path such as `tile/0/x001/234`, `tile/entries/000.p/17`; `None` for any other or any other
    /// spelling.
    pub fn of_path(path: &str) -> Option<Self> {
        let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let (number, width) = match rest.split_once(".p/") {
            None => (rest, 256),
            Some((number, width)) => {
                let width = super::checkpoint::decimal(width).filter(|width| (1..256).contains(width))?;
                (number, u16::try_from(width).ok()?)
            }
        };
        let number = parse_number(number)?;
        let resource = if level == "entries" {
            Self::Entries { number, width }
        } else {
            let level = super::checkpoint::decimal(level).filter(|level| *level < 64)?;
            Self::Tile { level: u8::try_from(level).ok()?, number, width }
        };
        // One resource has one name.
        (resource.path() == path).then_some(resource)
    }

    /// Its path.
    pub fn path(self) -> String {
        let (level, number, width) = match self {
            Self::Tile { level, number, width } => (level.to_string(), number, width),
            Self::Entries { number, width } => ("entries".to_owned(), number, width),
        };
        let mut path = format!("{:03}", number % 1000);
        let mut rest = number / 1000;
        while rest > 0 {
            path = format!("x{:03}/{path}", rest % 1000);
            rest /= 1000;
        }
        if width == 256 { format!("tile/{level}/{path}") } else { format!("tile/{level}/{path}.p/{width}") }
    }

    /// All resources of a tree of that size: entry bundles first, then tiles by level.
    pub fn all(size: u64) -> impl Iterator<Item = Self> {
        let widths = |nodes: u64| {
            let partial = u16::try_from(nodes % TILE).unwrap_or_default();
            (0..nodes / TILE).map(|number| (number, 256)).chain((partial > 0).then_some((nodes / TILE, partial)))
        };
        let bundles = widths(size).map(|(number, width)| Self::Entries { number, width });
        let levels = (0..8_u8).flat_map(move |level| {
            let nodes = size.checked_shr(u32::from(level) * TILE_LEVEL).unwrap_or_default();
            widths(nodes).map(move |(number, width)| Self::Tile { level, number, width })
        });
        bundles.chain(levels)
    }
}

fn parse_number(text: &str) -> Option<u64> {
    let mut number = 0_u64;
    let mut parts = text.split('/').peekable();
    while let Some(part) = parts.next() {
        let digits = if parts.peek().is_some() { part.strip_prefix('x')? } else { part };
        if digits.len() != 3 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        number = number.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
    }
    Some(number)
}

/// Why a part of the tree can't be had.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// No whole entry of that index stands in the log.
    #[error("entry {index} is not in the log, or damaged")]
    Missing {
        /// The index.
        index: u64,
    },
    /// Its segment was pruned.
    #[error("the entries of segment {segment} are pruned")]
    Pruned {
        /// Number of the segment.
        segment: u64,
    },
    /// The entries are not those that were signed.
    #[error("the first {size} entries are not those that were signed")]
    Unsigned {
        /// How many.
        size: u64,
    },
    /// A file can't be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_canonical() {
        for (path, resource) in [
            ("tile/0/000", Resource::Tile { level: 0, number: 0, width: 256 }),
            ("tile/1/x001/x234/067", Resource::Tile { level: 1, number: 1_234_067, width: 256 }),
            ("tile/entries/x001/255.p/17", Resource::Entries { number: 1255, width: 17 }),
        ] {
            assert_eq!(Resource::of_path(path), Some(resource));
            assert_eq!(resource.path(), path);
        }
        for path in [
            "",
            "tile/0/0",
            "tile/00/000",
            "tile/64/000",
            "tile/0/x000/001",
            "tile/0/001/001",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/01",
            "tile/0/000.p/1/",
            "tile/-1/000",
            "tile/0/../000",
            "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
        ] {
            assert_eq!(Resource::of_path(path), None, "{path}");
        }
    }

    #[test]
    fn a_tree_of_seventy_thousand_has_the_tiles_that_the_specification_counts() {
        let tiles = |wanted: u8| {
            let of_level = |resource: &Resource| matches!(resource, Resource::Tile { level, .. } if *level == wanted);
            Resource::all(70_000).filter(of_level).map(Resource::path).collect::<Vec<_>>()
        };
        assert_eq!((tiles(0).len(), tiles(0).last().unwrap().as_str()), (274, "tile/0/273.p/112"));
        assert_eq!(tiles(1), ["tile/1/000", "tile/1/001.p/17"]);
        assert_eq!(tiles(2), ["tile/2/000.p/1"]);
        assert_eq!(
            Resource::all(256).map(Resource::path).collect::<Vec<_>>(),
            ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]
        );
        assert_eq!(Resource::all(0).count(), 0);
    }
}
