//! Which columns and values are labels, and which rows bear them.

use super::{LabelTable, UnknownCells};
use crate::error::{Error, Result};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::HashMap;

/// Seed of the hash that puts an id into one half or the other; another than any split's, which are small numbers.
const HALF_SEED: u64 = 0x6c61_6265_6c73_2f32;
/// A column of numbers with more values than this is a measurement and not a set of labels.
const MAX_NUMBERS: usize = 20;

/// What is asked of a table of labels.
#[derive(Debug, Clone)]
pub struct LabelOptions {
    /// Columns to use; `None` is all that look like labels.
    pub columns: Option<Vec<String>>,
    /// A label needs this many rows that bear it and as many that are known not to.
    pub min_rows: u64,
    /// A column that was not asked for by name is skipped if it has more values than this.
    pub max_values: usize,
    /// Values that mean unknown, as the empty cell does.
    pub unknown: Vec<String>,
}

/// A value of a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Label {
    /// The column, as a place in [`Labelled::columns`].
    #[serde(skip)]
    pub column: usize,
    /// Name of the column.
    #[serde(rename = "column")]
    pub column_name: String,
    /// The value.
    pub value: String,
    /// Rows that bear it, in the first half and in the second.
    pub rows: [u64; 2],
}

/// A column that gave no labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    /// Its name.
    pub column: String,
    /// Why, and what would change that.
    pub why: String,
}

/// What was found on the way.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Told {
    /// Rows of the data that have a line in the table, their own or that of their id.
    pub labelled_rows: u64,
    /// Ids of the data (proteins in per-residue files) without a line.
    pub ids_without_labels: u64,
    /// Lines of the table whose id is not in the data.
    pub unknown_ids: u64,
    /// The first of these.
    pub first_unknown_id: Option<String>,
    /// Cells of the columns asked for that count as unknown though something is in them.
    pub unknown_cells: Vec<UnknownCells>,
    /// Columns without labels.
    pub passed_over: Vec<PassedOver>,
    /// Values of the columns used that too few rows bear, or nearly all.
    pub rare_values: u64,
}

/// What is known of a row: shared by rows of the same line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// Columns with a value.
    pub columns: Vec<u32>,
    /// Labels borne.
    pub labels: Vec<u32>,
}

/// Labels of rows. A line names an id, and holds for all its rows, or a row, as in `P12345:17`; where both are there, a
/// cell of the row's own line goes before that of its id. Which profile and which half a row has is in its tag
/// ([`RowLabels::row`]).
#[derive(Debug, Clone, Default)]
pub struct Labelled {
    /// Names of the columns that have labels.
    pub columns: Vec<String>,
    /// The labels, by column in the table's order, the most frequent of a column first.
    pub labels: Vec<Label>,
    /// Rows with a value in each column, in the first half and in the second.
    pub known: Vec<[u64; 2]>,
    /// Distinct profiles; the first is that of rows without a line.
    pub profiles: Vec<Profile>,
    /// What was found on the way.
    pub told: Told,
}

/// Whether the rows of an id are in the second half: XXH3-64 of the id, lowest bit. It depends on nothing else, so that
/// the halves stay as they are when rows, labels or models change.
pub fn in_second_half(id: &str) -> bool {
    xxhash_rust::xxh3::xxh3_64_with_seed(id.as_bytes(), HALF_SEED) & 1 == 1
}

