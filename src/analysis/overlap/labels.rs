//! Labels of ids from a table: tab-separated, a header, the id in the first column, labels in the others.
//!
//! A cell may hold several labels, parted by `;`. An empty cell is unknown. There is no quoting.

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// The labels of one column.
#[derive(Debug, Clone)]
pub struct Labels {
    /// Name of the column.
    pub column: String,
    /// The labels, by first appearance.
    pub names: Vec<String>,
    of_id: HashMap<String, Vec<u32>>,
}

impl Labels {
    /// Reads a column; `None` is the only one of a table that has one.
    ///
    /// # Errors
    /// A file that cannot be read or is not UTF-8; no such column, or several and none named (the message has
    /// their names); a line with more or fewer cells than the header; an id that is empty or there twice.
    pub fn read(path: &Path, column: Option<&str>) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count();
            Error::data(path, format!("line {line}"), "is not UTF-8; save the table as UTF-8 text")
        })?;
        Self::parse(path, text.trim_start_matches('\u{feff}'), column)
    }

    fn parse(path: &Path, text: &str, column: Option<&str>) -> Result<Self> {
        let mut lines = (1..).zip(text.lines());
        let Some((_, header)) = lines.next() else {
            return Err(Error::data(
                path,
                "",
                "is empty; give a table with a header, the id in the first column",
            ));
        };
        let header: Vec<&str> = header.split('\t').map(str::trim).collect();
        let at = find_column(path, &header, column)?;
        let mut labels = Self { column: header[at].to_owned(), names: vec![], of_id: HashMap::new() };
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let mut line_of: HashMap<&str, usize> = HashMap::new();
        for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
            let wrong = |what: String| Error::data(path, format!("line {number}"), what);
            let cells: Vec<&str> = line.split('\t').collect();
            if cells.len() != header.len() {
                return Err(wrong(format!(
                    "has {} cells, the header {}; part cells by single tabs, and leave unknown ones empty",
                    cells.len(),
                    header.len()
                )));
            }
            let id = cells[0].trim();
            if id.is_empty() {
                return Err(wrong("has no id in the first column; give one or take the line out".into()));
            }
            if let Some(first) = line_of.insert(id, number) {
                return Err(wrong(format!(
                    "has the id \"{id}\" of line {first} again; give an id one line, several labels parted by ;"
                )));
            }
            let mut own: Vec<u32> = vec![];
            for name in cells[at].split(';').map(str::trim).filter(|name| !name.is_empty()) {
                let label = *numbers.entry(name).or_insert_with(|| {
                    labels.names.push(name.to_owned());
                    labels.names.len() as u32 - 1
                });
                if !own.contains(&label) {
                    own.push(label);
                }
            }
            labels.of_id.insert(id.to_owned(), own);
        }
        Ok(labels)
    }

    /// Labels of an id, as places in `names`: `None` where the table lacks it, none where its cell is empty.
    pub fn of(&self, id: &str) -> Option<&[u32]> {
        self.of_id.get(id).map(Vec::as_slice)
    }

    /// An id of the table, to show what they look like: the first in the order of letters.
    pub fn example_id(&self) -> Option<&str> {
        self.of_id.keys().map(String::as_str).min()
    }
}

/// Place of the column asked for.
fn find_column(path: &Path, header: &[&str], column: Option<&str>) -> Result<usize> {
    let wrong = |what: String| Error::data(path, "line 1", what);
    if header.len() < 2 {
        return Err(wrong(
            "has one column; the id goes into the first and labels into the others, parted by tabs".into(),
        ));
    }
    let names = header[1..].join(", ");
    let Some(column) = column else {
        return match header.len() {
            2 => Ok(1),
            _ => Err(Error::Usage(format!(
                "{} has several columns; name one with --column: {names}",
                path.display()
            ))),
        };
    };
    let mut found = (1..header.len()).filter(|i| header[*i] == column);
    match (found.next(), found.next()) {
        (Some(at), None) => Ok(at),
        (Some(_), Some(_)) => Err(wrong(format!("has two columns \"{column}\"; rename one"))),
        (None, _) => Err(wrong(format!("has no label column \"{column}\"; --column is one of: {names}"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str, column: Option<&str>) -> Result<Labels> {
        Labels::parse(Path::new("labels.tsv"), text, column)
    }

    #[test]
    fn a_cell_holds_no_label_one_or_several() {
        let text = "id\tkind\tnote\r\na\tx\t\r\nb\ty; x;y\tq\r\n\r\nc\t\tq\r\n";
        let labels = parse(text, Some("kind")).unwrap();
        assert_eq!(labels.names, ["x", "y"]);
        assert_eq!(labels.of("a"), Some(&[0][..]));
        assert_eq!(labels.of("b"), Some(&[1, 0][..]));
        assert_eq!(labels.of("c"), Some(&[][..]));
        assert_eq!((labels.of("d"), labels.example_id()), (None, Some("a")));
        assert_eq!(parse("id\tkind\na\tx\n", None).unwrap().column, "kind");
    }

    #[test]
    fn a_malformed_table_is_refused_with_the_line() {
        let cases = [
            ("", None, "is empty"),
            ("id\na\n", None, "line 1: has one column"),
            ("id\tx\ty\na\t\t\n", None, "--column: x, y"),
            ("id\tx\ty\n", Some("z"), "line 1: has no label column \"z\"; --column is one of: x, y"),
            ("id\tx\tx\n", Some("x"), "two columns"),
            ("id\tx\na\t1\nb\n", None, "line 3: has 1 cells, the header 2"),
            ("id\tx\na\t1\n\t2\n", None, "line 3: has no id"),
            ("id\tx\na\t1\nb\t1\na\t2\n", None, "line 4: has the id \"a\" of line 2"),
        ];
        for (text, column, want) in cases {
            let error = parse(text, column).unwrap_err().to_string();
            assert!(error.contains("labels.tsv") && error.contains(want), "{error}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_with_the_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"id\tx\na\t1\nb\t\xff\n").unwrap();
        let error = Labels::read(file.path(), None).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("UTF-8"), "{error}");
    }
}
