//! Labels of ids from a table.
//!
//! Tab-separated with a header; the first column is the id, every other a label column. Fields may be quoted as R and
//! pandas do it ([`tsv`]). A cell may hold several values separated by `;`, in quotes or not; `%3B` is a `;` that
//! belongs to a value. An empty cell is unknown: its rows are neither positive nor negative for that column.

pub mod choose;

use crate::data::first_control;
use crate::error::{Error, Result};
use crate::text::tsv;
use serde::Serialize;
use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A table of labels as it was read.
#[derive(Debug, Clone)]
pub struct LabelTable {
    path: PathBuf,
    /// All ids and cells, one after another.
    text: String,
    /// Names of the label columns.
    columns: Vec<String>,
    /// Id of each line.
    ids: Vec<Range<usize>>,
    /// Cells of all lines, one after another.
    cells: Vec<Range<usize>>,
    line_of: HashMap<String, u32>,
    row_names: bool,
}

/// Cells of a column that hold a value which means unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnknownCells {
    /// The column.
    pub column: String,
    /// How many cells.
    pub cells: u64,
    /// The values in them, each once.
    pub values: Vec<String>,
}

impl UnknownCells {
    /// What a warning says, with how to have it otherwise.
    pub fn text(&self) -> String {
        let values: Vec<String> = self.values.iter().map(|v| format!("\"{v}\"")).collect();
        let (cells, count) = if self.cells == 1 { ("cell", "counts") } else { ("cells", "count") };
        format!(
            "{} {cells} of the column {} ({}) {count} as unknown; --keep-na makes them labels",
            self.cells,
            self.column,
            values.join(", ")
        )
    }
}

