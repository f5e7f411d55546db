//! The split into training, validation and test rows, by id.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use super::RowIndex;
use crate::error::{Error, Result};
use crate::text::tsv;

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

impl Part {
    /// What its rows are called in a sentence: "the validation rows".
    pub fn rows(self) -> &'static str {
        match self {
            Self::Train => "training",
            Self::Val => "validation",
            Self::Test => "test",
        }
    }
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "train" => Ok(Self::Train),
            "val" | "valid" | "validation" => Ok(Self::Val),
            "test" => Ok(Self::Test),
            _ => Err(format!("`{name}` is not train, val or test")),
        }
    }
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

/// The part of each cluster of ids. Those larger than a tenth of the rows come first, then the others in the order of
/// their hashes, whatever the order of the rows. Each goes to the part that lacks the largest share of its rows among
/// those that have room for it, or to the one that lacks most. Of three clusters and more each part has one.
fn parts_of_clusters(index: &RowIndex, seed: u64) -> HashMap<&str, Part> {
    let mut sizes: HashMap<&str, u64> = HashMap::new();
    for row in 0..index.n_rows() {
        *sizes.entry(index.cluster_of(index.group_of(row))).or_default() += 1;
    }
    let n = index.n_rows() as u64;
    let mut clusters: Vec<(bool, u64, &str, u64)> = sizes
        .into_iter()
        .map(|(name, size)| {
            let hash = xxhash_rust::xxh3::xxh3_64_with_seed(name.as_bytes(), seed);
            (size * 10 <= n, hash, name, size)
        })
        .collect();
    clusters.sort_unstable();
    let shares = [(Part::Train, 0.8), (Part::Val, 0.1), (Part::Test, 0.1)];
    let mut room = shares.map(|(_, share)| share * n as f64);
    let mut members: [Vec<(u64, &str)>; 3] = Default::default();
    for (_, _, name, size) in clusters {
        let fits = |i: &usize| room[*i] >= size as f64;
        let any = (0..3).any(|i| fits(&i));
        let want = |i: usize| if any { room[i] / shares[i].1 } else { room[i] };
        let open = (0..3).filter(|i| !any || fits(i));
        let best = open.max_by(|&a, &b| want(a).total_cmp(&want(b)).then(b.cmp(&a))).unwrap_or(0);
        room[best] -= size as f64;
        members[best].push((size, name));
    }
    for part in 1..3 {
        if members[part].is_empty() && members[0].len() > 1 {
            let smallest = (0..members[0].len()).min_by_key(|&i| members[0][i].0).unwrap_or(0);
            let moved = members[0].remove(smallest);
            members[part].push(moved);
        }
    }
    let named = shares.iter().zip(&members);
    named.flat_map(|((part, _), members)| members.iter().map(|(_, name)| (*name, *part))).collect()
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
    /// Splits by [`part_of_id`] of each group's id; where ids belong together, no group of them is in two parts and the
    /// parts have 80, 10 and 10 % of the rows as nearly as the groups allow.
    pub fn new(index: &RowIndex, seed: u64) -> Self {
        if index.clusters.is_some() {
            let parts = parts_of_clusters(index, seed);
            return Self::from_parts(index, |group| parts.get(index.cluster_of(group)).copied());
        }
        let parts: Vec<Part> =
            (0..index.n_groups()).map(|group| part_of_id(index.group_id(group), seed)).collect();
        Self::from_parts(index, |group| Some(parts[group]))
    }

    fn from_parts(index: &RowIndex, part: impl Fn(usize) -> Option<Part>) -> Self {
        let mut split = Self::default();
        for row in 0..index.n_rows() {
            match part(index.group_of(row)) {
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

    /// A table of `id` and `split`, and of `group` where ids belong together; tab-separated with a header, one line per id
    /// in data order.
    pub fn to_tsv(&self, index: &RowIndex) -> String {
        self.table(index, |id| tsv::field(id))
    }

    fn table<'a>(&self, index: &'a RowIndex, field: impl Fn(&'a str) -> Cow<'a, str>) -> String {
        let mut parts = vec![None; index.n_groups()];
        for part in [Part::Train, Part::Val, Part::Test] {
            for &row in self.rows(part) {
                parts[index.group_of(row as usize)] = Some(part);
            }
        }
        let grouped = index.clusters.is_some();
        let mut text = String::from(if grouped { "id\tsplit\tgroup\n" } else { "id\tsplit\n" });
        for (group, part) in parts.iter().enumerate() {
            let Some(part) = part else { continue };
            text.push_str(&format!("{}\t{part}", field(index.group_id(group))));
            if grouped {
                text.push_str(&format!("\t{}", field(index.cluster_of(group))));
            }
            text.push('\n');
        }
        text
    }

    /// Whether `table` is [`Split::to_tsv`] of `index`, or what version 0.1.0 wrote: ids without quotes around them.
    pub fn is_table(&self, table: &str, index: &RowIndex) -> bool {
        self.table(index, |id| tsv::field(id)) == table || self.table(index, Cow::Borrowed) == table
    }

    /// Reads such a table for `index`; also how many of its groups the table does not name
    /// (their rows are in no part).
    pub fn from_tsv(path: &Path, index: &RowIndex) -> Result<(Self, usize)> {
        let parts = read_parts(path)?;
        let of_group: Vec<Option<Part>> =
            (0..index.n_groups()).map(|group| parts.get(index.group_id(group)).copied()).collect();
        let missing = of_group.iter().filter(|part| part.is_none()).count();
        Ok((Self::from_parts(index, |group| of_group[group]), missing))
    }
}

/// The part of each id in a table that [`Split::to_tsv`] wrote.
///
/// # Errors
/// A file that cannot be read or is no such table.
pub fn read_parts(path: &Path) -> Result<HashMap<String, Part>> {
    let text = tsv::read_text(path)?;
    // Version 0.1.0 wrote ids with quotes in them as they are.
    quoted_parts(path, &text).or_else(|error| plain_parts(&text).ok_or(error))
}

/// The parts in a table without quoted fields; `None` if it is no such table.
fn plain_parts(text: &str) -> Option<HashMap<String, Part>> {
    let mut parts = HashMap::new();
    for line in text.strip_prefix("id\tsplit\n")?.lines() {
        let (id, part) = line.split_once('\t')?;
        let part = part.parse().ok()?;
        if parts.insert(id.to_owned(), part).is_some_and(|old| old != part) {
            return None;
        }
    }
    Some(parts)
}

fn quoted_parts(path: &Path, text: &str) -> Result<HashMap<String, Part>> {
    let wrong = |line: usize, what: String| Error::data(path, format!("line {line}"), what);
    let no_header = || {
        let what =
            "must begin with a line of \"id\", a tab, \"split\"; give a run's splits.tsv, or a table like it";
        wrong(1, what.into())
    };
    let mut parts: HashMap<String, Part> = HashMap::new();
    let mut header = false;
    tsv::records(path, text, |line, record| {
        if !header {
            header = record == vec!["id", "split"] || record == vec!["id", "split", "group"];
            return if header { Ok(()) } else { Err(no_header()) };
        }
        let fields: Vec<&str> = record.iter().collect();
        let (id, part) = match fields.as_slice() {
            [id, part] | [id, part, _] => (*id, part.parse().ok()),
            _ => ("", None),
        };
        let Some(part) = part else {
            return Err(wrong(line, "is not an id, a tab, and train, val or test; fix it".into()));
        };
        match parts.insert(id.to_owned(), part) {
            Some(old) if old != part => Err(wrong(line, format!("puts \"{id}\" into a second part; fix it"))),
            _ => Ok(()),
        }
    })?;
    if header { Ok(parts) } else { Err(no_header()) }
}