impl Labelled {
    /// Adds the labels of a column, whose values and rows are those of each profile.
    fn add_column(
        &mut self,
        name: &str,
        cells: &[Vec<Cow<str>>],
        weights: &[[u64; 2]],
        options: &LabelOptions,
    ) {
        let mut counts: HashMap<&str, [u64; 2]> = HashMap::new();
        let mut known = [0u64; 2];
        for (values, weight) in cells.iter().zip(weights).filter(|(values, _)| !values.is_empty()) {
            add(&mut known, *weight);
            for value in values {
                add(counts.entry(value).or_default(), *weight);
            }
        }
        let usable = |rows: &[u64; 2]| {
            let others = [known[0] - rows[0], known[1] - rows[1]];
            [rows, &others].iter().all(|r| r[0] > 0 && r[1] > 0 && r[0] + r[1] >= options.min_rows)
        };
        let mut labels: Vec<(&str, [u64; 2])> =
            counts.iter().filter(|(_, rows)| usable(rows)).map(|(v, r)| (*v, *r)).collect();
        if let Some(why) = why_not(&counts, labels.len(), options) {
            self.told.passed_over.push(PassedOver { column: name.to_owned(), why });
            return;
        }
        self.told.rare_values += (counts.len() - labels.len()) as u64;
        labels.sort_by(|a, b| (b.1[0] + b.1[1]).cmp(&(a.1[0] + a.1[1])).then(a.0.cmp(b.0)));
        let column = self.columns.len();
        let first = self.labels.len() as u32;
        let number: HashMap<&str, u32> =
            labels.iter().enumerate().map(|(i, (value, _))| (*value, first + i as u32)).collect();
        for (profile, values) in self.profiles.iter_mut().zip(cells).filter(|(_, v)| !v.is_empty()) {
            profile.columns.push(column as u32);
            profile.labels.extend(values.iter().filter_map(|value| number.get(value.as_ref())));
        }
        self.columns.push(name.to_owned());
        self.known.push(known);
        self.labels.extend(labels.into_iter().map(|(value, rows)| Label {
            column,
            column_name: name.to_owned(),
            value: value.to_owned(),
            rows,
        }));
    }
}

/// Why a column gives no labels.
fn why_not(counts: &HashMap<&str, [u64; 2]>, usable: usize, options: &LabelOptions) -> Option<String> {
    let n = counts.len();
    if options.columns.is_none() {
        let numbers = counts.keys().all(|value| value.parse::<f64>().is_ok());
        if numbers && n > MAX_NUMBERS {
            return Some(format!(
                "it holds numbers, {n} different ones; make classes of them, or take each as a label by naming the column with --columns"
            ));
        }
        if n > options.max_values {
            return Some(format!(
                "it has {n} different values; raise --max-values, or name the column with --columns"
            ));
        }
    }
    let n = options.min_rows;
    match (counts.len(), usable) {
        (0, _) => Some("no row of the data has a value in it".into()),
        (1, 0) => Some("all rows that are known have the same value".into()),
        (_, 0) => Some(format!(
            "no value has {n} rows that bear it and {n} that do not, some in each half; lower --min-rows"
        )),
        _ => None,
    }
}

fn add(to: &mut [u64; 2], more: [u64; 2]) {
    to[0] += more[0];
    to[1] += more[1];
}

/// The columns asked for, in the table's order.
fn wanted(table: &LabelTable, options: &LabelOptions) -> Result<Vec<usize>> {
    let all = table.columns();
    let Some(names) = &options.columns else { return Ok((0..all.len()).collect()) };
    if let Some(missing) = names.iter().find(|name| !all.contains(name)) {
        return Err(Error::Usage(format!(
            "--columns {missing}: {} has no such column; it has {}",
            table.path().display(),
            all.join(", ")
        )));
    }
    Ok((0..all.len()).filter(|&column| names.contains(&all[column])).collect())
}

/// The line of a row and that of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Pair {
    own: Option<u32>,
    group: Option<u32>,
}

impl Pair {
    fn values<'a>(&self, table: &'a LabelTable, column: usize, unknown: &[String]) -> Vec<Cow<'a, str>> {
        [self.own, self.group]
            .into_iter()
            .flatten()
            .map(|line| table.values(line as usize, column, unknown))
            .find(|values| !values.is_empty())
            .unwrap_or_default()
    }
}

/// The tag of a row that the table says nothing of.
pub const NO_LINE: u32 = 0;
/// In a tag: the row is in the second half, which figures are reported on; the first is the one that thresholds are
/// chosen on.
const SECOND: u32 = 1 << 31;

/// The tag of rows with a profile, in one half or the other.
pub fn tagged(profile: u32, second: bool) -> u32 {
    profile | if second { SECOND } else { 0 }
}

/// Profile and half of the rows with a tag: the place in [`Labelled::profiles`], and whether it is the second half.
pub fn untagged(tag: u32) -> (u32, bool) {
    (tag & !SECOND, tag & SECOND != 0)
}

