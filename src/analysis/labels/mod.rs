//! Labels of ids from a table.
//!
//! Tab-separated with a header; the first column is the id, every other a label column. A cell may hold several
//! values parted by `;`. An empty cell is unknown: its rows are neither positive nor negative for that column.
//! Fields are taken as they stand: quotes mean nothing.

pub mod choose;

use crate::data::first_control;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A table of labels as it was read.
#[derive(Debug, Clone)]
pub struct LabelTable {
    path: PathBuf,
    text: String,
    /// Names of the label columns.
    columns: Vec<String>,
    /// Id of each line.
    ids: Vec<Range<usize>>,
    /// Cells of all lines, one after another.
    cells: Vec<Range<usize>>,
    line_of: HashMap<String, u32>,
}

impl LabelTable {
    /// Reads a table.
    ///
    /// # Errors
    /// [`Error::Data`] naming file and line: not UTF-8; a header without a label column, with an empty or a repeated
    /// name; a field with a control character; a line with another number of fields; an id that is empty or was seen
    /// before. A table without lines.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let line =
                e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
            Error::data(path, format!("line {line}"), "is not UTF-8; save the table as UTF-8 text")
        })?;
        Self::parse(path, text)
    }

    fn parse(path: &Path, text: String) -> Result<Self> {
        let wrong = |line: usize, what: String| Error::data(path, format!("line {line}"), what);
        let mut lines = lines(&text);
        let header = lines.next().map(|(_, range)| range).unwrap_or(0..0);
        let columns: Vec<String> =
            fields(&text, header).skip(1).map(|field| text[field].to_owned()).collect();
        if columns.is_empty() {
            return Err(wrong(
                1,
                "has no tab; give a tab-separated table whose first column is the id".into(),
            ));
        }
        let control = |line: usize, what: &str, field: &str| match first_control(field) {
            Some(found) => Err(wrong(line, format!("the {what} {field:?} holds {found}; remove it"))),
            None => Ok(()),
        };
        for (at, name) in columns.iter().enumerate() {
            control(1, "column name", name)?;
            if name.is_empty() {
                return Err(wrong(1, format!("names no column {}; give it a name", at + 2)));
            }
            if columns[..at].contains(name) {
                return Err(wrong(1, format!("names the column \"{name}\" twice; give one another name")));
            }
        }
        let (mut ids, mut cells, mut line_of) = (vec![], vec![], HashMap::new());
        let mut numbers: Vec<usize> = vec![];
        for (number, range) in lines {
            let before = cells.len();
            let mut found = fields(&text, range);
            let id = found.next().unwrap_or(0..0);
            cells.extend(found);
            let n = cells.len() - before;
            if n != columns.len() {
                let what = format!("has {} fields, the header {}; mend it", n + 1, columns.len() + 1);
                return Err(wrong(number, what));
            }
            control(number, "id", &text[id.clone()])?;
            for cell in &cells[before..] {
                control(number, "label", &text[cell.clone()])?;
            }
            if id.is_empty() {
                return Err(wrong(number, "has no id in its first field; mend it".into()));
            }
            match line_of.entry(text[id.clone()].to_owned()) {
                Entry::Vacant(place) => place.insert(ids.len() as u32),
                Entry::Occupied(place) => {
                    let (id, first) = (place.key(), numbers[*place.get() as usize]);
                    let what = format!(
                        "has the id \"{id}\" of line {first} again; put its labels on one line, parted by \";\""
                    );
                    return Err(wrong(number, what));
                }
            };
            ids.push(id);
            numbers.push(number);
        }
        if ids.is_empty() {
            return Err(Error::data(path, "", "has a header and no lines; give a table with labels"));
        }
        Ok(Self { path: path.to_owned(), columns, ids, cells, line_of, text })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the label columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Number of lines below the header.
    pub fn n_lines(&self) -> usize {
        self.ids.len()
    }

    /// The id of a line.
    ///
    /// # Panics
    /// If `line` is not a line.
    pub fn id(&self, line: usize) -> &str {
        &self.text[self.ids[line].clone()]
    }

    /// The line of an id.
    pub fn line_of(&self, id: &str) -> Option<usize> {
        self.line_of.get(id).map(|&line| line as usize)
    }

    /// The values in a cell, each once; none if it is empty or holds nothing but values that mean unknown.
    ///
    /// # Panics
    /// If there is no such line or column.
    pub fn values<'a>(&'a self, line: usize, column: usize, unknown: &[String]) -> Vec<&'a str> {
        let cell = &self.text[self.cells[line * self.columns.len() + column].clone()];
        let mut values: Vec<&str> = vec![];
        for value in cell.split(';').map(str::trim) {
            if !value.is_empty() && !unknown.iter().any(|u| u == value) && !values.contains(&value) {
                values.push(value);
            }
        }
        values
    }
}

