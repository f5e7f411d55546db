//! What latents fire on, gathered row by row; nothing is kept of a row but its codes, where they are wanted.

use super::FeaturesRequest;
use super::by_latent::{ByLatent, Collect};
use super::firing::Firing;
use crate::analysis::codes::{self, RowNames};
use crate::analysis::labels::choose::{NO_LINE, RowLabels};
use crate::analysis::load_model;
use crate::analysis::spill::Room;
use crate::backend::Codes;
use crate::error::Result;
use crate::model::Params;
use crate::model::file::ModelMeta;
use std::sync::atomic::AtomicBool;

/// Codes that are kept, beside what all of them add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None, or with labels those of rows that may have one.
    Labelled,
    /// All, for histograms.
    All,
}

/// What the rows gave, and the model.
pub struct Gathered {
    /// The model's tensors.
    pub params: Params,
    /// What is known of it.
    pub meta: ModelMeta,
    /// What each latent did (M).
    pub firing: Vec<Firing>,
    /// The codes that are kept; their tags are those of [`RowLabels::row`], or [`NO_LINE`].
    pub codes: ByLatent,
    /// Rows: ids where they were pooled.
    pub rows: u64,
    /// Ids.
    pub ids: u64,
    /// Bad rows that were dropped.
    pub skipped_rows: usize,
    /// Rows that are in the split by the hash of their ids alone.
    pub hashed_rows: u64,
}

/// Encodes the rows of a split (or all), whose labels `labels` looks up. Pooled, an id's rows become one, in which a
/// latent has the largest activation that it has in any of them.
///
/// # Errors
/// As [`codes::walk`]; what the disk refuses where codes do not fit in memory.
pub fn gather(
    request: &FeaturesRequest,
    labels: Option<&mut RowLabels<'_>>,
    keep: Keep,
    stop: &AtomicBool,
) -> Result<Gathered> {
    let source = &request.source;
    let (params, meta) = load_model(&source.model)?;
    let n_latents = meta.architecture.n_latents;
    let room = Room::new(request.memory, &source.model, &request.outputs);
    let mut rows = Rows::new(n_latents, room, labels, keep, request.top);
    let mut pool = request.pool.then(|| Pool::new(n_latents));
    let take = |names: &RowNames<'_>, codes: &Codes| {
        for (i, (id, group)) in names.ids.iter().zip(&names.groups).enumerate() {
            let (latents, values) = codes.row(i);
            // Of signed codes the magnitude.
            let entries = latents.iter().copied().zip(values.iter().map(|v| v.abs()));
            match &mut pool {
                Some(pool) => pool.add(group, entries, &mut rows)?,
                None => rows.add(id, group, entries)?,
            }
        }
        Ok(())
    };
    let walked = codes::walk(source, (params.clone(), &meta), request.split, stop, take)?;
    if let Some(pool) = &mut pool {
        pool.end(&mut rows)?;
    }
    let Rows { firing, codes, rows, ids, .. } = rows;
    let (skipped_rows, hashed_rows) = (walked.skipped_rows, walked.hashed_rows);
    Ok(Gathered { params, meta, firing, codes: codes.finish()?, rows, ids, skipped_rows, hashed_rows })
}

/// Takes rows as they come; those of an id follow one another.
struct Rows<'a, 'b> {
    firing: Vec<Firing>,
    codes: Collect,
    labels: Option<&'a mut RowLabels<'b>>,
    keep: Keep,
    top: usize,
    rows: u64,
    ids: u64,
    /// The group whose rows are coming.
    group: String,
}

impl<'a, 'b> Rows<'a, 'b> {
    fn new(
        n_latents: usize,
        room: Room,
        labels: Option<&'a mut RowLabels<'b>>,
        keep: Keep,
        top: usize,
    ) -> Self {
        Self {
            firing: vec![Firing::default(); n_latents],
            codes: Collect::new(n_latents, room),
            labels,
            keep,
            top,
            rows: 0,
            ids: 0,
            group: String::new(),
        }
    }

    /// Adds a row.
    fn add(&mut self, id: &str, group: &str, entries: impl Iterator<Item = (u32, f32)>) -> Result<()> {
        self.rows += 1;
        // No id is empty.
        if self.group != group {
            self.ids += 1;
            group.clone_into(&mut self.group);
        }
        let tag = match &mut self.labels {
            Some(labels) => labels.row(id, group)?,
            None => NO_LINE,
        };
        let keep = self.keep == Keep::All || tag != NO_LINE;
        for (latent, value) in entries {
            self.firing[latent as usize].add(value, id, self.ids, self.top);
            if keep {
                self.codes.push(latent, tag, value)?;
            }
        }
        Ok(())
    }
}

/// The largest activations over the rows of an id.
struct Pool {
    id: Option<String>,
    /// Of each latent (M), 0 where none is active.
    largest: Vec<f32>,
    /// Those that are not 0.
    active: Vec<u32>,
}

impl Pool {
    fn new(n_latents: usize) -> Self {
        Self { id: None, largest: vec![0.0; n_latents], active: vec![] }
    }

    /// Adds a row of `group`; the one before goes to `rows` if it is at its end.
    fn add(
        &mut self,
        group: &str,
        entries: impl Iterator<Item = (u32, f32)>,
        rows: &mut Rows<'_, '_>,
    ) -> Result<()> {
        if self.id.as_deref() != Some(group) {
            self.end(rows)?;
            self.id = Some(group.to_owned());
        }
        for (latent, value) in entries {
            let largest = &mut self.largest[latent as usize];
            if *largest == 0.0 {
                self.active.push(latent);
            }
            *largest = largest.max(value);
        }
        Ok(())
    }

    /// Gives the last id to `rows`.
    fn end(&mut self, rows: &mut Rows<'_, '_>) -> Result<()> {
        let Some(id) = self.id.take() else { return Ok(()) };
        self.active.sort_unstable();
        let largest = &mut self.largest;
        let entries =
            self.active.drain(..).map(|latent| (latent, std::mem::take(&mut largest[latent as usize])));
        rows.add(&id, &id, entries)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn pooling_keeps_the_largest_activation_of_an_id() {
        let room = Room::new(None, Path::new("."), []);
        let mut rows = Rows::new(4, room, None, Keep::All, 5);
        let mut pool = Pool::new(4);
        let all: [(&str, &[(u32, f32)]); 4] =
            [("A", &[(0, 1.0), (3, 2.0)]), ("A", &[(0, 5.0), (2, 1.0)]), ("B", &[]), ("C", &[(1, 1.0)])];
        for (group, entries) in all {
            pool.add(group, entries.iter().copied(), &mut rows).unwrap();
        }
        pool.end(&mut rows).unwrap();
        assert_eq!((rows.rows, rows.ids), (3, 3));
        let codes = rows.codes.finish().unwrap();
        let entries = codes.read(0..4).unwrap();
        let of = |j: usize| entries.latent(j).map(|(_, value)| value).collect::<Vec<f32>>();
        assert_eq!([of(0), of(1), of(2), of(3)], [vec![5.0], vec![1.0], vec![1.0], vec![2.0]]);
        let top = rows.firing[0].clone().feature(0, 3).top;
        assert_eq!((top.len(), top[0].id.as_str(), top[0].activation), (1, "A", 5.0));
    }
}
