//! `sae overlap`: which latents groups of a label share, and whether they share fewer than chance would make them.
//!
//! A latent is *active in a group* if the share of the group's rows that activate it is above a threshold, and so is
//! its mean activation over all rows of the group. It is *specific* to a group if it is active in that one alone. For
//! two groups with the sets A and B of active latents the overlap is Jaccard's index |A n B| / |A u B|, and |A n B| as
//! a share of |A| and of |B|.
//!
//! Two samples of one population do not share all latents either: those near the threshold fall on either side, in a
//! small group more than in a large one. What a percentage means is therefore judged by shuffles (`permute`).

mod gather;
mod groups;
mod labels;
mod log;
mod permute;
mod table;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use super::codes;
use super::labels::UnknownCells;
use super::spill::Room;
use super::{Source, load_model};
use crate::error::{Error, Result};
use crate::rows::Part;
use crate::run::{Kind, Output, Outputs};
use gather::{Gather, Totals};
use groups::{kept_groups, named_groups};
use labels::Labels;
use permute::Shuffles;
pub use permute::{Active, Measure, Pair};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
pub use table::largest_but;

/// What to compare, and how.
#[derive(Debug, Clone)]
pub struct OverlapRequest {
    /// Model and data.
    pub source: Source,
    /// Rows of one split; `None` is all rows.
    pub split: Option<Part>,
    /// The table of labels.
    pub labels: PathBuf,
    /// Its column; `None` is the only one.
    pub column: Option<String>,
    /// Values that mean unknown, as an empty cell does; those that `groups` names are labels all the same.
    pub unknown: Vec<String>,
    /// Groups: each a label, or several separated by commas. None are all labels of the column, if they are few.
    pub groups: Vec<String>,
    /// Leave out ids in several of the groups; otherwise they count in each.
    pub exclusive: bool,
    /// What counts as active in a group.
    pub active: Active,
    /// Shuffles of the labels.
    pub permutations: usize,
    /// Their seed.
    pub seed: u64,
    /// Bytes of memory that codes may take; `None` is half of what is free. Those that need more go to a temporary file.
    pub memory: Option<u64>,
    /// Files that will be made from the result, with the option that names each: refused early if they are there.
    pub outputs: Vec<(&'static str, PathBuf)>,
    /// Replace them.
    pub overwrite: bool,
}

/// A group of rows.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// The label.
    pub name: String,
    /// Ids with it (proteins, in a per-residue file).
    pub ids: u64,
    /// Rows of these ids.
    pub rows: u64,
    /// Mean number of active latents per row, L0.
    pub l0: f64,
    /// Latents active in the group.
    pub active: usize,
    /// Latents active in this group and in no other of those compared.
    pub specific: usize,
}

/// What became of the ids of the data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct IdCounts {
    /// In one of the groups or several.
    pub in_groups: u64,
    /// In several of the groups; they count in each, or not at all if so asked.
    pub in_several: u64,
    /// With other labels alone.
    pub other_labels: u64,
    /// In the table, with a cell that is empty or unknown.
    pub unlabelled: u64,
    /// Not in the table.
    pub not_in_table: u64,
}

/// A latent's figures in every group.
#[derive(Debug, Clone)]
pub struct Latent {
    /// Share of each group's rows that activate it.
    pub shares: Vec<f64>,
    /// Mean activation over all rows of each group, in the model's own units.
    pub means: Vec<f64>,
    /// Whether it is active in each group.
    pub active: Vec<bool>,
}

impl Latent {
    /// `specific` (active in one group), `shared` (in all), `some` (in several, not all) or `none`.
    pub fn class(&self) -> &'static str {
        match self.active.iter().filter(|a| **a).count() {
            0 => "none",
            1 => "specific",
            n if n == self.active.len() => "shared",
            _ => "some",
        }
    }
}

/// The result.
#[derive(Debug, Clone, Serialize)]
pub struct Overlap {
    /// Column of the labels.
    pub column: String,
    /// `train`, `val`, `test` or `all`.
    pub split: String,
    /// Latents of the model, M.
    pub n_latents: usize,
    /// What counts as active in a group.
    #[serde(flatten)]
    pub active: Active,
    /// Whether ids in several groups were left out.
    pub exclusive: bool,
    /// Shuffles of the labels.
    pub permutations: usize,
    /// Their seed.
    pub seed: u64,
    /// What became of the ids.
    pub ids: IdCounts,
    /// Cells that count as unknown though something is in them.
    pub unknown_cells: Vec<UnknownCells>,
    /// Bad rows that were dropped.
    pub skipped_rows: usize,
    /// The groups: as named, or the largest first.
    pub groups: Vec<Group>,
    /// Latents active in every group.
    pub shared_by_all: usize,
    /// Every two groups.
    pub pairs: Vec<Pair>,
    /// Every latent (M).
    #[serde(skip)]
    pub latents: Vec<Latent>,
}

