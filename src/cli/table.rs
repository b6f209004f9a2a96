//! Printing for people: tables whose columns stand under each other in Chinese too, and a line of progress. Whatever the
//! text holds, nothing but text and the colours of this module reach the terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// What the place written to can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Colours may be used.
    pub colour: bool,
    /// A line may be rewritten.
    pub live: bool,
}

impl Look {
    /// Neither colours nor rewriting: a file or a pipe.
    pub const PLAIN: Self = Self { colour: false, live: false };

    /// Of standard output. `NO_COLOR`, set to anything but nothing, turns colours off (no-color.org).
    pub fn stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self::of(io::stdout().is_terminal(), refused)
    }

    /// Of standard error, where progress is shown while standard output goes into a file.
    pub fn stderr() -> Self {
        Self::of(io::stderr().is_terminal(), false)
    }

    /// Of a terminal or not, with colours refused or not.
    pub const fn of(terminal: bool, no_colour: bool) -> Self {
        Self { colour: terminal && !no_colour, live: terminal }
    }

    /// The text, made safe to print, in a tone.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        self.wrap_in(tone, &printable(text))
    }

    fn wrap_in(self, tone: Tone, text: &str) -> String {
        match tone.code() {
            Some(code) if self.colour && !text.is_empty() => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }
}

/// What a text means to the reader; colours follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing in particular.
    #[default]
    Plain,
    /// A heading.
    Heading,
    /// As hoped: green.
    Good,
    /// In part: yellow.
    Caution,
    /// Refused: red.
    Bad,
    /// Beside the point: dim.
    Quiet,
}

impl Tone {
    /// The parameter of `SGR` (ECMA-48, 8.3.117).
    const fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Heading => Some("1"),
            Self::Good => Some("32"),
            Self::Caution => Some("33"),
            Self::Bad => Some("31"),
            Self::Quiet => Some("2"),
        }
    }
}

/// What became of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its value was sent.
    Released,
    /// A masked value was sent.
    Masked,
    /// Nothing was sent.
    Withheld,
}

/// The word in capitals, in the colour of the verdict.
impl From<Verdict> for Cell {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Released => Self::toned("RELEASED", Tone::Good),
            Verdict::Masked => Self::toned("MASKED", Tone::Caution),
            Verdict::Withheld => Self::toned("WITHHELD", Tone::Bad),
        }
    }
}

/// One cell of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Text in a tone.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// Columns as wide as their widest cell, at most their limit; longer texts go on in the next line. Columns are parted by
/// two spaces, and rules are ASCII: box-drawing characters have no one width in Chinese terminals.
#[derive(Clone, Debug)]
pub struct Table {
    header: Vec<Cell>,
    limits: Vec<usize>,
    rows: Vec<Vec<Cell>>,
}

/// Widest column unless [`Table::limit`] says otherwise, in terminal columns.
const WIDEST: usize = 48;

impl Table {
    /// An empty table with these headings.
    pub fn new(header: &[&str]) -> Self {
        let header: Vec<_> = header.iter().map(|text| Cell::toned(*text, Tone::Heading)).collect();
        Self { limits: vec![WIDEST; header.len()], header, rows: Vec::new() }
    }

    /// The same table with a column, from 0, at most `width` terminal columns wide; at least 2.
    #[must_use]
    pub fn limit(mut self, column: usize, width: usize) -> Self {
        if let Some(limit) = self.limits.get_mut(column) {
            *limit = width.max(2);
        }
        self
    }

