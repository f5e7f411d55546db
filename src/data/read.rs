//! Brings values from the file into one block of memory, in the type that the block has.

use std::ops::Range;
use std::os::unix::fs::FileExt;

use half::{bf16, f16};
use rayon::prelude::*;

use super::file::{Dataset, File, Place, place};
use super::kind::Stored;
use super::view::View;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::rows::Dtype;
use crate::rows::Values;

/// Bytes that one thread reads at a time: large enough for the disk, small enough to share out.
const CHUNK: usize = 4 << 20;

/// What one thread reads, and the bytes it goes to.
enum Job<'a> {
    Plain(Plain<'a>),
    /// By the library of the format, as it is.
    Library {
        part: Stretch<'a>,
        out: &'a mut [u8],
    },
}

/// Values that lie in the file one after another.
struct Plain<'a> {
    file: &'a File,
    dataset: &'a Dataset,
    stored: Stored,
    /// First value, counted within the dataset.
    offset: u64,
    out: &'a mut [u8],
}

/// Rows of a dataset that are read: all of it, or a stretch of its first axis.
#[derive(Clone)]
pub(super) struct Stretch<'a> {
    pub file: &'a File,
    pub dataset: &'a Dataset,
    pub stored: Stored,
    pub view: &'a View,
    /// Rows as `view` counts them.
    pub rows: Range<u64>,
    /// Values of a row.
    pub width: usize,
}

/// Reads `parts` one after another into `values`; their sizes must add up to that of `values`.
pub(super) fn read_all(parts: &[Stretch<'_>], values: &mut Values) -> Result<()> {
    let target = values.dtype();
    let mut rest = values.bytes_mut();
    let mut jobs = Vec::with_capacity(parts.len());
    for part in parts {
        let Stretch { file, dataset, stored, width, .. } = *part;
        let n = (part.rows.end - part.rows.start) as usize * width;
        let (out, after) = rest.split_at_mut(n * target.size());
        rest = after;
        match (dataset.place, part.view.start(&dataset.shape)) {
            (Place::At(offset), Some(start)) => {
                let offset = offset + start * stored.dtype.size() as u64;
                let offset = offset + part.rows.start * (width * stored.dtype.size()) as u64;
                let step = CHUNK / target.size();
                for (i, out) in out.chunks_mut(step * target.size()).enumerate() {
                    let offset = offset + (i * step * stored.dtype.size()) as u64;
                    jobs.push(Job::Plain(Plain { file, dataset, stored, offset, out }));
                }
            }
            _ if !part.view.is_transposed() && stored.dtype == target => {
                let row = width * target.size();
                let together = file.group_rows().unwrap_or(u64::MAX).max(1);
                let (mut first, mut rest) = (part.rows.start, out);
                while first < part.rows.end {
                    let end = part.rows.end.min((first / together + 1).saturating_mul(together));
                    let (out, after) = rest.split_at_mut((end - first) as usize * row);
                    jobs.push(Job::Library { part: Stretch { rows: first..end, ..part.clone() }, out });
                    (first, rest) = (end, after);
                }
            }
            _ => read_through_library(part, target, out)?,
        }
    }
    let together = (jobs.len() / 256).max(1);
    let requests = interrupt::Requests::here();
    jobs.into_par_iter().with_min_len(together).try_for_each(|job| {
        requests.check()?;
        match job {
            Job::Plain(job) => run(job, target),
            Job::Library { part, out } => read_through_library(&part, target, out),
        }
    })
}

/// Most bytes of rows that are in memory twice, to turn or widen them.
const COPIED: usize = 1 << 26;

fn read_through_library(part: &Stretch<'_>, target: Dtype, out: &mut [u8]) -> Result<()> {
    interrupt::check()?;
    let Stretch { file, dataset, stored, .. } = *part;
    if out.is_empty() {
        return Ok(());
    }
    let size = stored.dtype.size();
    let turned = part.view.is_transposed();
    if !turned && stored.dtype == target {
        file.read_rows(dataset, part.view, part.rows.clone(), size, out)?;
        to_native(stored, out);
        return Ok(());
    }
    // Some rows at a time: these are in memory twice.
    let block = (COPIED / (part.width * target.size()).max(1)).max(1);
    let mut first = part.rows.start;
    for out in out.chunks_mut(block * part.width * target.size()) {
        interrupt::check()?;
        let n = out.len() / (part.width * target.size());
        let mut raw = vec![];
        raw.try_reserve_exact(n * part.width * size).map_err(|_| {
            let what =
                format!("a row of {} values does not fit the memory twice, as it must here", part.width);
            Error::data(&file.path, place(dataset), what)
        })?;
        raw.resize(n * part.width * size, 0);
        file.read_rows(dataset, part.view, first..first + n as u64, size, &mut raw)?;
        first += n as u64;
        let mut rows = vec![];
        if turned {
            rows = raw.clone();
            for (row, values) in rows.chunks_exact_mut(size * part.width).enumerate() {
                for (column, value) in values.chunks_exact_mut(size).enumerate() {
                    value.copy_from_slice(&raw[(column * n + row) * size..][..size]);
                }
            }
        }
        let raw = if turned { &mut rows } else { &mut raw };
        to_native(stored, raw);
        if stored.dtype == target {
            out.copy_from_slice(raw)
        } else {
            promote(stored.dtype, raw, target, out)
        }
    }
    Ok(())
}

fn run(job: Plain<'_>, target: Dtype) -> Result<()> {
    let read = |out: &mut [u8]| {
        // The length was checked against the file's, so this fails only if the file changes.
        job.file.raw.read_exact_at(out, job.offset).map_err(|error| {
            Error::data(
                &job.file.path,
                format!("dataset \"/{}\"", job.dataset.path),
                format!("cannot be read ({error}); the file changed or the disk fails: try again"),
            )
        })
    };
    if job.stored.dtype == target {
        read(job.out)?;
        to_native(job.stored, job.out);
    } else {
        let mut raw = vec![0; job.out.len() / target.size() * job.stored.dtype.size()];
        read(&mut raw)?;
        to_native(job.stored, &mut raw);
        promote(job.stored.dtype, &raw, target, job.out);
    }
    Ok(())
}

fn to_native(stored: Stored, bytes: &mut [u8]) {
    if stored.big_endian != cfg!(target_endian = "big") {
        for value in bytes.chunks_exact_mut(stored.dtype.size()) {
            value.reverse();
        }
    }
}

/// Widens native values; only several files of different types come here.
fn promote(from: Dtype, raw: &[u8], to: Dtype, out: &mut [u8]) {
    let values = raw.chunks_exact(from.size());
    for (value, out) in values.zip(out.chunks_exact_mut(to.size())) {
        let wide = match from {
            Dtype::F16 => bytemuck::pod_read_unaligned::<f16>(value).to_f64(),
            Dtype::Bf16 => bytemuck::pod_read_unaligned::<bf16>(value).to_f64(),
            Dtype::F32 => f64::from(bytemuck::pod_read_unaligned::<f32>(value)),
            Dtype::F64 => bytemuck::pod_read_unaligned::<f64>(value),
        };
        match to {
            Dtype::F64 => out.copy_from_slice(&wide.to_ne_bytes()),
            // `widest` never narrows: only float32 and float64 are promoted to.
            _ => out.copy_from_slice(&(wide as f32).to_ne_bytes()),
        }
    }
}
