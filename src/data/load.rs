//! Reads files into [`Embeddings`] and checks every row.

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::embeddings::{Embeddings, Skipped};
use super::file::{Dataset, Place, place};
use super::ids::{first_control, n_equal};
use super::read::{Stretch, read_all};
use super::reading::{Ids, Layout, Piece, Plan};
use super::{BadRows, LoadOptions};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};
use crate::memory::available;
use crate::rows::{Dtype, Resident, RowIndex, SourceFile, Values};
use crate::text::tsv::quoted_path;
use crate::text::{bytes, thousands};

/// Ends the messages on rows that are not finite.
const SKIP_HINT: &str = "fix the file, or drop such rows with --skip-bad-rows";
/// The same of rows that are in no file.
pub(super) const GIVEN_SKIP_HINT: &str = "fix it, or drop such rows with skip-bad-rows";
/// Ends the messages on ids of such rows.
pub(super) const GIVEN_ID_HINT: &str =
    "give each row an id of its own (what rows belong to are their groups)";
/// Ends the messages on ids.
const ID_HINT: &str = "write each id once, or name other ids: --ids NAME, --ids file for the files' names, --ids row for row numbers";

impl Embeddings {
    /// Reads `paths` as one data set, in the order given; within a file rows come in the order
    /// of the datasets' names (by bytes) or of the matrix. A path may be that of a file, or one of [`super::data_files`].
    pub fn load(paths: &[PathBuf], options: &LoadOptions) -> Result<Self> {
        Self::load_within(paths, options, u64::MAX)
    }
}

/// The error for files of which no row is left.
pub(super) fn holds_no_rows(path: &Path, skipped: &Skipped) -> Error {
    let what = match skipped.examples.first() {
        Some(example) => format!("no usable row is left: all were skipped, first {example}"),
        None => "holds no rows; give a file with embeddings".to_owned(),
    };
    Error::data(path, "", what)
}

/// What a person should know of files: of the search for them, of each, and of all together.
pub(super) fn warnings(mut found: Vec<String>, plans: &[Plan]) -> Vec<String> {
    found.extend(plans.iter().flat_map(|plan| plan.warnings.iter().cloned()));
    found.extend(records_in_files(plans));
    found
}

/// A warning where files of one matrix each, whose rows are numbered, have many lengths: shards of one data set have one,
/// but for the last, and files of a protein each do not.
fn records_in_files(plans: &[Plan]) -> Option<String> {
    let mut lengths = HashSet::new();
    for plan in plans {
        let [Piece { ids: Ids::Numbered(_), n_rows, .. }] = plan.pieces[..] else { return None };
        lengths.insert(n_rows);
    }
    (lengths.len() > 2).then(|| {
        let n = plans.len();
        format!("rows of {n} files are numbered; if each file holds the residues of one protein, add --ids file, so that they stay in one split")
    })
}

/// Counts a bad row, or makes it the error that stops the loading.
pub(super) struct Judge {
    pub rows: BadRows,
    pub skipped: Skipped,
}

#[derive(Clone, Copy)]
pub(super) enum Reason {
    NonFinite,
    Duplicate,
    BadId,
}

impl Judge {
    pub fn new(rows: BadRows) -> Self {
        Self { rows, skipped: Skipped::default() }
    }

    /// Stops where more rows were dropped than a person who did not ask for all of them expects.
    ///
    /// `look` says how to look at them.
    pub fn check_share(&self, path: &Path, n_rows: usize, look: &str) -> Result<()> {
        let dropped = self.skipped.total();
        if self.rows != BadRows::Skip || dropped.saturating_mul(10) <= n_rows {
            return Ok(());
        }
        let example = self.skipped.examples.first().map_or("", String::as_str);
        Err(Error::data(
            path,
            "",
            format!(
                "{} of {} rows would be dropped ({}), the first: {example}; {look}, or drop them all with --skip-bad-rows=all",
                thousands(dropped as u64),
                thousands(n_rows as u64),
                self.skipped.kinds(),
            ),
        ))
    }

