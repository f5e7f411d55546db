//! Brings values from the file into one block of memory, in the type that the block has.

use std::ops::Range;
use std::os::unix::fs::FileExt;

use half::{bf16, f16};
use rayon::prelude::*;

use super::h5::{Dataset, File, Place};
use super::kind::{Dtype, Stored};
use crate::error::{Error, Result};
use crate::interrupt;

/// Bytes that one thread reads at a time: large enough for the disk, small enough to share out.
const CHUNK: usize = 4 << 20;

/// Values of one type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Values {
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
    F64(Vec<f64>),
}

macro_rules! each {
    ($values:expr, $v:ident => $body:expr) => {
        match $values {
            Values::F16($v) => $body,
            Values::Bf16($v) => $body,
            Values::F32($v) => $body,
            Values::F64($v) => $body,
        }
    };
}

impl Values {
    /// `n` zeros, or `None` if the memory does not hold them.
    pub fn zeros(dtype: Dtype, n: usize) -> Option<Self> {
        use half::vec::HalfBitsVecExt;
        // Asks first, because `vec!` ends the program where memory is short.
        let bytes = n.checked_mul(dtype.size())?;
        Vec::<u8>::new().try_reserve_exact(bytes).ok()?;
        Some(match dtype {
            Dtype::F16 => Self::F16(vec![0u16; n].reinterpret_into()),
            Dtype::Bf16 => Self::Bf16(vec![0u16; n].reinterpret_into()),
            Dtype::F32 => Self::F32(vec![0.0; n]),
            Dtype::F64 => Self::F64(vec![0.0; n]),
        })
    }

    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F16(_) => Dtype::F16,
            Self::Bf16(_) => Dtype::Bf16,
            Self::F32(_) => Dtype::F32,
            Self::F64(_) => Dtype::F64,
        }
    }

    pub fn bytes(&self) -> &[u8] {
        each!(self, v => bytemuck::cast_slice(v))
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        each!(self, v => bytemuck::cast_slice_mut(v))
    }

    /// Writes row `row` of `width` values to `out` as float32.
    pub fn row_into(&self, row: usize, width: usize, out: &mut [f32]) {
        use half::slice::HalfFloatSliceExt;
        let range = row * width..(row + 1) * width;
        match self {
            Self::F16(v) => v[range].convert_to_f32_slice(out),
            Self::Bf16(v) => v[range].convert_to_f32_slice(out),
            Self::F32(v) => out.copy_from_slice(&v[range]),
            Self::F64(v) => {
                for (out, value) in out.iter_mut().zip(&v[range]) {
                    *out = *value as f32;
                }
            }
        }
    }

    /// The first column of each row that is NaN, infinite, or too large for float32.
    pub fn first_bad_columns(&self, width: usize) -> Vec<(usize, usize)> {
        match self {
            Self::F16(v) => bad(v, width, |x| x.is_finite()),
            Self::Bf16(v) => bad(v, width, |x| x.is_finite()),
            Self::F32(v) => bad(v, width, |x| x.is_finite()),
            Self::F64(v) => bad(v, width, |x| (*x as f32).is_finite()),
        }
    }

    /// The value at `at`, as float64.
    pub fn get(&self, at: usize) -> f64 {
        match self {
            Self::F16(v) => v[at].to_f64(),
            Self::Bf16(v) => v[at].to_f64(),
            Self::F32(v) => f64::from(v[at]),
            Self::F64(v) => v[at],
        }
    }

    /// Keeps the rows that `keep` marks, in order.
    pub fn retain_rows(&mut self, width: usize, keep: &[bool]) {
        each!(self, v => {
            let mut kept = 0;
            for (row, _) in keep.iter().enumerate().filter(|(_, keep)| **keep) {
                v.copy_within(row * width..(row + 1) * width, kept * width);
                kept += 1;
            }
            v.truncate(kept * width);
            v.shrink_to_fit();
        });
    }
}

fn bad<T: Sync>(values: &[T], width: usize, good: impl Fn(&T) -> bool + Sync) -> Vec<(usize, usize)> {
    let find = |(row, values): (usize, &[T])| {
        // Without an early exit this runs on vector registers; nearly all rows are good.
        let any = values.iter().fold(false, |any, value| any | !good(value));
        let column = any.then(|| values.iter().position(|value| !good(value))).flatten()?;
        Some((row, column))
    };
    values.par_chunks_exact(width).enumerate().with_min_len(64).filter_map(find).collect()
}

/// One stretch of a file and the bytes it goes to.
struct Job<'a> {
    file: &'a File,
    dataset: &'a Dataset,
    stored: Stored,
    /// First value, counted within the dataset.
    offset: u64,
    out: &'a mut [u8],
}

/// Rows of a dataset that are read: all of it, or a stretch of its first axis.
pub(super) struct Part<'a> {
    pub file: &'a File,
    pub dataset: &'a Dataset,
    pub stored: Stored,
    /// Rows of a 2-D dataset; a 1-D one is its row 0.
    pub rows: Range<u64>,
    /// Values of a row.
    pub width: usize,
}

/// Reads `parts` one after another into `values`; their sizes must add up to that of `values`.
pub(super) fn read_all(parts: &[Part<'_>], values: &mut Values) -> Result<()> {
    let target = values.dtype();
    let mut rest = values.bytes_mut();
    let mut jobs = Vec::with_capacity(parts.len());
    for part in parts {
        let Part { file, dataset, stored, width, .. } = *part;
        let n = (part.rows.end - part.rows.start) as usize * width;
        let (out, after) = rest.split_at_mut(n * target.size());
        rest = after;
        match dataset.place {
            Place::At(offset) => {
                let offset = offset + part.rows.start * (width * stored.dtype.size()) as u64;
                let step = CHUNK / target.size();
                for (i, out) in out.chunks_mut(step * target.size()).enumerate() {
                    let offset = offset + (i * step * stored.dtype.size()) as u64;
                    jobs.push(Job { file, dataset, stored, offset, out });
                }
            }
            Place::Library => read_through_library(part, target, out)?,
        }
    }
    let together = (jobs.len() / 256).max(1);
    jobs.into_par_iter().with_min_len(together).try_for_each(|job| run(job, target))
}

fn read_through_library(part: &Part<'_>, target: Dtype, out: &mut [u8]) -> Result<()> {
    interrupt::check()?;
    let Part { file, dataset, stored, .. } = *part;
    if out.is_empty() {
        return Ok(());
    }
    let size = stored.dtype.size();
    if stored.dtype == target {
        file.read_rows(dataset, part.rows.clone(), size, out)?;
        to_native(stored, out);
        return Ok(());
    }
    let mut raw = vec![0; out.len() / target.size() * size];
    file.read_rows(dataset, part.rows.clone(), size, &mut raw)?;
    to_native(stored, &mut raw);
    promote(stored.dtype, &raw, target, out);
    Ok(())
}

fn run(job: Job<'_>, target: Dtype) -> Result<()> {
    interrupt::check()?;
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