/// Finds which lines of a table speak of rows, which come one after another, those of an id together. What it keeps grows
/// with the table and not with the rows.
pub struct RowLabels<'a> {
    table: &'a LabelTable,
    options: &'a LabelOptions,
    /// Columns to use.
    wanted: Vec<usize>,
    pairs: Vec<Pair>,
    number: HashMap<Pair, u32>,
    /// Rows of each pair, in the first half and in the second.
    weights: Vec<[u64; 2]>,
    /// Lines that spoke of a row.
    used: Vec<bool>,
    /// The first row's id.
    first_id: Option<String>,
    group: Group,
    told: Told,
}

/// The id whose rows are coming: a protein in per-residue files.
#[derive(Default)]
struct Group {
    id: String,
    line: Option<u32>,
    second: bool,
    labelled: bool,
}

impl<'a> RowLabels<'a> {
    /// No rows yet.
    ///
    /// # Errors
    /// A column asked for that is not there.
    pub fn new(table: &'a LabelTable, options: &'a LabelOptions) -> Result<Self> {
        let none = Pair { own: None, group: None };
        Ok(Self {
            table,
            options,
            wanted: wanted(table, options)?,
            pairs: vec![none],
            number: HashMap::from([(none, NO_LINE)]),
            weights: vec![[0; 2]],
            used: vec![false; table.n_lines()],
            first_id: None,
            group: Group::default(),
            told: Told::default(),
        })
    }

    /// The tag of the next row, of the id `group`; `id` is the row's own, the same where it is no residue.
    ///
    /// # Errors
    /// More than 2^31 pairs of lines.
    pub fn row(&mut self, id: &str, group: &str) -> Result<u32> {
        let find = |id: &str| self.table.line_of(id).map(|line| line as u32);
        if self.first_id.is_none() || self.group.id != group {
            self.end_group();
            let (line, second) = (find(group), in_second_half(group));
            self.group = Group { id: group.to_owned(), line, second, labelled: false };
            self.first_id.get_or_insert_with(|| id.to_owned());
        }
        let own = if id == group { None } else { find(id) };
        let pair = Pair { own, group: self.group.line };
        let second = self.group.second;
        let number = match self.number.get(&pair) {
            Some(number) => *number,
            None => {
                let number = self.pairs.len() as u32;
                if number >= SECOND {
                    return Err(Error::Usage(
                        "more than 2,147,483,648 kinds of rows; give fewer labels".into(),
                    ));
                }
                self.pairs.push(pair);
                self.weights.push([0; 2]);
                self.number.insert(pair, number);
                number
            }
        };
        self.weights[number as usize][usize::from(second)] += 1;
        for line in [own, pair.group].into_iter().flatten() {
            self.used[line as usize] = true;
            self.group.labelled = true;
        }
        if number == NO_LINE {
            return Ok(NO_LINE);
        }
        self.told.labelled_rows += 1;
        Ok(tagged(number, second))
    }

    fn end_group(&mut self) {
        self.told.ids_without_labels += u64::from(self.first_id.is_some() && !self.group.labelled);
    }

    /// The labels of all rows.
    ///
    /// # Errors
    /// A table that names none of the ids.
    pub fn finish(mut self) -> Result<Labelled> {
        self.end_group();
        let Self { table, options, pairs, weights, used, mut told, .. } = self;
        if told.labelled_rows == 0 {
            return Err(table.no_common_id(self.first_id.as_deref().unwrap_or("")));
        }
        told.unknown_ids = used.iter().filter(|&&u| !u).count() as u64;
        told.first_unknown_id = used.iter().position(|&u| !u).map(|line| table.id(line).to_owned());
        told.unknown_cells = table.unknown_cells(&self.wanted, &options.unknown);
        let profiles = vec![Profile::default(); pairs.len()];
        let mut out = Labelled { profiles, told, ..Labelled::default() };
        for column in self.wanted {
            let cells: Vec<Vec<Cow<str>>> =
                pairs.iter().map(|pair| pair.values(table, column, &options.unknown)).collect();
            out.add_column(&table.columns()[column], &cells, &weights, options);
        }
        Ok(out)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
