//! The inference code of rows: its entries, and the errors of the reconstruction from it.

use super::fast::{Work, encode, make_room};
use super::norm::Batch;
use super::relax::{RowScratch, hard_row};
use super::sparse::{CodeChunk, ROWS};
use crate::backend::{Codes, EvalSums};
use crate::error::Result;
use crate::model::Params;
use crate::rows::RowSource;
use crate::spec::{Inference, ModelSpec};
use rayon::prelude::*;

/// Adds a chunk of rows to the sums of an evaluation.
pub(super) fn evaluate_rows(
    data: &dyn RowSource,
    spec: &ModelSpec,
    params: &Params,
    rows: &[u32],
    work: &mut Work,
    fired: &mut [u64],
    sums: &mut EvalSums,
) -> Result<()> {
    let (n, d, m) = (rows.len(), params.d_in, params.n_latents);
    work.batch.load(data, rows, spec.forward.row_eps(), &params.b_pre)?;
    encode(&work.batch.input, params, &mut work.scores);
    let relu = spec.forward.inference == Inference::Relu;
    work.codes.resize_with(n.div_ceil(ROWS), CodeChunk::default);
    let k = if relu { m } else { spec.forward.k };
    make_room(&mut work.recon, n * d);
    let batch = &work.batch;
    let parts: Vec<(f64, f64, f64)> = work
        .codes
        .par_iter_mut()
        .zip(work.scores.par_chunks(ROWS * m))
        .zip(work.recon.par_chunks_mut(ROWS * d))
        .enumerate()
        .map_init(RowScratch::default, |scratch, (chunk, ((codes, scores), recon))| {
            codes.clear();
            let mut part = (0.0, 0.0, 0.0);
            for (i, (z, recon)) in scores.chunks_exact(m).zip(recon.chunks_exact_mut(d)).enumerate() {
                let finite = hard_row(spec.forward.activation, z, k, 1.0, scratch, codes);
                recon.copy_from_slice(&params.b_pre);
                codes.decode(i, params.decoder(), recon);
                let row = row_errors(batch, chunk * ROWS + i, recon);
                part = (part.0 + row.0, part.1 + row.1, part.2 + row.2);
                if !finite {
                    part.0 = f64::NAN;
                }
            }
            part
        })
        .collect();
    for part in parts {
        sums.squared += part.0;
        sums.absolute += part.1;
        sums.cosine += part.2;
    }
    for chunk in &work.codes {
        sums.active += chunk.index.len() as u64;
        chunk.index.iter().for_each(|&j| fired[j as usize] += 1);
    }
    sums.rows += n as u64;
    Ok(())
}

/// Adds the codes of a chunk of rows to `out`.
pub(super) fn encode_rows(
    data: &dyn RowSource,
    spec: &ModelSpec,
    params: &Params,
    rows: &[u32],
    work: &mut Work,
    out: &mut Codes,
) -> Result<()> {
    let m = params.n_latents;
    work.batch.load(data, rows, spec.forward.row_eps(), &params.b_pre)?;
    encode(&work.batch.input, params, &mut work.scores);
    let k = if spec.forward.inference == Inference::Relu { m } else { spec.forward.k };
    work.codes.resize_with(rows.len().div_ceil(ROWS), CodeChunk::default);
    let finite: Vec<Vec<bool>> = work
        .codes
        .par_iter_mut()
        .zip(work.scores.par_chunks(ROWS * m))
        .map_init(RowScratch::default, |scratch, (codes, scores)| {
            codes.clear();
            let activation = spec.forward.activation;
            scores.chunks_exact(m).map(|z| hard_row(activation, z, k, 1.0, scratch, codes)).collect()
        })
        .collect();
    for (chunk, finite) in work.codes.iter().zip(finite) {
        for (i, finite) in finite.into_iter().enumerate() {
            out.push_row(chunk.row(i).map(|at| (chunk.index[at], chunk.value[at])), finite);
        }
    }
    Ok(())
}

/// Squared error, absolute error and cosine of one reconstructed row.
fn row_errors(batch: &Batch, n: usize, recon: &[f32]) -> (f64, f64, f64) {
    let d = recon.len();
    let (std, mean) = (f64::from(batch.std[n]), f64::from(batch.mean[n]));
    let (mut squared, mut absolute) = (0.0, 0.0);
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (&y, &centered) in recon.iter().zip(&batch.centered[n * d..(n + 1) * d]) {
        let (scaled, centered) = (f64::from(y) * std, f64::from(centered));
        let miss = scaled - centered;
        squared += miss * miss;
        absolute += miss.abs();
        let (x, y) = (centered + mean, scaled + mean);
        (xx, yy, xy) = (xx + x * x, yy + y * y, xy + x * y);
    }
    let cosine = if xx > 0.0 && yy > 0.0 { xy / (xx * yy).sqrt() } else { 0.0 };
    (squared, absolute, cosine)
}
