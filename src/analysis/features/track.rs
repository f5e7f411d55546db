//! `sae features --track`: latents along the rows of one id, such as the residues of a protein.

use crate::analysis::codes::walk;
use crate::analysis::{Source, load_model};
use crate::console;
use crate::data::{DataFiles, OneId};
use crate::error::{Error, Result};
use serde::Serialize;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Latents of a track where none is named.
pub const LATENTS: usize = 8;

/// What is asked of an id's rows.
#[derive(Debug, Clone)]
pub struct TrackRequest {
    /// Model and data.
    pub source: Source,
    /// The id.
    pub id: String,
    /// The latents, in this order; `None` is the [`LATENTS`] with the largest activations along the rows.
    pub latents: Option<Vec<u32>>,
    /// Rows at the start and at the end that are tokens and no residues.
    pub tokens: (u32, u32),
}

/// A latent along the rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrackLatent {
    /// Latent, from 0.
    pub latent: u32,
    /// Rows that it is active on.
    pub active_rows: u64,
    /// Largest activation (of signed codes by magnitude), 0 where it is active on no row.
    pub max_activation: f32,
    /// Position of that; `None` where it is active on no row.
    pub max_position: Option<u32>,
    /// Its activation on each row (L), with the sign that it has in the codes.
    pub activations: Vec<f32>,
}

/// Latents along the rows of an id.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Track {
    /// The model as it was named.
    pub model: String,
    /// The id.
    pub id: String,
    /// Rows that were dropped: their positions are left out.
    pub skipped_rows: usize,
    /// Place of each row (L) in the sequence, from 1, behind the tokens at the start.
    pub positions: Vec<u32>,
    /// Id of each row (L).
    pub ids: Vec<String>,
    /// The latents.
    pub latents: Vec<TrackLatent>,
}

/// Encodes the rows of one id. Of files no values of other rows are read.
///
/// # Errors
/// An id that is not there, with the nearest that are; an id of one row; tokens that leave no row; latents that the model
/// does not have, or, where none is named, none that is active; as [`walk`].
pub fn track(request: &TrackRequest, stop: &AtomicBool) -> Result<Track> {
    let TrackRequest { source, id, .. } = request;
    let (params, meta) = load_model(&source.model)?;
    check_latents(request.latents.as_deref(), meta.architecture.n_latents)?;
    let OneId { rows, positions, dropped } = match &source.given {
        Some(rows) => rows.one_id(id)?,
        None => {
            let files = DataFiles::open(&source.data, &source.reading)?;
            if !source.quiet {
                files.warnings().for_each(console::warn);
            }
            files.one_id(id)?
        }
    };
    let n = positions.len() + dropped;
    if n == 1 {
        let what = format!(
            "has one row for \"{id}\", as files of one vector per protein have it; a track needs a row per residue, so \
             name per-residue embeddings"
        );
        return Err(Error::data(source.place(), "", what));
    }
    let (start, end) = (request.tokens.0 as usize, request.tokens.1 as usize);
    if start.saturating_add(end) >= n {
        return Err(Error::Usage(format!(
            "--tokens {start},{end} leaves none of the {n} rows of {id}; give fewer"
        )));
    }
    let kept = |position: u32| (start + 1..=n - end).contains(&(position as usize));
    let source = Source { given: Some(Arc::new(rows)), ..source.clone() };
    // (row, latent, activation)
    let mut entries: Vec<(usize, u32, f32)> = vec![];
    let (mut ids, mut at) = (vec![], 0);
    walk(&source, (params, &meta), None, stop, |names, codes| {
        for (i, row_id) in names.ids.iter().enumerate() {
            if kept(positions[at + i]) {
                let (latents, values) = codes.row(i);
                entries
                    .extend(latents.iter().zip(values).map(|(&latent, &value)| (ids.len(), latent, value)));
                ids.push(row_id.clone());
            }
        }
        at += names.ids.len();
        Ok(())
    })?;
    let latents = match &request.latents {
        Some(latents) => latents.clone(),
        None => strongest(&entries, meta.architecture.n_latents),
    };
    if latents.is_empty() {
        return Err(Error::Failed(format!(
            "no latent is active on a row of {id}; name latents with --latents"
        )));
    }
    let positions: Vec<u32> =
        positions.into_iter().filter(|&position| kept(position)).map(|p| p - start as u32).collect();
    let latents = latents.into_iter().map(|latent| along(latent, &entries, &positions)).collect();
    let model = source.model.display().to_string();
    Ok(Track { model, id: id.clone(), skipped_rows: dropped, positions, ids, latents })
}