    pub fn bad(&mut self, reason: Reason, n: usize, error: impl FnOnce() -> Error) -> Result<()> {
        if self.rows == BadRows::Stop {
            return Err(error());
        }
        let count = match reason {
            Reason::NonFinite => &mut self.skipped.non_finite,
            Reason::Duplicate => &mut self.skipped.duplicate,
            Reason::BadId => &mut self.skipped.bad_id,
        };
        if *count == 0 {
            let text = error().to_string();
            let hints = [SKIP_HINT, ID_HINT, GIVEN_SKIP_HINT, GIVEN_ID_HINT].map(|hint| format!("; {hint}"));
            let text = hints.iter().find_map(|hint| text.strip_suffix(hint.as_str())).unwrap_or(&text);
            self.skipped.examples.push(text.to_owned());
        }
        *count += n;
        Ok(())
    }
}

/// A piece with its file and the number of its first row.
pub(super) struct Located<'a> {
    plan: usize,
    file: &'a super::file::File,
    dataset: &'a Dataset,
    piece: &'a Piece,
    /// Place of the piece in its plan.
    number: usize,
    start: usize,
}

impl<'a> Located<'a> {
    /// A piece of a plan whose first row is `start`.
    pub fn new(plan: &'a Plan, plan_number: usize, number: usize, start: usize) -> Self {
        let piece = &plan.pieces[number];
        let dataset = &plan.datasets[piece.at];
        Self { plan: plan_number, file: &plan.file, dataset, piece, number, start }
    }

    /// Whether its rows can be read one by one, without values of others.
    pub fn is_plain(&self) -> bool {
        matches!(self.dataset.place, Place::At(_)) && self.piece.view.start(&self.dataset.shape).is_some()
    }
}

impl Located<'_> {
    /// Plan, piece of the plan, and first row.
    pub fn place_in_plans(&self) -> (usize, usize, usize) {
        (self.plan, self.number, self.start)
    }

    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// What its ids are.
    pub fn ids(&self) -> &Ids {
        &self.piece.ids
    }

    /// Its rows, among those of all pieces.
    pub fn rows(&self) -> Range<usize> {
        self.start..self.start + self.piece.n_rows
    }

    /// An error about its dataset.
    pub fn error_of(&self, what: String) -> Error {
        Error::data(&self.file.path, place(self.dataset), what)
    }

    /// How to write its file again with `rows` rows packed together.
    pub fn repack(&self, rows: usize) -> String {
        let path = quoted_path(&self.file.path);
        match self.file.group_rows() {
            Some(_) => format!(
                "write it again: `python3 -c 'import sys, pyarrow.parquet as p; p.write_table(p.read_table(sys.argv[1]), \"packed.parquet\", row_group_size={rows})' {path}`"
            ),
            None => format!(
                "write it again: `h5repack -l {}:CHUNK={rows}x{} {path} packed.h5`",
                self.dataset.path, self.piece.width
            ),
        }
    }

    /// Rows of a chunk, where they are in chunks that are read whole.
    pub fn chunk_rows(&self) -> Option<usize> {
        let Piece { view, stored, .. } = self.piece;
        self.file.chunk_rows(self.dataset, view, stored.dtype.size())?.try_into().ok()
    }

    /// Calls `f` with each id of the piece and its rows within the piece.
    pub fn each_id<'s>(&'s self, mut f: impl FnMut(Cow<'s, str>, Range<usize>) -> Result<()>) -> Result<()> {
        match &self.piece.ids {
            Ids::One(id) | Ids::Residues(id) => f(Cow::Borrowed(id), 0..self.piece.n_rows),
            Ids::Rows(ids) => {
                ids.iter().enumerate().try_for_each(|(row, id)| f(Cow::Borrowed(id), row..row + 1))
            }
            Ids::Numbered(prefix) => {
                (0..self.piece.n_rows).try_for_each(|row| f(Cow::Owned(numbered(prefix, row)), row..row + 1))
            }
            Ids::Runs(runs) => {
                let (ids, ends) = &**runs;
                let mut start = 0;
                ids.iter()
                    .zip(ends)
                    .try_for_each(|(id, &end)| f(Cow::Borrowed(id), std::mem::replace(&mut start, end)..end))
            }
        }
    }

    fn error(&self, row: usize, what: String, hint: &str) -> Error {
        let place = format!("{}, row {row}", place(self.dataset));
        Error::data(&self.file.path, place, format!("{what}; {hint}"))
    }
}

