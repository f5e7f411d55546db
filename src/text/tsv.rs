//! Tab-separated tables as R, pandas and spreadsheets write them: a field with a tab, a line break or a quote in it
//! stands in quotes, and a quote in there is doubled (RFC 4180).

use crate::error::{Error, Result};
use csv::StringRecord;
use std::borrow::Cow;
use std::fmt::Display;
use std::path::Path;

/// A text as a field: in quotes where it needs them.
pub fn field(text: &str) -> Cow<'_, str> {
    if text.contains(['\t', '\n', '\r', '"']) { Cow::Owned(quoted(text)) } else { Cow::Borrowed(text) }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Several texts in one field, separated by `;`. As in GFF3, a `;` inside a text is written `%3B`, and so that this can
/// be undone a `%` is written `%25`. The field itself is not quoted yet.
pub fn list<T: Display>(parts: impl Iterator<Item = T>) -> String {
    let escaped = |part: T| part.to_string().replace('%', "%25").replace(';', "%3B");
    parts.map(escaped).collect::<Vec<_>>().join(";")
}

/// The text of a file that should hold a table: UTF-8, with or without a byte order mark.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] for another encoding, a compressed file, or line ends of an old Mac, with the command
/// that converts it.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let from = quoted_path(path);
    let to = quoted_path(&path.with_extension("utf8.tsv"));
    let convert = |encoding: &str| format!("`iconv -f {encoding} -t UTF-8 {from} > {to}`");
    let wrong = |what: String| Err(Error::data(path, "", what));
    match bytes.as_slice() {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            return wrong(format!("is UTF-32 text; convert it to UTF-8 with {}", convert("UTF-32")));
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            return wrong(format!("is UTF-16 text; convert it to UTF-8 with {}", convert("UTF-16")));
        }
        [0x1f, 0x8b, ..] => {
            let to = quoted_path(&path.with_extension(""));
            return wrong(format!("is compressed by gzip; unpack it with `gunzip -c {from} > {to}`"));
        }
        [b'P', b'K', 3, 4, ..] => {
            return wrong(
                "is a zip archive or an Excel workbook; save the table as tab-separated text".into(),
            );
        }
        [first, second, ..] if (*first == 0) != (*second == 0) => {
            let encoding = if *first == 0 { "UTF-16BE" } else { "UTF-16LE" };
            return wrong(format!("is UTF-16 text; convert it to UTF-8 with {}", convert(encoding)));
        }
        _ => {}
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
        let what = format!("is not UTF-8; convert it, from Latin-1 for example with {}", convert("LATIN1"));
        Error::data(path, format!("line {line}"), what)
    })?;
    if text.contains('\r') && !text.contains('\n') {
        return wrong(format!("ends its lines with CR alone, as an old Mac does; {}", line_feeds(path)));
    }
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// How CR becomes LF.
fn line_feeds(path: &Path) -> String {
    let to = quoted_path(&path.with_extension("lf.tsv"));
    format!("convert them with `tr '\\r' '\\n' < {} > {to}`", quoted_path(path))
}