fn check_latents(latents: Option<&[u32]>, n_latents: usize) -> Result<()> {
    let latents = latents.unwrap_or_default();
    for (i, latent) in latents.iter().enumerate() {
        if *latent as usize >= n_latents {
            return Err(Error::Usage(format!(
                "--latents: the model has no latent {latent}; give numbers from 0 to {}",
                n_latents - 1
            )));
        }
        if latents[..i].contains(latent) {
            return Err(Error::Usage(format!("--latents names {latent} twice; name each latent once")));
        }
    }
    Ok(())
}

/// The latents with the largest activations, the largest first; of equal ones the lower number.
fn strongest(entries: &[(usize, u32, f32)], n_latents: usize) -> Vec<u32> {
    let mut largest = vec![0f32; n_latents];
    for &(_, latent, value) in entries {
        let most = &mut largest[latent as usize];
        *most = most.max(value.abs());
    }
    let mut latents: Vec<u32> =
        (0..n_latents as u32).filter(|&latent| largest[latent as usize] > 0.0).collect();
    latents.sort_by(|&a, &b| largest[b as usize].total_cmp(&largest[a as usize]));
    latents.truncate(LATENTS);
    latents
}

fn along(latent: u32, entries: &[(usize, u32, f32)], positions: &[u32]) -> TrackLatent {
    let mut activations = vec![0f32; positions.len()];
    let mut active_rows = 0;
    let mut most: Option<(usize, f32)> = None;
    for &(row, _, value) in entries.iter().filter(|entry| entry.1 == latent) {
        activations[row] = value;
        active_rows += 1;
        if most.is_none_or(|(_, largest)| value.abs() > largest) {
            most = Some((row, value.abs()));
        }
    }
    TrackLatent {
        latent,
        active_rows,
        max_activation: most.map_or(0.0, |(row, _)| activations[row]),
        max_position: most.map(|(row, _)| positions[row]),
        activations,
    }
}

impl Track {
    /// One line per row: position, id, and the activation of each latent, with as many digits as give the same float32
    /// again.
    ///
    /// # Errors
    /// What `out` gives.
    pub fn write_table(&self, out: &mut impl Write) -> io::Result<()> {
        write!(out, "position\tid")?;
        for latent in &self.latents {
            write!(out, "\tlatent_{}", latent.latent)?;
        }
        writeln!(out)?;
        for (row, (position, id)) in self.positions.iter().zip(&self.ids).enumerate() {
            write!(out, "{position}\t{}", crate::text::tsv::field(id))?;
            for latent in &self.latents {
                write!(out, "\t{}", latent.activations[row])?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    /// Refuses a track that lacks rows, which would be on the wrong residues of `structure`.
    ///
    /// # Errors
    /// [`Error::Failed`] where rows were dropped.
    pub fn check_whole(&self) -> Result<()> {
        if self.skipped_rows == 0 {
            return Ok(());
        }
        Err(Error::Failed(format!(
            "{} rows of {} were dropped, so that residues would have no figure; fix the file, or leave --structure out",
            self.skipped_rows, self.id
        )))
    }
}

impl TrackLatent {
    /// The activations as a viewer of B-factors takes them: 100 is the largest along the rows.
    pub fn per_cent(&self) -> Vec<f64> {
        let largest = f64::from(self.max_activation.abs());
        let scaled = |&value: &f32| if largest > 0.0 { 100.0 * f64::from(value) / largest } else { 0.0 };
        self.activations.iter().map(scaled).collect()
    }
}