    /// Adds a row; cells beyond the headings are left out, missing ones are empty.
    pub fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        let mut row: Vec<_> = cells.into();
        row.resize(self.header.len(), Cell::default());
        self.rows.push(row);
    }

    /// True if there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes headings, a rule and the rows, each line indented by two spaces.
    pub fn write(&self, out: &mut dyn Write, look: Look) -> io::Result<()> {
        let lines: Vec<Vec<Vec<String>>> =
            [&self.header].into_iter().chain(&self.rows).map(|row| self.wrapped(row)).collect();
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| {
                let cells = lines.iter().filter_map(|row| row.get(column)).flatten();
                cells.map(|line| line.width()).max().unwrap_or(0)
            })
            .collect();
        let rule: Vec<_> = widths.iter().map(|width| vec!["-".repeat(*width)]).collect();
        let quiet = vec![Cell::toned("", Tone::Quiet); widths.len()];
        for (index, (cells, row)) in lines.iter().zip([&self.header].into_iter().chain(&self.rows)).enumerate() {
            write_row(out, look, cells, row, &widths)?;
            if index == 0 {
                write_row(out, look, &rule, &quiet, &widths)?;
            }
        }
        Ok(())
    }

    fn wrapped(&self, row: &[Cell]) -> Vec<Vec<String>> {
        row.iter().zip(&self.limits).map(|(cell, limit)| wrap(&printable(&cell.text), *limit)).collect()
    }
}