impl LabelTable {
    /// Reads a table. One whose lines all have a field more than the header has row names, as R's `write.table` writes
    /// them by default: they are the ids, and every name of the header is a label column.
    ///
    /// # Errors
    /// As [`tsv::read_text`] and [`tsv::records`]; [`Error::Data`] naming file and line: a header without a label column,
    /// with an empty or a repeated name; a field with a control character; a line with another number of fields; an id that is empty or was seen before. A
    /// table without lines.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &tsv::read_text(path)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let wrong = |line: usize, what: String| Error::data(path, format!("line {line}"), what);
        // The header of a table with row names has no tab where there is one column; its lines have.
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
        if let Some((at, header)) = lines.next()
            && !header.contains('\t')
            && lines.next().is_none_or(|(_, line)| !line.contains('\t'))
        {
            return Err(wrong(at + 1, no_tab(path, header)));
        }
        let mut all = vec![];
        tsv::records(path, text, |number, record| {
            all.push((number, record.clone()));
            Ok(())
        })?;
        let mut records = all.iter();
        let empty = (1, csv::StringRecord::new());
        let (first, header) = records.next().unwrap_or(&empty);
        let row_names = is_short_header(header, records.as_slice());
        let skipped = usize::from(!row_names);
        let columns: Vec<String> = header.iter().skip(skipped).map(str::to_owned).collect();
        if columns.is_empty() {
            return Err(wrong(*first, no_tab(path, "")));
        }
        for (at, name) in columns.iter().enumerate() {
            check_characters(path, *first, "column name", name)?;
            if name.is_empty() {
                return Err(wrong(*first, format!("names no column {}; give it a name", at + 1 + skipped)));
            }
            if columns[..at].contains(name) {
                return Err(wrong(
                    *first,
                    format!("names the column \"{name}\" twice; give one another name"),
                ));
            }
        }
        let mut table = Self {
            path: path.to_owned(),
            text: String::new(),
            columns,
            ids: vec![],
            cells: vec![],
            line_of: HashMap::new(),
            row_names,
        };
        let mut numbers: Vec<usize> = vec![];
        for (number, record) in records {
            for (at, field) in record.iter().enumerate() {
                check_characters(path, *number, if at == 0 { "id" } else { "label" }, field)?;
            }
            table.add(*number, record, &mut numbers)?;
        }
        if table.ids.is_empty() {
            return Err(Error::data(path, "", "has a header and no lines; give a table with labels"));
        }
        Ok(table)
    }

    /// Adds a line; `numbers` are those of the lines before it.
    fn add(&mut self, number: usize, record: &csv::StringRecord, numbers: &mut Vec<usize>) -> Result<()> {
        let wrong = |what: String| Error::data(&self.path, format!("line {number}"), what);
        let (found, expected) = (record.len(), self.columns.len() + 1);
        if found != expected {
            let header = expected - usize::from(self.row_names);
            let hint = if found == expected + 1 && record.iter().next_back() == Some("") {
                "remove the tab at its end"
            } else {
                "write as many"
            };
            return Err(wrong(format!("has {found} fields, the header {header}; {hint}")));
        }
        let id = record.get(0).unwrap_or("");
        if id.is_empty() {
            return Err(wrong("has no id in its first field; write one or remove the line".into()));
        }
        match self.line_of.entry(id.to_owned()) {
            Entry::Vacant(place) => place.insert(self.ids.len() as u32),
            Entry::Occupied(place) => {
                let first = numbers[*place.get() as usize];
                return Err(wrong(format!(
                    "has the id \"{id}\" of line {first} again; put its labels on one line, separated by \";\""
                )));
            }
        };
        numbers.push(number);
        for (at, field) in record.iter().enumerate() {
            let range = self.text.len()..self.text.len() + field.len();
            self.text.push_str(field);
            if at == 0 { self.ids.push(range) } else { self.cells.push(range) }
        }
        Ok(())
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
    pub fn values<'a>(&'a self, line: usize, column: usize, unknown: &[String]) -> Vec<Cow<'a, str>> {
        let mut values: Vec<Cow<'a, str>> = vec![];
        for value in self.parts(line, column) {
            if !unknown.iter().any(|u| *u == value) && !values.contains(&value) {
                values.push(value);
            }
        }
        values
    }

    /// What a cell holds between its `;`, without what is empty.
    fn parts(&self, line: usize, column: usize) -> impl Iterator<Item = Cow<'_, str>> {
        let cell = &self.text[self.cells[line * self.columns.len() + column].clone()];
        let undone = |value| -> Cow<'_, str> {
            let value: &str = value;
            match value.contains("%3B") {
                true => Cow::Owned(value.replace("%3B", ";")),
                false => Cow::Borrowed(value),
            }
        };
        cell.split(';').map(str::trim).filter(|value| !value.is_empty()).map(undone)
    }

    /// The cells of `columns` that hold a value which means unknown; columns without such cells are left out.
    pub fn unknown_cells(&self, columns: &[usize], unknown: &[String]) -> Vec<UnknownCells> {
        let of_column = |&column: &usize| {
            let mut found = UnknownCells { column: self.columns[column].clone(), cells: 0, values: vec![] };
            for line in 0..self.n_lines() {
                let before = found.cells;
                for value in self.parts(line, column).filter(|v| unknown.iter().any(|u| u == v)) {
                    found.cells = before + 1;
                    if !found.values.iter().any(|v| *v == value) {
                        found.values.push(value.into_owned());
                    }
                }
            }
            (found.cells > 0).then_some(found)
        };
        columns.iter().filter_map(of_column).collect()
    }

    /// The error for a table that names none of the ids of the data, the first of which is `theirs`.
    pub fn no_common_id(&self, theirs: &str) -> Error {
        let more = if self.row_names {
            ". Its ids are the row names that R's write.table wrote; if a column has the ids, put it first and write with row.names = FALSE"
        } else {
            ""
        };
        let what = format!(
            "names none of the ids in the data; its first is \"{}\", theirs \"{theirs}\"; write the same ids{more}",
            self.id(0)
        );
        Error::data(&self.path, "", what)
    }
}

/// Whether every line has exactly one field more than the header, and not because it ends with a tab.
fn is_short_header(header: &csv::StringRecord, lines: &[(usize, csv::StringRecord)]) -> bool {
    !header.is_empty()
        && !lines.is_empty()
        && lines.iter().all(|(_, line)| line.len() == header.len() + 1)
        && lines.iter().any(|(_, line)| line.iter().next_back() != Some(""))
}

