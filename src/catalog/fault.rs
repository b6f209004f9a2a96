//! What is wrong with a file that operators write: all faults at once, each with its place.

use std::fmt;
use std::path::{Path, PathBuf};

/// One fault of a configuration, catalog or grant file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// Line from 1, if it is known.
    pub line: Option<usize>,
    /// What is wrong and what would be right.
    pub message: String,
}

/// All faults found by one load; never empty when returned as an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// Adds a fault at a byte offset of `text`.
    pub fn at(&mut self, file: &Path, text: &str, offset: usize, message: impl Into<String>) {
        let line = text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1;
        self.0.push(Fault { file: file.into(), line: Some(line), message: message.into() });
    }

    /// Adds a fault of a whole file.
    pub fn of(&mut self, file: &Path, message: impl Into<String>) {
        self.0.push(Fault { file: file.into(), line: None, message: message.into() });
    }

    /// `value` if there was no fault.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, fault) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", fault.file.display())?;
            if let Some(line) = fault.line {
                write!(f, ":{line}")?;
            }
            write!(f, ": {}", fault.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