/// A path as a shell takes it.
pub(crate) fn quoted_path(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if text.chars().all(plain) && !text.is_empty() {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// Gives `take` each record with the number of its first line, from 1. Blanks around a field without quotes are no part
/// of it. Lines without anything are skipped.
///
/// # Errors
/// [`Error::Data`] with the line of a field whose quotes cannot be read; what `take` refuses.
pub fn records(
    path: &Path,
    text: &str,
    mut take: impl FnMut(usize, &StringRecord) -> Result<()>,
) -> Result<()> {
    let text = text.replace("\r\n", "\n");
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(b'\t')
        .terminator(csv::Terminator::Any(b'\n'))
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let (mut at, mut line) = (0, 1);
    let mut record = StringRecord::new();
    loop {
        let skipped = text[at..].bytes().take_while(|&b| b == b'\n').count();
        (at, line) = (at + skipped, line + skipped);
        let failed = |e: csv::Error| Error::data(path, format!("line {line}"), e.to_string());
        if !reader.read_record(&mut record).map_err(failed)? {
            return Ok(());
        }
        let end = reader.position().byte() as usize;
        let fields = checked(path, &text[at..], &record)
            .map_err(|what| Error::data(path, format!("line {line}"), what))?;
        take(line, &fields)?;
        line += text[at..end].matches('\n').count();
        at = end;
    }
}

/// The fields of a record, trimmed where they have no quotes. The parser reads any text: what it made of `raw`, where
/// the record begins, is written out again and compared, so that a stray quote does not swallow the lines after it.
fn checked(path: &Path, raw: &str, record: &StringRecord) -> std::result::Result<StringRecord, String> {
    let mut at = 0;
    let mut fields = StringRecord::new();
    for (i, field) in record.iter().enumerate() {
        let rest = raw.get(at..).unwrap_or("");
        let in_quotes = rest.starts_with('"');
        let written = if in_quotes { quoted(field) } else { field.to_owned() };
        let closed = rest
            .strip_prefix(written.as_str())
            .is_some_and(|after| after.is_empty() || after.starts_with(['\t', '\n']));
        if in_quotes && !closed {
            let first_line = rest.lines().next().unwrap_or("");
            return Err(if first_line.contains("\\\"") {
                format!(
                    "field {} has a quote written as \\\", as R's write.table does; write the table with qmethod = \"double\"",
                    i + 1
                )
            } else {
                format!(
                    "the quote that opens field {} is not closed at the end of the field; leave it out, or put the field in quotes and double those inside: \"\"\"x\"\" y\"",
                    i + 1
                )
            });
        }
        let trimmed = field.trim();
        if !in_quotes && trimmed.starts_with('"') {
            return Err(format!("field {} has a blank before its quote; remove the blank", i + 1));
        }
        if !in_quotes && trimmed.contains('\r') {
            return Err(format!(
                "has a line end of an old Mac (CR) in field {}; {}",
                i + 1,
                line_feeds(path)
            ));
        }
        fields.push_field(if in_quotes { field } else { trimmed });
        at += written.len() + 1;
    }
    Ok(fields)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(usize, Vec<String>)>> {
        let mut found = vec![];
        records(Path::new("t.tsv"), text, |line, record| {
            found.push((line, record.iter().map(str::to_owned).collect()));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn a_field_written_is_the_field_read() {
        let fields =
            ["plain", "", "a\tb", "a\nb", "a\r\nb\rc", "\"", "say \"hi\"", "back\\slash", "a;b", "'"];
        let line = fields.map(|f| field(f).into_owned()).join("\t");
        let found = read(&format!("x\n{line}\n\ny\n")).unwrap();
        // Line ends of Windows become those of Unix, inside quotes too.
        let want = fields.map(|f| f.replace("\r\n", "\n"));
        assert_eq!(found[1], (2, want.to_vec()));
        assert_eq!(found[2], (6, vec!["y".to_owned()]), "lines are counted through quoted line breaks");
    }

    #[test]
    fn a_list_can_be_taken_apart_again() {
        assert_eq!(list(["a;b", "c", "50%", "%3B"].iter()), "a%3Bb;c;50%25;%253B");
        let undone: Vec<String> =
            "a%3Bb;c;50%25;%253B".split(';').map(|t| t.replace("%3B", ";").replace("%25", "%")).collect();
        assert_eq!(undone, ["a;b", "c", "50%", "%3B"]);
    }

    #[test]
    fn quotes_that_cannot_be_read_are_refused_with_their_line() {
        for (text, told) in [
            ("a\tb\nc\t\"d\ne\tf\n", "line 2: the quote that opens field 2 is not closed"),
            ("a\tb\n\"c\td\n\"e\tf\n", "line 2: the quote that opens field 1 is not closed"),
            ("a\n\"b\"c\n", "line 2: the quote that opens field 1"),
            ("a\n\n\"b \\\"c\\\" d\"\te\n", "line 3: field 1 has a quote written as \\\""),
            ("\"a\"\t\"b \\\"\"\n\"c\"\t\"d\"\n", "line 1: field 2 has a quote written as \\\""),
            ("a\t \"b\"\n", "line 1: field 2 has a blank before its quote"),
            ("a\tb\nc\td\re\tf\n", "line 2: has a line end of an old Mac (CR) in field 2"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error:?}");
        }
        // A quote that opens nothing is text, and so is a backslash at the end of a quoted field.
        assert_eq!(read("5\" loop\ta\\\"\t\"C:\\\"\n").unwrap()[0].1, ["5\" loop", "a\\\"", "C:\\"]);
    }
}