/// Compares the latents of groups of rows.
///
/// Of the ids in the groups one count and one sum per active latent are kept, 12 bytes: in half of the memory, or in a
/// temporary file in the run folder. Two groups are compared by as many latents at a time as fit in the other half, with
/// 20 bytes per id and 5 per id and thread. The same seed gives the same figures, whatever the memory and the threads.
///
/// # Errors
/// An output that is there; a threshold out of range; a table that cannot be read; groups that the column or the data
/// lack (the message has those that are there); what [`codes::walk`] meets; what the disk refuses.
pub fn overlap(request: &OverlapRequest, stop: &AtomicBool) -> Result<Overlap> {
    check(request)?;
    let labels = Labels::read(&request.labels, request.column.as_deref(), &unknown(request))?;
    let named = named_groups(request, &labels)?;
    let (params, meta) = load_model(&request.source.model)?;
    let n_latents = meta.architecture.n_latents;
    let room = Room::new(request.memory, &request.source.model, request.outputs.iter().map(|(_, path)| path));
    let mut gather = Gather::new(&labels, &named, request.exclusive, n_latents, room);
    let walked = codes::walk(&request.source, (params, &meta), request.split, stop, |names, codes| {
        for (i, entry) in names.groups.iter().enumerate() {
            let (latents, values) = codes.row(i);
            gather.add(entry, latents, values)?;
        }
        Ok(())
    })?;
    let gathered = gather.finish()?;
    let kept = kept_groups(request, &labels, &gathered, named)?;
    let totals: Vec<&Totals> = kept.iter().map(|(_, bit)| gathered.totals(*bit)).collect();
    let latents = latents(&totals, &request.active, n_latents);
    let ways = Shuffles { active: request.active, permutations: request.permutations, seed: request.seed };
    let mut pairs = vec![];
    for (i, (a, bit_a)) in kept.iter().enumerate() {
        for (b, bit_b) in &kept[i + 1..] {
            pairs.push(ways.pair(
                &gathered,
                (&labels.names[*a], *bit_a),
                (&labels.names[*b], *bit_b),
                stop,
            )?);
        }
    }
    Ok(Overlap {
        column: labels.column.clone(),
        split: request.split.map_or("all".to_owned(), |part| part.to_string()),
        n_latents,
        active: request.active,
        exclusive: request.exclusive,
        permutations: request.permutations,
        seed: request.seed,
        ids: gathered.ids,
        unknown_cells: labels.unknown_cells.clone(),
        skipped_rows: walked.skipped_rows,
        groups: summaries(&kept, &labels, &totals, &latents),
        shared_by_all: latents.iter().filter(|l| l.class() == "shared").count(),
        pairs,
        latents,
    })
}

/// The values that mean unknown: a person who names one as a group means the label.
fn unknown(request: &OverlapRequest) -> Vec<String> {
    let named = |value: &&String| {
        request.groups.iter().any(|text| text.trim() == *value || text.split(',').any(|n| n.trim() == *value))
    };
    request.unknown.iter().filter(|value| !named(value)).cloned().collect()
}

fn check(request: &OverlapRequest) -> Result<()> {
    let Active { threshold, min_activation } = request.active;
    if !(0.0..1.0).contains(&threshold) {
        return Err(Error::Usage(format!(
            "--threshold {threshold}: give a share of rows from 0 to below 1, as in 0.05"
        )));
    }
    if !(min_activation >= 0.0 && min_activation.is_finite()) {
        return Err(Error::Usage(format!(
            "--min-activation {min_activation}: give a finite number, 0 or more"
        )));
    }
    let mut inputs = request.source.inputs();
    inputs.push(request.labels.clone());
    let kind = |flag| if flag == "--plot" { Kind::Png } else { Kind::Text };
    let files: Vec<Output<'_>> =
        request.outputs.iter().map(|(flag, path)| Output { flag, path, kind: kind(*flag) }).collect();
    Outputs { files: &files, inputs: &inputs, overwrite: request.overwrite, ..Default::default() }.check()
}

fn latents(totals: &[&Totals], active: &Active, n_latents: usize) -> Vec<Latent> {
    let of = |j: usize| Latent {
        shares: totals.iter().map(|t| f64::from(t.counts[j]) / t.rows as f64).collect(),
        means: totals.iter().map(|t| t.sums[j] / t.rows as f64).collect(),
        active: totals.iter().map(|t| active.holds(t.counts[j], t.sums[j], t.rows)).collect(),
    };
    (0..n_latents).map(of).collect()
}

fn summaries(kept: &[(usize, u64)], labels: &Labels, totals: &[&Totals], latents: &[Latent]) -> Vec<Group> {
    let group = |(i, (label, _)): (usize, &(usize, u64))| Group {
        name: labels.names[*label].clone(),
        ids: totals[i].ids,
        rows: totals[i].rows,
        l0: totals[i].counts.iter().map(|c| u64::from(*c)).sum::<u64>() as f64 / totals[i].rows as f64,
        active: latents.iter().filter(|l| l.active[i]).count(),
        specific: latents.iter().filter(|l| l.active[i] && l.class() == "specific").count(),
    };
    kept.iter().enumerate().map(group).collect()
}