/// The id of a row that has none.
fn numbered(prefix: &str, row: usize) -> String {
    format!("{prefix}:{row}")
}

/// Reads all pieces, drops what must go, and numbers what stays.
pub(super) fn assemble(plans: Vec<Plan>, rows: BadRows) -> Result<Embeddings> {
    let mut judge = Judge::new(rows);
    let width = common_width(&plans);
    let pieces = locate(&plans, width)?;
    let n_rows = n_rows(&pieces)?;
    let d_in = width as usize;
    check_memory(&pieces, d_in.saturating_mul(dtype(&pieces).size()))?;
    let mut keep = vec![true; n_rows];
    check_ids(&pieces, &mut keep, &mut judge)?;

    let dtype = dtype(&pieces);
    let mut values = n_rows.checked_mul(d_in).and_then(|n| Values::zeros(dtype, n)).ok_or_else(|| {
        Error::Failed(format!(
            "{n_rows} rows of {d_in} {dtype} values do not fit the memory; give fewer files"
        ))
    })?;
    read_range(&pieces, 0..n_rows, &mut values)?;
    check_values(&pieces, &values, d_in, |row| row, &mut keep, &mut judge)?;

    if let Some(first) = plans.first() {
        let path = &first.file.path;
        judge.check_share(path, n_rows, &see(path))?;
    }
    if keep.contains(&false) {
        values.retain_rows(d_in, &keep);
    }
    let files = sources(&plans, &pieces, &keep);
    let all_single = pieces
        .iter()
        .all(|p| p.piece.n_rows == 1 && p.piece.clusters.is_none() && matches!(p.piece.ids, Ids::One(_)));
    let in_plans: usize = plans.iter().map(|plan| plan.pieces.len()).sum();
    let index = if all_single && n_rows == in_plans && !keep.contains(&false) {
        // The usual file of one vector per id, with 100,000 of them: their ids need not be copied.
        drop(pieces);
        let ids = plans.into_iter().flat_map(|plan| plan.pieces).filter_map(|piece| match piece.ids {
            Ids::One(id) => Some(id),
            _ => None,
        });
        RowIndex::of_ids(ids.collect())
    } else {
        groups(&pieces, 0..n_rows, &keep)
    };
    loaded(values, d_in, RowIndex { pieces: files, ..index }, judge.skipped)
}

/// Checked rows as a data set, with a warning of those that hold only zeros.
pub(super) fn loaded(values: Values, d_in: usize, index: RowIndex, skipped: Skipped) -> Result<Embeddings> {
    let zeros = values.zero_rows(d_in);
    let mut embeddings = Embeddings::new(Resident::new(values, d_in)?, index, skipped);
    warn_of_zeros(&mut embeddings, zeros.first().copied(), zeros.len());
    Ok(embeddings)
}

/// Adds a warning of `count` rows that hold only zeros.
pub(super) fn warn_of_zeros(embeddings: &mut Embeddings, first: Option<usize>, count: usize) {
    let Some(first) = first else { return };
    let id = embeddings.index().row_id(first);
    embeddings.warnings.push(format!(
        "{} of {} rows hold only zeros, the first is \"{id}\": such rows were often never written, or their file is missing",
        thousands(count as u64),
        thousands(embeddings.n_rows() as u64),
    ));
    embeddings.zero_rows = count;
}

