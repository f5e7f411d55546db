//! The rows of one id, such as the residues of a protein, without reading those of others.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use super::embeddings::Embeddings;
use super::load::{Located, check_values, loaded, read_ranges};
use super::reading::Ids;
use super::stream::{Blocks, DataFiles};
use crate::error::{Error, Result};
use crate::rows::{RowIndex, RowSource, Values};
use crate::text::thousands;

/// Ids that an error names beside one that is not there.
const NEAREST: usize = 3;

/// The rows of one id, in memory.
#[derive(Debug, Clone)]
pub struct OneId {
    /// The rows, each with an id of its own (`id:residue` in per-residue files), in the order of the sequence.
    pub rows: Embeddings,
    /// Place of each row in the sequence, from 1; rows that were dropped leave a gap.
    pub positions: Vec<u32>,
    /// Rows that were dropped.
    pub dropped: usize,
}

impl DataFiles {
    /// The rows of `id`: its residues in per-residue files, or the rows whose ids are `id:0`, `id:1` and so on, by rising
    /// number. No values of other rows are read.
    ///
    /// # Errors
    /// An id that is not there, with the nearest that are; as [`DataFiles::blocks`] and [`Blocks::next_block`].
    pub fn one_id(&self, id: &str) -> Result<OneId> {
        // The size of a block plays no part.
        self.blocks(1)?.one_id(id)
    }
}

impl Blocks<'_> {
    fn one_id(mut self, wanted: &str) -> Result<OneId> {
        let found = find(&self.pieces, &self.keep, wanted)?;
        if found.is_empty() {
            let mut names = BTreeSet::new();
            for located in &self.pieces {
                each_name(located, |name, _| {
                    names.insert(sequence_of(name).to_owned());
                })?;
            }
            let place = self.pieces.first().map_or(Path::new(""), |located| located.path());
            return Err(unknown(place, wanted, &names));
        }
        let (rows, mut ids): (Vec<usize>, Vec<String>) = found.into_iter().unzip();
        let (n, d_in) = (rows.len(), self.d_in);
        let mut values = n.checked_mul(d_in).and_then(|n| Values::zeros(self.dtype, n)).ok_or_else(|| {
            Error::Failed(format!("{n} rows of {d_in} {} do not fit the memory", self.dtype))
        })?;
        read_ranges(&self.pieces, &ranges(&rows), &mut values)?;
        let mut keep = vec![true; n];
        check_values(&self.pieces, &values, d_in, |at| rows[at], &mut keep, &mut self.judge)?;
        let positions: Vec<u32> = (1..).zip(&keep).filter(|(_, keep)| **keep).map(|(at, _)| at).collect();
        let mut kept = keep.iter();
        ids.retain(|_| kept.next() == Some(&true));
        values.retain_rows(d_in, &keep);
        if ids.is_empty() {
            let example = self.judge.skipped.examples.first().map_or("", String::as_str);
            return Err(Error::Failed(format!(
                "no usable row of \"{wanted}\" is left; the first: {example}"
            )));
        }
        let dropped = n - positions.len();
        let rows = loaded(values, d_in, RowIndex::of_ids(ids), self.judge.skipped)?;
        Ok(OneId { rows, positions, dropped })
    }
}

impl Embeddings {
    /// The rows of `id` among rows in memory: those whose ids are `id:0`, `id:1` and so on, by rising number, or those that
    /// belong to the group `id`, in their order.
    ///
    /// # Errors
    /// An id that is not there, with the nearest that are.
    pub fn one_id(&self, id: &str) -> Result<OneId> {
        let index = self.index();
        let ids: Vec<String> = (0..self.n_rows()).map(|row| index.row_id(row)).collect();
        let whole = |row: &usize| {
            let group = index.group_of(*row);
            index.group_id(group) == id || index.cluster_of(group) == id
        };
        let mut rows: Vec<usize> = (0..ids.len()).filter(whole).collect();
        if rows.is_empty() {
            rows = (0..ids.len()).filter(|&row| number_of(&ids[row], id).is_some()).collect();
            rows.sort_by_key(|&row| number_of(&ids[row], id));
        }
        if rows.is_empty() {
            let names = ids.iter().map(|name| sequence_of(name).to_owned()).collect();
            return Err(unknown(Path::new(super::GIVEN), id, &names));
        }
        let numbers: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let mut values = vec![0.0; rows.len() * self.d_in()];
        self.read(&numbers, &mut values)?;
        let ids = rows.iter().map(|&row| ids[row].clone()).collect();
        let positions = (1..=rows.len() as u32).collect();
        Ok(OneId { rows: Self::from_rows(ids, self.d_in(), values)?, positions, dropped: 0 })
    }
}

