//! What is wrong with a file that operators write: all faults at once, each with its place.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize as _, DeserializeOwned};
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, ValueDeserializer};

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

    /// Adds a fault of a line, counted from 1, if it is known.
    pub fn line(&mut self, file: &Path, line: Option<usize>, message: impl Into<String>) {
        self.0.push(Fault { file: file.into(), line, message: message.into() });
    }

    /// Adds a fault of a whole file.
    pub fn of(&mut self, file: &Path, message: impl Into<String>) {
        self.0.push(Fault { file: file.into(), line: None, message: message.into() });
    }

    /// Adds a fault of TOML's form or of a value's type.
    fn toml(&mut self, file: &Path, text: &str, error: &toml::de::Error) {
        self.at(file, text, error.span().map_or(0, |span| span.start), error.message());
    }

    /// The tables and values of a TOML text, or all its faults of form.
    pub fn table<'t>(&mut self, file: &Path, text: &'t str) -> Option<Spanned<DeTable<'t>>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            self.toml(file, text, error);
        }
        errors.is_empty().then_some(table)
    }

    /// What a table says, or why it does not.
    pub fn typed<T: DeserializeOwned>(&mut self, file: &Path, text: &str, table: Spanned<DeTable<'_>>) -> Option<T> {
        T::deserialize(Deserializer::from(table)).map_err(|error| self.toml(file, text, &error)).ok()
    }

    /// Takes an array of tables out of a table. Each entry that is not of the type is a fault of its own and left out.
    pub fn entries<T: DeserializeOwned>(
        &mut self,
        file: &Path,
        text: &str,
        table: &mut Spanned<DeTable<'_>>,
        name: &str,
    ) -> Vec<Spanned<T>> {
        let Some(array) = table.get_mut().remove(name) else { return Vec::new() };
        let start = array.span().start;
        let DeValue::Array(array) = array.into_inner() else {
            self.at(file, text, start, format!("each is written as [[{name}]]"));
            return Vec::new();
        };
        let typed = |entry| Spanned::deserialize(ValueDeserializer::from(entry));
        array.into_iter().filter_map(|entry| typed(entry).map_err(|error| self.toml(file, text, &error)).ok()).collect()
    }

    /// The same faults, said of the files that were copied from `to`.
    #[must_use]
    pub fn moved(mut self, from: &Path, to: &Path) -> Self {
        for fault in &mut self.0 {
            if let Ok(within) = fault.file.strip_prefix(from) {
                fault.file = to.join(within);
            }
        }
        self
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
