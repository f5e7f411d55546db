//! The labels of one column, by id.

use crate::analysis::labels::{LabelTable, UnknownCells};
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

/// The labels of one column of a [`LabelTable`].
#[derive(Debug, Clone)]
pub struct Labels {
    /// Name of the column.
    pub column: String,
    /// The labels, by first appearance.
    pub names: Vec<String>,
    /// Cells that count as unknown though something is in them.
    pub unknown_cells: Vec<UnknownCells>,
    table: LabelTable,
    of_id: HashMap<String, Vec<u32>>,
}

impl Labels {
    /// Reads a column; `None` is the only one of a table that has one. The values `unknown` are no labels.
    ///
    /// # Errors
    /// As [`LabelTable::read`]; no such column, or several and none named (the message has their names).
    pub fn read(path: &Path, column: Option<&str>, unknown: &[String]) -> Result<Self> {
        Self::of_table(LabelTable::read(path)?, column, unknown)
    }

    fn of_table(table: LabelTable, column: Option<&str>, unknown: &[String]) -> Result<Self> {
        let at = find_column(&table, column)?;
        let (mut names, mut of_id) = (vec![], HashMap::new());
        let mut numbers: HashMap<Cow<'_, str>, u32> = HashMap::new();
        for line in 0..table.n_lines() {
            let mut own: Vec<u32> = vec![];
            for name in table.values(line, at, unknown) {
                own.push(*numbers.entry(name).or_insert_with_key(|name| {
                    names.push(name.clone().into_owned());
                    names.len() as u32 - 1
                }));
            }
            of_id.insert(table.id(line).to_owned(), own);
        }
        drop(numbers);
        let (column, unknown_cells) = (table.columns()[at].clone(), table.unknown_cells(&[at], unknown));
        Ok(Self { column, names, unknown_cells, table, of_id })
    }

    /// Labels of an id, as places in `names`: `None` where the table lacks it, none where its cell is empty.
    pub fn of(&self, id: &str) -> Option<&[u32]> {
        self.of_id.get(id).map(Vec::as_slice)
    }

    /// As [`LabelTable::no_common_id`].
    pub fn no_common_id(&self, theirs: &str) -> Error {
        self.table.no_common_id(theirs)
    }
}

/// Place of the column asked for.
fn find_column(table: &LabelTable, column: Option<&str>) -> Result<usize> {
    let names = table.columns().join(", ");
    match (column, table.columns().len()) {
        (None, 1) => Ok(0),
        (None, _) => Err(Error::Usage(format!(
            "{} has several columns; name one with --column: {names}",
            table.path().display()
        ))),
        (Some(column), _) => table.columns().iter().position(|name| name == column).ok_or_else(|| {
            let what = format!("has no label column \"{column}\"; --column is one of: {names}");
            Error::data(table.path(), "line 1", what)
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn labels(text: &str, column: Option<&str>) -> Result<Labels> {
        let file = tempfile::Builder::new().suffix("labels.tsv").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Labels::read(file.path(), column, &["NA".to_owned()])
    }

    #[test]
    fn a_cell_holds_no_label_one_or_several() {
        let text = "id\tkind\tnote\r\na\tx\t\r\nb\ty; x;y\tq\r\n\r\nc\t\tq\r\n";
        let read = labels(text, Some("kind")).unwrap();
        assert_eq!(read.names, ["x", "y"]);
        assert_eq!(read.of("a"), Some(&[0][..]));
        assert_eq!(read.of("b"), Some(&[1, 0][..]));
        assert_eq!(read.of("c"), Some(&[][..]));
        assert_eq!(read.of("d"), None);
        assert!(read.no_common_id("q").to_string().contains("its first is \"a\", theirs \"q\""));
        assert_eq!(labels("id\tkind\na\tx\n", None).unwrap().column, "kind");
    }

    #[test]
    fn a_column_that_is_not_named_or_not_there_is_refused_with_those_that_are() {
        for (column, want) in [
            (None, "--column: x, y"),
            (Some("z"), "line 1: has no label column \"z\"; --column is one of: x, y"),
        ] {
            let error = labels("id\tx\ty\na\t\t\n", column).unwrap_err().to_string();
            assert!(error.contains("labels.tsv") && error.contains(want), "{error}");
        }
    }
}