/// Rows of all pieces, if they can be numbered.
pub(super) fn n_rows(pieces: &[Located<'_>]) -> Result<usize> {
    let n_rows = pieces.last().map_or(0, |p| p.start + p.piece.n_rows);
    if u32::try_from(n_rows).is_err() {
        return Err(Error::Failed(format!(
            "{n_rows} rows are more than {} row numbers; give fewer files",
            u32::MAX
        )));
    }
    Ok(n_rows)
}

/// Fails where the rows, of which each takes `row_bytes` (0 where they stay in their files), need more memory than there is: an allocation that fails later
/// ends the process without a word on what to do.
pub(super) fn check_memory(pieces: &[Located<'_>], row_bytes: usize) -> Result<()> {
    let what = if row_bytes == 0 { "the ids of all rows" } else { "all rows to be read" };
    let of = |located: &Located<'_>| {
        let id = match &located.piece.ids {
            // No allocator has texts in less than 32 bytes.
            Ids::Numbered(prefix) => size_of::<String>() + prefix.len().max(32),
            // These are there already.
            _ => 0,
        };
        // One more for the mark of those that stay.
        (row_bytes as u64 + id as u64 + 1).saturating_mul(located.piece.n_rows as u64)
    };
    let needed = pieces.iter().map(of).fold(0, u64::saturating_add);
    match (available(), pieces.iter().max_by_key(|located| of(located))) {
        (Some(there), Some(most)) if needed > there => Err(Error::data(
            &most.file.path,
            place(most.dataset),
            format!(
                "has {} rows, and {what} need {} of memory where there are {}; give fewer files, or a part of the rows",
                thousands(most.piece.n_rows as u64),
                bytes(needed),
                bytes(there)
            ),
        )),
        _ => Ok(()),
    }
}

/// The narrowest type that holds all pieces.
pub(super) fn dtype(pieces: &[Located<'_>]) -> Dtype {
    pieces.iter().map(|p| p.piece.stored.dtype).reduce(|a, b| a.widest(b)).unwrap_or(Dtype::F32)
}

/// Reads the rows `rows` of all pieces into `values`, which has room for exactly those.
pub(super) fn read_range(pieces: &[Located<'_>], rows: Range<usize>, values: &mut Values) -> Result<()> {
    read_ranges(pieces, &[rows], values)
}

/// Reads several ranges of rows, one after another, into `values`, which has room for exactly those.
pub(super) fn read_ranges(
    pieces: &[Located<'_>],
    ranges: &[Range<usize>],
    values: &mut Values,
) -> Result<()> {
    let mut parts = Vec::new();
    for (p, rows) in ranges.iter().flat_map(|rows| overlaps(pieces, rows.clone())) {
        parts.push(Stretch {
            file: p.file,
            dataset: p.dataset,
            stored: p.piece.stored,
            view: &p.piece.view,
            rows: rows.start as u64..rows.end as u64,
            width: p.piece.width as usize,
        });
    }
    read_all(&parts, values)
}

/// The width of most rows; of equals the one that comes first.
pub(super) fn common_width(plans: &[Plan]) -> u64 {
    let mut counts: Vec<(u64, usize)> = Vec::new();
    for piece in plans.iter().flat_map(|plan| &plan.pieces) {
        match counts.iter_mut().find(|(width, _)| *width == piece.width) {
            Some((_, n)) => *n += piece.n_rows,
            None => counts.push((piece.width, piece.n_rows)),
        }
    }
    let best = counts.iter().map(|(_, n)| *n).max();
    let first = counts.iter().find(|(_, n)| Some(*n) == best && *n > 0);
    first.map_or(0, |(width, _)| *width)
}

/// The pieces of the common width, one after another.
pub(super) fn locate(plans: &[Plan], width: u64) -> Result<Vec<Located<'_>>> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for (index, plan) in plans.iter().enumerate() {
        for (number, piece) in plan.pieces.iter().enumerate() {
            let dataset = &plan.datasets[piece.at];
            let located = Located { plan: index, file: &plan.file, dataset, piece, number, start };
            // An id without residues has nothing to give, whatever its width.
            if piece.n_rows == 0 {
                continue;
            }
            if piece.width == 0 || piece.width != width {
                let what = if piece.width == 0 {
                    "has rows without values; give embeddings".to_owned()
                } else {
                    format!(
                        "has rows of {} values where most have {width}; give files of one kind, or name what to read with --dataset",
                        piece.width
                    )
                };
                return Err(Error::data(&plan.file.path, place(dataset), what));
            }
            start += piece.n_rows;
            pieces.push(located);
        }
    }
    Ok(pieces)
}

/// Ids must be usable in tables and occur once.
pub(super) fn check_ids(pieces: &[Located<'_>], keep: &mut [bool], judge: &mut Judge) -> Result<()> {
    let n_ids: usize = pieces.iter().map(|located| located.piece.n_ids()).sum();
    if all_numbered(pieces) || all_differ(pieces, n_ids) {
        return Ok(());
    }
    // Row numbers and pieces are below 2^32.
    let mut seen: HashMap<Cow<'_, str>, (u32, u32)> = HashMap::with_capacity(n_ids.min(1 << 24));
    for (index, located) in pieces.iter().enumerate() {
        located.each_id(|id, part| {
            let (row, rows_each) = (part.start, part.len());
            let rows = located.start + part.start..located.start + part.end;
            if let Some(what) = unusable(&id) {
                judge.bad(Reason::BadId, rows_each, || located.error(row, what, ID_HINT))?;
                keep[rows].fill(false);
                return Ok(());
            }
            match seen.entry(id) {
                Entry::Vacant(free) => {
                    free.insert((index as u32, row as u32));
                }
                Entry::Occupied(taken) => {
                    let (other, other_row) = *taken.get();
                    let other = &pieces[other as usize];
                    let what = format!(
                        "the id \"{}\" was seen before, in {}: {}, row {other_row}",
                        taken.key(),
                        other.file.path.display(),
                        place(other.dataset)
                    );
                    judge.bad(Reason::Duplicate, rows_each, || located.error(row, what, ID_HINT))?;
                    keep[rows].fill(false);
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// What is wrong with an id that no table can hold.
pub(super) fn unusable(id: &str) -> Option<String> {
    match first_control(id) {
        Some(found) => Some(format!("the id {id:?} holds {found}, which no table can keep")),
        None => id.is_empty().then(|| "the id is empty".to_owned()),
    }
}

/// Whether all ids are usable and their hashes differ, as in nearly every file: sorted hashes take a third of the time of a
/// map of ids.
fn all_differ(pieces: &[Located<'_>], n_ids: usize) -> bool {
    let (mut hashes, mut usable) = (Vec::with_capacity(n_ids.min(1 << 24)), true);
    for located in pieces {
        let each = located.each_id(|id, _| {
            usable &= !id.is_empty() && first_control(&id).is_none();
            hashes.push(xxh3_64(id.as_bytes()));
            Ok(())
        });
        if each.is_err() || !usable {
            return false;
        }
    }
    n_equal(hashes) == 0
}

/// Whether all ids are row numbers after prefixes that differ: such ids differ too.
fn all_numbered(pieces: &[Located<'_>]) -> bool {
    let mut prefixes = HashSet::new();
    pieces.iter().all(|located| match &located.piece.ids {
        Ids::Numbered(prefix) => first_control(prefix).is_none() && prefixes.insert(prefix),
        _ => false,
    })
}

/// `values` are rows whose numbers `number` gives; `keep` has a mark for each of them.
pub(super) fn check_values(
    pieces: &[Located<'_>],
    values: &Values,
    d_in: usize,
    number: impl Fn(usize) -> usize,
    keep: &mut [bool],
    judge: &mut Judge,
) -> Result<()> {
    if d_in == 0 {
        return Ok(());
    }
    for (row, column) in values.first_bad_columns(d_in) {
        if !keep[row] {
            continue;
        }
        let at = number(row);
        let located = &pieces[pieces.partition_point(|p| p.start <= at) - 1];
        let what = non_finite(column, values.get(row * d_in + column));
        judge.bad(Reason::NonFinite, 1, || located.error(at - located.start, what, SKIP_HINT))?;
        keep[row] = false;
    }
    Ok(())
}

/// What is wrong with a row whose first bad value is `value`.
pub(super) fn non_finite(column: usize, value: f64) -> String {
    if value.is_finite() {
        format!("column {column} is {value:e}, too large for float32")
    } else {
        format!("column {column} is {value}")
    }
}

/// How to look at what a file holds.
pub(super) fn see(path: &Path) -> String {
    format!("see `sae inspect {}`", quoted_path(path))
}

/// The pieces that have rows in `rows`, each with those rows counted within the piece.
fn overlaps<'a, 'b>(
    pieces: &'a [Located<'b>],
    rows: Range<usize>,
) -> impl Iterator<Item = (&'a Located<'b>, Range<usize>)> {
    let first = pieces.partition_point(|p| p.start + p.piece.n_rows <= rows.start);
    let inside = pieces[first..].iter().take_while(move |p| p.start < rows.end);
    inside.map(move |p| {
        let from = rows.start.max(p.start) - p.start;
        (p, from..(rows.end - p.start).min(p.piece.n_rows))
    })
}

/// Numbers the groups of those of `rows` that stay; `keep` has a mark for each of them.
pub(super) fn groups(pieces: &[Located<'_>], rows: Range<usize>, keep: &[bool]) -> RowIndex {
    let mut groups = RowIndex::default();
    if pieces.iter().all(|p| matches!(p.piece.ids, Ids::Rows(_) | Ids::Numbered(_))) {
        groups.ids.reserve_exact(keep.iter().filter(|&&keep| keep).count());
    }
    let residues = pieces.iter().any(|p| matches!(p.piece.ids, Ids::Residues(_) | Ids::Runs(..)));
    for (located, part) in overlaps(pieces, rows.clone()) {
        let at = located.start + part.start - rows.start;
        let kept = &keep[at..at + part.len()];
        let add = |groups: &mut RowIndex, id: String, at: usize| {
            groups.ids.push(id);
            if let Some(clusters) = &located.piece.clusters {
                groups.clusters.get_or_insert_default().push(clusters[at].clone());
            }
            groups.ids.len() as u32 - 1
        };
        match &located.piece.ids {
            Ids::Rows(_) | Ids::Numbered(_) => {
                for (at, _) in part.zip(kept).filter(|(_, keep)| **keep) {
                    let id = match &located.piece.ids {
                        Ids::Rows(ids) => ids[at].clone(),
                        Ids::Numbered(prefix) => numbered(prefix, at),
                        _ => continue,
                    };
                    let group = add(&mut groups, id, at);
                    if residues {
                        groups.of_row.push((group, 0));
                    }
                }
            }
            Ids::Runs(runs) => {
                let (ids, ends) = &**runs;
                let mut run = ends.partition_point(|&end| end <= part.start);
                let mut group = None;
                for row in part.clone() {
                    while row >= ends[run] {
                        (run, group) = (run + 1, None);
                    }
                    if !kept[row - part.start] {
                        continue;
                    }
                    let group = *group.get_or_insert_with(|| add(&mut groups, ids[run].clone(), run));
                    let first = if run == 0 { 0 } else { ends[run - 1] };
                    groups.of_row.push((group, (row - first) as u32 + 1));
                }
            }
            Ids::One(id) | Ids::Residues(id) if kept.contains(&true) => {
                let group = add(&mut groups, id.clone(), 0);
                let numbered = matches!(located.piece.ids, Ids::Residues(_));
                for row in (0..kept.len()).filter(|&row| residues && kept[row]) {
                    let residue = if numbered { (part.start + row) as u32 + 1 } else { 0 };
                    groups.of_row.push((group, residue));
                }
            }
            _ => {}
        }
    }
    groups
}

pub(super) fn sources(plans: &[Plan], pieces: &[Located<'_>], keep: &[bool]) -> Vec<SourceFile> {
    let mut n_rows = vec![0; plans.len()];
    for p in pieces {
        let kept = &keep[p.start..p.start + p.piece.n_rows];
        n_rows[p.plan] += kept.iter().filter(|&&keep| keep).count();
    }
    let source = |(plan, n_rows): (&Plan, usize)| SourceFile {
        path: plan.file.path.clone(),
        layout: Layout::name(plan.layout),
        datasets: plan.dataset_text.clone(),
        n_rows,
    };
    plans.iter().zip(n_rows).map(source).collect()
}
