//! A mirror's copy of a log: entries are pulled, held against the signed root, made durable; only then may the checkpoint
//! be cosigned. The copy has the log's own format, so that everything that reads a log reads it.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Peer, WatchedLog};
use crate::audit::checkpoint::Tree;
use crate::audit::medium::{Medium, Open};
use crate::audit::merkle::leaf_hash;
use crate::audit::note::Note;
use crate::audit::tree::{Entries, LogTree, Resource, TILE};
use crate::audit::{ORIGIN_FILE, PER_SEGMENT, segment_file};
use crate::clock::Clock;
use crate::connectors::RotatingChannel;

/// The copy of one log.
#[derive(Debug)]
pub(super) struct Mirror {
    dir: PathBuf,
    medium: Arc<dyn Medium>,
    source: Peer,
    tree: LogTree,
    /// Where the next entry goes within its segment, in bytes.
    offset: u64,
}

impl Mirror {
    /// Opens the copy, which must hold `tree`, the latest that was cosigned; what stands behind it is cut off.
    pub(super) fn open(
        log: &WatchedLog,
        origin: &str,
        tree: Tree,
        clock: &Clock,
        medium: Arc<dyn Medium>,
    ) -> Result<Self, String> {
        let (Some(url), Some(dir)) = (&log.source, &log.copy) else {
            return Err(format!("logs: a mirror needs `source` and `copy` of {origin}"));
        };
        let source = Peer::new("log", url, log.tls.as_ref(), None, clock).map_err(|error| error.to_string())?;
        let failed = |error: &dyn std::fmt::Display| format!("copy {}: {error}", dir.display());
        fs::create_dir_all(dir).map_err(|error| failed(&error))?;
        medium.replace(dir, ORIGIN_FILE, origin.as_bytes()).map_err(|error| failed(&error))?;
        // What was pruned here has left its hashes; those of full segments are kept so that they may be pruned.
        let mut held = LogTree::keeping_from_first(dir, medium.clone()).map_err(|error| failed(&error))?;
        held.grow(tree.size).map_err(|error| failed(&error))?;
        if held.frontier().root() != tree.root {
            return Err(failed(&"its entries are not those that were cosigned"));
        }
        let mut mirror = Self { dir: dir.clone(), medium, source, offset: held.end(), tree: held };
        mirror.cut().map_err(|error| failed(&error))?;
        Ok(mirror)
    }

    /// The channel to the log's gateway, if that proves itself by TLS.
    pub(super) fn channel(&self) -> Option<&Arc<RotatingChannel>> {
        self.source.channel()
    }

    /// Pulls what is missing up to `tree` and makes it durable. On an error the copy is as it was.
    pub(super) async fn pull(&mut self, tree: Tree) -> Result<(), String> {
        let pulled = self.try_pull(tree).await;
        if pulled.is_err() {
            // What was pulled may be anything.
            self.cut().map_err(|error| error.to_string())?;
        }
        pulled
    }

    /// Puts the cosigned checkpoint beside the copy.
    pub(super) fn keep_checkpoint(&self, note: &Note) -> io::Result<()> {
        ["witnessed", "checkpoint"]
            .iter()
            .try_for_each(|name| self.medium.replace(&self.dir, name, note.to_string().as_bytes()))
    }

    async fn try_pull(&mut self, tree: Tree) -> Result<(), String> {
        let failed = |error: io::Error| format!("the copy can't be written: {error}");
        let (mut frontier, mut at, mut offset) = (self.tree.frontier(), self.tree.size(), self.offset);
        let mut file = None;
        while at < tree.size {
            let number = at / TILE;
            let width = (tree.size - number * TILE).min(TILE);
            let resource = Resource::Entries { number, width: u16::try_from(width).unwrap_or(u16::MAX) };
            let answer = self.source.get(&format!("/{}", resource.path())).await.map_err(|error| error.to_string())?;
            if answer.status == http::StatusCode::GONE {
                let what =
                    "the log is pruned there: a copy begins as a copy of another copy, or of the log's directory";
                return Err(format!("{}: {what}", resource.path()));
            }
            if answer.status != http::StatusCode::OK {
                return Err(format!("{}: {}", resource.path(), answer.status));
            }
            let skip = usize::try_from(at % TILE).unwrap_or_default();
            let bundle = answer.body;
            let mut bytes = Vec::with_capacity(bundle.len());
            let mut count = 0;
            for entry in Entries(&bundle) {
                count += 1;
                if count <= skip {
                    continue;
                }
                frontier.push(leaf_hash(entry));
                bytes.extend_from_slice(&u16::try_from(entry.len()).unwrap_or_default().to_be_bytes());
                bytes.extend_from_slice(entry);
            }
            if count as u64 != width {
                return Err(format!("{}: {count} entries instead of {width}", resource.path()));
            }
            let segment = at / PER_SEGMENT;
            if at.is_multiple_of(PER_SEGMENT) {
                offset = 0;
                self.sync(file.take()).await.map_err(failed)?;
            }
            let open = match file.take() {
                Some(file) => file,
                None => self.segment(segment).map_err(failed)?,
            };
            self.medium.write(&open, &bytes, offset).map_err(failed)?;
            file = Some(open);
            offset += bytes.len() as u64;
            at += (count - skip) as u64;
        }
        self.sync(file).await.map_err(failed)?;
        self.medium.sync_dir(&self.dir).map_err(failed)?;
        if frontier.root() != tree.root {
            return Err("the entries are not those that the checkpoint signs".to_owned());
        }
        self.tree.grow(tree.size).map_err(|error| error.to_string())?;
        self.offset = offset;
        Ok(())
    }

    /// Cuts off what stands behind the copy's end. Should it come back with the next power failure, it is cut off again.
    fn cut(&mut self) -> io::Result<()> {
        let segment = self.tree.size() / PER_SEGMENT;
        let mut later = segment + 1;
        while self.dir.join(segment_file(later)).exists() {
            self.medium.remove(&self.dir.join(segment_file(later)))?;
            later += 1;
        }
        self.offset = self.tree.end();
        let file = self.segment(segment)?;
        self.medium.cut(&file, self.offset)
    }

    fn segment(&self, number: u64) -> io::Result<File> {
        self.medium.open(&self.dir.join(segment_file(number)), Open::OrMade)
    }

    async fn sync(&self, file: Option<File>) -> io::Result<()> {
        let (Some(file), medium) = (file, self.medium.clone()) else { return Ok(()) };
        tokio::task::spawn_blocking(move || medium.sync(&file)).await.map_err(io::Error::other)?
    }
}
