//! The split into training, validation and test rows, by id.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use super::Embeddings;
use crate::error::{Error, Result};

/// A part of the split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Rows that gradients come from: 80 %.
    Train,
    /// Rows that evaluations during training use: 10 %.
    Val,
    /// Rows that are looked at once, at the end: 10 %.
    Test,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        })
    }
}

/// The part that an id belongs to, from the id and the seed alone.
///
/// The upper 53 bits of XXH3-64 (id bytes, seed) make a number u in [0, 1):
/// u < 0.8 is train, u < 0.9 is val, the rest test.
pub fn part_of_id(id: &str, seed: u64) -> Part {
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(id.as_bytes(), seed);
    let u = (hash >> 11) as f64 / (1u64 << 53) as f64;
    if u < 0.8 {
        Part::Train
    } else if u < 0.9 {
        Part::Val
    } else {
        Part::Test
    }
}

/// Row numbers of each part, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Training rows.
    pub train: Vec<u32>,
    /// Validation rows.
    pub val: Vec<u32>,
    /// Test rows.
    pub test: Vec<u32>,
}

impl Split {
    /// Splits by [`part_of_id`] of each group's id.
    pub fn new(data: &Embeddings, seed: u64) -> Self {
        let parts: Vec<Part> =
            (0..data.n_groups()).map(|group| part_of_id(data.group_id(group), seed)).collect();
        Self::from_parts(data, |group| Some(parts[group]))
    }

    fn from_parts(data: &Embeddings, part: impl Fn(usize) -> Option<Part>) -> Self {
        let mut split = Self::default();
        for row in 0..data.n_rows() {
            match part(data.group_of(row)) {
                Some(Part::Train) => split.train.push(row as u32),
                Some(Part::Val) => split.val.push(row as u32),
                Some(Part::Test) => split.test.push(row as u32),
                None => {}
            }
        }
        split
    }

    /// The rows of one part.
    pub fn rows(&self, part: Part) -> &[u32] {
        match part {
            Part::Train => &self.train,
            Part::Val => &self.val,
            Part::Test => &self.test,
        }
    }

    /// A table of `id` and `split`, tab-separated with a header, a line a group in data order.
    pub fn to_tsv(&self, data: &Embeddings) -> String {
        let mut parts = vec![None; data.n_groups()];
        for part in [Part::Train, Part::Val, Part::Test] {
            for &row in self.rows(part) {
                parts[data.group_of(row as usize)] = Some(part);
            }
        }
        let mut text = String::from("id\tsplit\n");
        for (group, part) in parts.iter().enumerate() {
            if let Some(part) = part {
                text.push_str(&format!("{}\t{part}\n", data.group_id(group)));
            }
        }
        text
    }

    /// Reads such a table for `data`; also how many of its groups the table does not name
    /// (their rows are in no part).
    pub fn from_tsv(path: &Path, data: &Embeddings) -> Result<(Self, usize)> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let mut lines = text.lines().enumerate();
        if lines.next().is_none_or(|(_, header)| header.trim_end() != "id\tsplit") {
            let what = "must begin with a line of \"id\", a tab, \"split\"; give a run's splits.tsv";
            return Err(Error::data(path, "line 1", what));
        }
        let mut parts: HashMap<&str, Part> = HashMap::new();
        for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
            let wrong = |what: String| Err(Error::data(path, format!("line {}", number + 1), what));
            let part = match line.split_once('\t') {
                Some((id, "train")) => (id, Part::Train),
                Some((id, "val")) => (id, Part::Val),
                Some((id, "test")) => (id, Part::Test),
                _ => return wrong("is not an id, a tab, and train, val or test; mend it".into()),
            };
            if parts.insert(part.0, part.1).is_some_and(|old| old != part.1) {
                return wrong(format!("puts \"{}\" into a second part; mend it", part.0));
            }
        }
        let of_group: Vec<Option<Part>> =
            (0..data.n_groups()).map(|group| parts.get(data.group_id(group)).copied()).collect();
        let missing = of_group.iter().filter(|part| part.is_none()).count();
        Ok((Self::from_parts(data, |group| of_group[group]), missing))
    }
}
