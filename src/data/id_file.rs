//! Ids in a file of their own: texts, one on each line, or an array of NumPy.

use std::path::{Path, PathBuf};

use npyz::{DType, NpyFile, TypeChar};

use super::file::File;
use super::flat::first_line;
use super::ids::Found;
use crate::error::{Error, Result};
use crate::text::tsv;

/// What is added to the name of a data file, with or without its ending, to name its ids.
const ENDINGS: [&str; 2] = [".ids.txt", ".ids.npy"];

/// Whether `--ids` names a file with this.
pub(crate) fn is_file(name: &str) -> bool {
    let known = |ending: &str| name.len() > ending.len() && name.ends_with(ending);
    known(".txt") || known(".npy")
}

/// The file of ids that lies beside the data file `path`, such as `x.npy.ids.txt` or `x.ids.txt` beside `x.npy`.
///
/// # Errors
/// There are several.
pub(super) fn beside(path: &Path) -> Result<Option<PathBuf>> {
    let all = all_beside(path);
    if let [first, second, ..] = &all[..] {
        let what = format!(
            "has ids in {} and in {}; name one of them with --ids, as in `--ids {}`",
            first.display(),
            second.display(),
            tsv::quoted_path(first)
        );
        return Err(Error::data(path, "", what));
    }
    Ok(all.into_iter().next())
}

/// All that could be meant.
pub(super) fn all_beside(path: &Path) -> Vec<PathBuf> {
    let stems = [path.to_owned(), path.with_extension("")];
    let named = |stem: &PathBuf| {
        let stem = stem.clone();
        ENDINGS.map(move |ending| {
            let mut name = stem.clone().into_os_string();
            name.push(ending);
            PathBuf::from(name)
        })
    };
    stems.iter().flat_map(named).filter(|path| path.is_file()).collect()
}

/// The ids in the file `path`.
///
/// # Errors
/// A file that cannot be read, or holds something else.
pub(super) fn read(path: &Path) -> Result<Found> {
    let ids = if path.extension().is_some_and(|ending| ending == "npy") {
        read_array(path)?
    } else {
        tsv::read_text(path)?.lines().map(|line| line.trim_end().to_owned()).collect()
    };
    Ok(Found { ids, from: format!("the file {}", path.display()) })
}

/// What `--ids` gives where the number of ids is not that of the rows.
pub(super) fn unlike(path: &Path, n_ids: usize, n_rows: u64) -> Error {
    let header = if n_ids as u64 == n_rows + 1 { "; is its first line a title?" } else { "" };
    let what =
        format!("holds {n_ids} ids for {n_rows} rows{header}; give one id a row, in the order of the rows");
    Error::data(path, "", what)
}

fn read_array(path: &Path) -> Result<Vec<String>> {
    let wrong = |what: String| Error::data(path, "", what);
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let damaged = |why: std::io::Error| {
        wrong(format!("is no .npy file of ids ({}); write it again with numpy.save", first_line(&why)))
    };
    // The parser goes one call deeper for each bracket, and headers of plain arrays have few.
    if bytes.iter().take(1 << 12).filter(|byte| b"([{".contains(byte)).count() > 512 {
        return Err(wrong("is no .npy file of ids; write it again with numpy.save".into()));
    }
    let array = NpyFile::new(&bytes[..]).map_err(damaged)?;
    let number = match array.dtype() {
        DType::Plain(number) if array.shape().iter().filter(|&&n| n != 1).count() <= 1 => number,
        _ => return Err(wrong("must hold one row of ids; save such an array".into())),
    };
    // Each value takes at least a byte of the file: a header that claims more is damaged.
    let bytes_each = number.num_bytes().unwrap_or(0).max(1) as u64;
    if array.len().checked_mul(bytes_each).is_none_or(|needed| needed > bytes.len() as u64) {
        return Err(wrong("is cut short; write or copy it again".into()));
    }
    match number.type_char() {
        TypeChar::ByteStr => {
            let texts = array.into_vec::<Vec<u8>>().map_err(damaged)?;
            let text = |(row, text)| {
                String::from_utf8(text).map_err(|_| wrong(format!("the id {row} is not UTF-8; write the ids again as text")))
            };
            texts.into_iter().enumerate().map(text).collect()
        }
        TypeChar::UnicodeStr => array.into_vec::<String>().map_err(damaged),
        TypeChar::Int | TypeChar::Uint => {
            let file = File::open(path)?;
            match super::scan::survey(&file)?.datasets.first() {
                Some(dataset) => Ok(file.read_integers(dataset)?.iter().map(i64::to_string).collect()),
                None => Ok(vec![]),
            }
        }
        TypeChar::Object => Err(wrong(
            "holds Python objects; save the ids as text, with `numpy.save(\"ids.npy\", numpy.array(ids, dtype=str))`".into(),
        )),
        _ => Err(wrong("holds neither texts nor integers; save the ids as one of these".into())),
    }
}