/// What to do about a header without a tab.
fn no_tab(path: &Path, header: &str) -> String {
    let separator = [',', ';', '|'].into_iter().find(|&s| header.contains(s));
    let Some(separator) = separator else {
        return "has no tab; give a tab-separated table whose first column is the id".into();
    };
    let (from, to) = (tsv::quoted_path(path), tsv::quoted_path(&path.with_extension("converted.tsv")));
    format!(
        "has no tab: the fields seem to be separated by \"{separator}\"; make it tab-separated with `python3 -c \"import csv, sys; csv.writer(sys.stdout, delimiter='\\t').writerows(csv.reader(sys.stdin, delimiter='{separator}'))\" < {from} > {to}`"
    )
}

/// Refuses control characters, which no table that is written could show. Tabs and line feeds are in quotes here, and
/// are written in quotes.
fn check_characters(path: &Path, line: usize, what: &str, field: &str) -> Result<()> {
    let unquoted: String = field.chars().filter(|c| !matches!(c, '\t' | '\n')).collect();
    match first_control(&unquoted) {
        Some(found) => {
            let told = format!("the {what} {field:?} holds {found}; remove it");
            Err(Error::data(path, format!("line {line}"), told))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<LabelTable> {
        LabelTable::parse(Path::new("labels.tsv"), text)
    }

    fn refused(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn cells_hold_several_values_and_an_empty_one_none() {
        let table = parse("id\tfamily\tsite\r\nA\t a; b ;a;;\t\r\n\r\nB:1\t5\" x\t NA \r\n").unwrap();
        assert_eq!(table.columns(), ["family", "site"]);
        assert_eq!((table.n_lines(), table.id(1), table.line_of("B:1")), (2, "B:1", Some(1)));
        assert_eq!(table.line_of("B"), None);
        assert_eq!(table.values(0, 0, &[]), ["a", "b"]);
        assert!(table.values(0, 1, &[]).is_empty());
        assert_eq!(table.values(1, 0, &[]), ["5\" x"], "a quote that opens no field is text");
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
            ("id\tx\nA\ta\t\nB\tb\t\n", ["line 2", "3 fields, the header 2; remove the tab at its end"]),
            ("id;x\nA;a\n", ["separated by \";\"", "`python3 -c"]),
            ("\"id\",\"x\"\n\"A\",\"a\"\n", ["line 1: has no tab", "separated by \",\""]),
            ("id\tx\nA\t\"say \\\"hi\\\"\"\n", ["line 2", "qmethod = \"double\""]),
            ("\"id\"\t\"x\"\n\"A\"\t\"a\nB\tb\n", ["line 2", "is not closed"]),
            ("id\tx\nA\ta\n\tb\n", ["line 3", "no id"]),
            ("id\tx\nA\ta\nB\tb\nA\tb\n", ["line 4", "of line 2 again"]),
            ("id\tx\nA\ta\n\nB\tp\u{7}q\n", ["line 4: the label \"p\\u{7}q\"", "control character (U+0007)"]),
            ("id\tx\nA\ta\rB\n", ["line 2", "old Mac (CR)"]),
            ("id\tx\nA\0\ta\n", ["line 2: the id", "(U+0000)"]),
            ("id\tx\u{1b}y\nA\ta\n", ["line 1: the column name", "(U+001B)"]),
        ] {
            let error = refused(text);
            assert!(told.iter().all(|part| error.contains(part)), "{text:?}: {error}");
        }
    }

    #[test]
    fn quoted_tables_of_r_and_pandas_are_read_as_plain_ones() {
        let plain = parse("id\tkind of\tnote\nA\ta;b\tsay \u{ab}hi\u{bb}\nB\t\t2\n").unwrap();
        for (text, row_names) in [
            // write.table(..., sep = "\t", row.names = FALSE)
            (
                "\"id\"\t\"kind of\"\t\"note\"\n\"A\"\t\"a;b\"\t\"say \u{ab}hi\u{bb}\"\n\"B\"\t\"\"\t2\n",
                false,
            ),
            // write.table(..., sep = "\t"), ids as row names
            ("\"kind of\"\t\"note\"\n\"A\"\t\"a;b\"\t\"say \u{ab}hi\u{bb}\"\n\"B\"\t\"\"\t2\n", true),
            // The same with quote = FALSE
            ("kind of\tnote\nA\ta;b\tsay \u{ab}hi\u{bb}\nB\t\t2\n", true),
            // to_csv(sep="\t", index=False, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
            (
                "\"id\"\t\"kind of\"\t\"note\"\r\n\"A\"\t\"a;b\"\t\"say \u{ab}hi\u{bb}\"\r\n\"B\"\t\"\"\t\"2\"\r\n",
                false,
            ),
        ] {
            let table = parse(text).unwrap();
            assert_eq!((table.columns(), table.row_names), (plain.columns(), row_names), "{text}");
            for line in 0..2 {
                assert_eq!(table.id(line), plain.id(line));
                for column in 0..2 {
                    assert_eq!(table.values(line, column, &[]), plain.values(line, column, &[]), "{text}");
                }
            }
        }
        let table = parse("id\tx\n\"a \"\"b\"\"\"\t\"c\td\ne\"\nB\tx%3By;z\n").unwrap();
        assert_eq!(table.line_of("a \"b\""), Some(0));
        assert_eq!(table.values(0, 0, &[]), ["c\td\ne"]);
        assert_eq!(table.values(1, 0, &[]), ["x;y", "z"]);
        // One column with row names: the header has no tab.
        assert_eq!(parse("\"kind\"\n\"A\"\t\"a\"\n").unwrap().line_of("A"), Some(0));
        let error = parse("\"id\"\t\"x\"\n\"1\"\t\"A\"\t\"a\"\n").unwrap().no_common_id("A").to_string();
        assert!(
            error.contains("its first is \"1\", theirs \"A\"") && error.contains("row.names = FALSE"),
            "{error}"
        );
    }

    #[test]
    fn cells_that_count_as_unknown_are_counted_by_column() {
        let table = parse("id\tgene\tsite\nA\tNA\tx\nB\tHA; NA\tNA\nC\t\tn/a\nD\tNaN\t\n").unwrap();
        let unknown = ["NA".to_owned(), "NaN".to_owned()];
        let found = table.unknown_cells(&[0, 1], &unknown);
        assert_eq!(found[0], UnknownCells { column: "gene".into(), cells: 3, values: unknown.to_vec() });
        assert_eq!((found[1].cells, found.len()), (1, 2));
        assert!(table.unknown_cells(&[0, 1], &[]).is_empty());
    }

    #[test]
    fn a_table_in_another_encoding_is_told_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.tsv");
        let wide = |text: &str, little: bool| -> Vec<u8> {
            let bytes = |unit: u16| if little { unit.to_le_bytes() } else { unit.to_be_bytes() };
            text.encode_utf16().flat_map(bytes).collect()
        };
        let text = "id\tx\nA\ta\n";
        let bom = format!("\u{feff}{text}");
        for (bytes, told) in [
            (b"id\tx\nA\ta\nB\t\xe9\n".to_vec(), "labels.tsv: line 3: is not UTF-8; convert it"),
            (wide(&bom, true), "labels.tsv: is UTF-16 text; convert it to UTF-8 with `iconv -f UTF-16 "),
            (wide(&bom, false), "labels.tsv: is UTF-16 text"),
            (wide(text, true), "iconv -f UTF-16LE"),
            (wide(text, false), "iconv -f UTF-16BE"),
            (text.replace('\n', "\r").into(), "labels.tsv: ends its lines with CR alone"),
            (vec![0x1f, 0x8b, 8, 0], "gunzip"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = LabelTable::read(&path).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
            assert!(!error.contains('\n'), "{error:?}");
        }
        std::fs::write(&path, bom.replace('\n', "\r\n")).unwrap();
        let table = LabelTable::read(&path).unwrap();
        assert_eq!((table.columns()[0].as_str(), table.line_of("A")), ("x", Some(0)));
    }
}