/// The rows of `wanted` with their ids, in the order of the sequence.
fn find(pieces: &[Located<'_>], keep: &[bool], wanted: &str) -> Result<Vec<(usize, String)>> {
    let (mut whole, mut numbered) = (vec![], vec![]);
    for located in pieces {
        // Rows without ids are numbered from 0, residues from 1.
        let (first, alone) = match located.ids() {
            Ids::Numbered(_) => (0, false),
            Ids::Rows(_) | Ids::One(_) => (1, true),
            Ids::Residues(_) | Ids::Runs(_) => (1, false),
        };
        each_name(located, |name, rows| {
            // Dropped with its id, or of an id without rows.
            if !keep[rows.clone()].contains(&true) {
                return;
            }
            if name == wanted {
                let id = |at| if alone { name.to_owned() } else { format!("{name}:{at}") };
                whole.extend(rows.zip(first..).map(|(row, at)| (row, id(at))));
            } else if let Some(number) = number_of(name, wanted).filter(|_| alone) {
                numbered.push((number, rows.start, name.to_owned()));
            }
        })?;
    }
    if whole.is_empty() {
        numbered.sort_by_key(|(number, ..)| *number);
        whole.extend(numbered.into_iter().map(|(_, row, name)| (row, name)));
    }
    Ok(whole)
}

/// Rows, in their order, as ranges that are read at once.
fn ranges(rows: &[usize]) -> Vec<Range<usize>> {
    rows.chunk_by(|a, b| a + 1 == *b).map(|run| run[0]..run[0] + run.len()).collect()
}

/// Calls `f` with each id of a piece and its rows, and with what comes before the numbers of rows that have no ids.
fn each_name(located: &Located<'_>, mut f: impl FnMut(&str, Range<usize>)) -> Result<()> {
    match located.ids() {
        Ids::Numbered(prefix) => f(prefix, located.rows()),
        _ => {
            let start = located.rows().start;
            located.each_id(|id, rows| {
                f(&id, start + rows.start..start + rows.end);
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// The number n of an id that is `wanted:n`.
fn number_of(name: &str, wanted: &str) -> Option<u64> {
    let digits = name.strip_prefix(wanted)?.strip_prefix(':')?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// An id without the number behind its last colon.
fn sequence_of(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((before, _)) if number_of(name, before).is_some() => before,
        _ => name,
    }
}

/// The error for an id that is not there.
fn unknown(place: &Path, wanted: &str, names: &BTreeSet<String>) -> Error {
    let near = nearest(wanted, names);
    let listed = near.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let what = match names.len() {
        1 => format!("holds no rows of \"{wanted}\", only those of {listed}"),
        n => format!(
            "holds no rows of \"{wanted}\"; of its {} ids the nearest are {listed}",
            thousands(n as u64)
        ),
    };
    Error::data(place, "", what)
}

/// The names most like `wanted`: those that hold it or that it holds, whatever their case, then by edit distance.
fn nearest<'a>(wanted: &str, names: &'a BTreeSet<String>) -> Vec<&'a str> {
    let lower = wanted.to_lowercase();
    let distance = |name: &str| {
        let name = name.to_lowercase();
        let apart = strsim::osa_distance(&lower, &name);
        let holds = !name.is_empty() && (name.contains(&lower) || lower.contains(&name));
        (!holds, apart)
    };
    let mut scored: Vec<_> = names.iter().map(|name| (distance(name), name.as_str())).collect();
    scored.sort_unstable();
    scored.into_iter().take(NEAREST).map(|(_, name)| name).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(of: &[&str]) -> BTreeSet<String> {
        of.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_number_is_what_follows_the_id_and_a_colon() {
        assert_eq!(number_of("P1:17", "P1"), Some(17));
        for (name, wanted) in
            [("P1:17", "P"), ("P1", "P1"), ("P1:", "P1"), ("P1:+7", "P1"), ("P1:a", "P1"), ("P1:1:2", "P1")]
        {
            assert_eq!(number_of(name, wanted), None, "{name} {wanted}");
        }
        assert_eq!(number_of("1ABC:A:2", "1ABC:A"), Some(2));
        assert_eq!((sequence_of("1ABC:A:2"), sequence_of("1ABC:A")), ("1ABC:A", "1ABC:A"));
    }

    #[test]
    fn the_nearest_ids_are_those_that_hold_it_then_those_that_differ_least() {
        let ids = names(&["sp|P60775|ERA", "P60776", "Q99999", "P6O775", "A1"]);
        assert_eq!(nearest("P60775", &ids), ["sp|P60775|ERA", "P60776", "P6O775"]);
        assert_eq!(nearest("p60776", &ids)[0], "P60776");
        let error = unknown(Path::new("x.h5"), "P60775", &ids).to_string();
        assert!(error.starts_with("x.h5: holds no rows of \"P60775\"; of its 5 ids the nearest are \"sp|"));
    }

    #[test]
    fn rows_in_memory_belong_to_an_id_by_number_or_by_group() {
        let ids = ["B:10", "A:1", "B:9", "B2:1"].map(str::to_owned);
        let data = Embeddings::from_rows(ids.to_vec(), 1, vec![10.0, 1.0, 9.0, 5.0]).unwrap();
        let read = |one: &OneId| {
            let rows = one.rows.n_rows();
            let mut values = vec![0.0; rows];
            one.rows.read(&(0..rows as u32).collect::<Vec<_>>(), &mut values).unwrap();
            values
        };
        let one = data.one_id("B").unwrap();
        assert_eq!((read(&one), &one.positions), (vec![9.0, 10.0], &vec![1, 2]));
        assert_eq!(one.rows.index().row_id(1), "B:10");
        let error = data.one_id("C").unwrap_err().to_string();
        assert!(error.contains("the array: holds no rows of \"C\"; of its 3 ids the nearest are"), "{error}");
        assert_eq!(ranges(&[4, 5, 6, 2, 3, 9]), [4..7, 2..4, 9..10]);
    }
}