/// Lines with something in them: number from 1, and where they stand.
fn lines(text: &str) -> impl Iterator<Item = (usize, Range<usize>)> {
    let start = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut at = start;
    text[start..].split('\n').enumerate().filter_map(move |(i, line)| {
        let range = at..at + line.trim_end_matches('\r').len();
        at += line.len() + 1;
        (i == 0 || !range.is_empty()).then_some((i + 1, range))
    })
}

/// The fields of a line, without blanks around them.
fn fields(text: &str, line: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut at = line.start;
    text[line].split('\t').map(move |field| {
        let start = at + (field.len() - field.trim_start().len());
        at += field.len() + 1;
        start..start + field.trim().len()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<LabelTable> {
        LabelTable::parse(Path::new("labels.tsv"), text.to_owned())
    }

    fn refused(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn cells_hold_several_values_and_an_empty_one_none() {
        let table = parse("\u{feff}id\tfamily\tsite\r\nA\t a; b ;a;;\t\r\n\r\nB:1\t\"x\t NA \r\n").unwrap();
        assert_eq!(table.columns(), ["family", "site"]);
        assert_eq!((table.n_lines(), table.id(1), table.line_of("B:1")), (2, "B:1", Some(1)));
        assert_eq!(table.line_of("B"), None);
        assert_eq!(table.values(0, 0, &[]), ["a", "b"]);
        assert!(table.values(0, 1, &[]).is_empty());
        assert_eq!(table.values(1, 0, &[]), ["\"x"], "quotes are text");
        assert_eq!(table.values(1, 1, &[]), ["NA"]);
        assert!(table.values(1, 1, &["NA".to_owned()]).is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_table_is_told_with_its_line() {
        for (text, told) in [
            ("", ["line 1", "tab"]),
            ("id,family\nA,a\n", ["line 1", "tab"]),
            ("id\tx\tx\n", ["line 1", "\"x\" twice"]),
            ("id\tx\t\n", ["line 1", "column 3"]),
            ("id\tx\n", ["labels.tsv", "no lines"]),
            ("id\tx\ty\nA\ta\tb\n\nB\ta\n", ["line 4", "2 fields, the header 3"]),
            ("id\tx\nA\ta\n\tb\n", ["line 3", "no id"]),
            ("id\tx\nA\ta\nB\tb\nA\tb\n", ["line 4", "of line 2 again"]),
            ("id\tx\nA\ta\n\nB\tp\u{7}q\n", ["line 4: the label \"p\\u{7}q\"", "control character (U+0007)"]),
            ("id\tx\nA\ta\rB\n", ["line 2", "carriage return (U+000D)"]),
            ("id\tx\nA\0\ta\n", ["line 2: the id", "(U+0000)"]),
            ("id\tx\u{1b}y\nA\ta\n", ["line 1: the column name", "(U+001B)"]),
        ] {
            let error = refused(text);
            assert!(told.iter().all(|part| error.contains(part)), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_table_in_another_encoding_is_told_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latin1.tsv");
        std::fs::write(&path, b"id\tx\nA\ta\nB\t\xe9\n").unwrap();
        let error = LabelTable::read(&path).unwrap_err().to_string();
        assert!(error.contains("latin1.tsv: line 3: is not UTF-8"), "{error}");
    }
}