/// One row: as many lines as its tallest cell.
fn write_row(out: &mut dyn Write, look: Look, cells: &[Vec<String>], row: &[Cell], widths: &[usize]) -> io::Result<()> {
    let height = cells.iter().map(Vec::len).max().unwrap_or(0);
    for line in 0..height {
        let mut padding = 2;
        for ((cell, Cell { tone, .. }), width) in cells.iter().zip(row).zip(widths) {
            let text = cell.get(line).map_or("", String::as_str);
            if !text.is_empty() {
                write!(out, "{:padding$}{}", "", look.wrap_in(*tone, text))?;
                padding = 0;
            }
            padding += width.saturating_sub(text.width()) + 2;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// The text in lines of at most `limit` terminal columns, broken behind a space where there is one; a line break of the
/// text is one here. Never empty.
fn wrap(text: &str, limit: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let (mut line, mut width) = (String::new(), 0);
        for c in paragraph.chars() {
            let wide = c.width().unwrap_or(0);
            if width + wide > limit {
                let begun = line.rfind(' ').map(|space| line.split_off(space + 1)).unwrap_or_default();
                width = begun.width();
                lines.push(std::mem::replace(&mut line, begun).trim_end().to_owned());
            }
            line.push(c);
            width += wide;
        }
        lines.push(line);
    }
    lines
}

/// The text without what a terminal would obey: control characters, save the line break, and those that turn the
/// direction of writing become U+FFFD.
pub fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(obeyed) { Cow::Owned(text.replace(obeyed, "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// What is going on right now: one line that rewrites itself, or plain lines where it can't.
#[derive(Debug)]
pub struct Progress {
    look: Look,
    shown: bool,
}

/// Longest live line in terminal columns: a longer one would break and could not be rewritten.
const LIVE_WIDTH: usize = 78;

impl Progress {
    /// Nothing shown yet.
    pub const fn new(look: Look) -> Self {
        Self { look, shown: false }
    }

    /// Shows the text instead of the last one.
    pub fn show(&mut self, out: &mut dyn Write, text: &str) -> io::Result<()> {
        let text = printable(text).replace('\n', " ");
        if !self.look.live {
            return writeln!(out, "{text}");
        }
        let line = wrap(&text, LIVE_WIDTH).into_iter().next().unwrap_or_default();
        write!(out, "\r{}\u{1b}[K", self.look.wrap_in(Tone::Quiet, &line))?;
        self.shown = true;
        out.flush()
    }

    /// Takes the live line away; what was written as plain lines stays.
    pub fn clear(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if std::mem::take(&mut self.shown) {
            write!(out, "\r\u{1b}[K")?;
            out.flush()?;
        }
        Ok(())
    }
}

/// How much of a long work is done, on standard error: a bar that rewrites itself, or a line for each tenth. What happens
/// to it is no reason to stop the work.
#[derive(Debug)]
pub struct Bar {
    progress: Progress,
    unit: &'static str,
    /// Percent, or tenths, shown last.
    last: u64,
}

impl Bar {
    /// Nothing shown yet; what is counted is of this unit.
    pub fn new(unit: &'static str) -> Self {
        Self { progress: Progress::new(Look::stderr()), unit, last: 0 }
    }

    /// Shows it, if it changed enough.
    pub fn show(&mut self, done: u64, of: u64) {
        let percent = (done * 100).checked_div(of).unwrap_or(100).min(100);
        let now = if self.progress.look.live { percent } else { percent / 10 };
        if now <= self.last {
            return;
        }
        self.last = now;
        let bar: String = (1..=20).map(|step| if step <= percent / 5 { '█' } else { '·' }).collect();
        let line = format!("{bar} {percent:>3} %  {done} of {of} {}", self.unit);
        let _ = self.progress.show(&mut io::stderr(), &line);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        let _ = self.progress.clear(&mut io::stderr());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(table: &Table, look: Look) -> String {
        let mut out = Vec::new();
        table.write(&mut out, look).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_stand_under_each_other_in_chinese_too() {
        let mut table = Table::new(&["字段", "value", ""]);
        table.row(["公民身份号码".into(), "990***********0012".into(), Verdict::Masked.into()]);
        table.row(["sex".into(), "女".into(), Verdict::Released.into()]);
        table.row(["住址".into(), Cell::default(), Verdict::Withheld.into()]);
        let text = print(&table, Look::PLAIN);
        assert_eq!(
            text,
            "  字段          value\n\
             \u{20} ------------  ------------------  --------\n\
             \u{20} 公民身份号码  990***********0012  MASKED\n\
             \u{20} sex           女                  RELEASED\n\
             \u{20} 住址                              WITHHELD\n"
        );
        // Whatever the script, the verdict begins in the same terminal column.
        for (line, verdict) in text.lines().skip(2).zip(["MASKED", "RELEASED", "WITHHELD"]) {
            assert_eq!(line.strip_suffix(verdict).map(UnicodeWidthStr::width), Some(36));
        }
    }

    #[test]
    fn long_cells_go_on_in_the_next_line() {
        let mut table = Table::new(&["a", "b"]).limit(0, 5);
        table.row(["一二三四".into(), "x".into()]);
        assert_eq!(print(&table, Look::PLAIN), "  a     b\n  ----  -\n  一二  x\n  三四\n");
        assert_eq!(wrap("", 4), [""]);
        assert_eq!(wrap("ab\ncdefg", 4), ["ab", "cdef", "g"]);
        assert_eq!(wrap("id_no, name, sex", 8), ["id_no,", "name,", "sex"], "words stay whole");
        assert_eq!(wrap("a bcdefgh", 4), ["a", "bcde", "fgh"]);
    }

    #[test]
    fn colours_only_where_allowed_and_never_counted_as_width() {
        let mut table = Table::new(&["", "x"]);
        table.row([Verdict::Released.into(), "y".into()]);
        let text = print(&table, Look::of(true, false));
        assert!(text.contains("\u{1b}[32mRELEASED\u{1b}[0m  y"), "{text:?}");
        assert!(!print(&table, Look::of(true, true)).contains('\u{1b}'));
        assert!(!print(&table, Look::of(false, false)).contains('\u{1b}'));
    }

    #[test]
    fn a_value_cannot_drive_the_terminal() {
        let mut table = Table::new(&["x"]);
        table.row(["\u{1b}[2J\u{9b}1mred\r\u{202e}".into()]);
        assert!(print(&table, Look::PLAIN).ends_with("  \u{fffd}[2J\u{fffd}1mred\u{fffd}\u{fffd}\n"));
        assert_eq!(Look::of(true, false).paint(Tone::Plain, "\u{7}"), "\u{fffd}");
    }

    #[test]
    fn progress_rewrites_one_line_on_a_terminal_and_writes_lines_elsewhere() {
        let mut live = Vec::new();
        let mut progress = Progress::new(Look { colour: false, live: true });
        progress.show(&mut live, &"户".repeat(60)).unwrap();
        progress.show(&mut live, "2 of 2").unwrap();
        progress.clear(&mut live).unwrap();
        progress.clear(&mut live).unwrap();
        let expected = format!("\r{}\u{1b}[K\r2 of 2\u{1b}[K\r\u{1b}[K", "户".repeat(39));
        assert_eq!(String::from_utf8(live).unwrap(), expected);

        let mut plain = Vec::new();
        let mut progress = Progress::new(Look::PLAIN);
        progress.show(&mut plain, "1 of 2").unwrap();
        progress.clear(&mut plain).unwrap();
        assert_eq!(plain, b"1 of 2\n");
    }
}
