//! Latents whose decoder rows point the same way.

use crate::backend::cpu::linalg::{View, product};
use crate::console::progress::Spinner;
use crate::error::{Error, Result};
use crate::model::{Params, normalize};
use crate::text::thousands;
use rayon::prelude::*;
use serde::Serialize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Latents a task compares with all others: its (block, M) cosines are 16 MiB at M = 16,384.
const BLOCK: usize = 256;

/// A latent near another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Neighbour {
    /// Latent, from 0.
    pub latent: u32,
    /// Cosine of the two decoder rows, -1 to 1.
    pub cosine: f32,
}

/// The `count` nearest other latents of each latent by cosine of decoder rows, the nearest first; equal ones by number.
/// A row of zeros has no direction: it has no neighbours and is nobody's.
///
/// M^2 D products in blocks over all threads; the bits do not depend on their number.
///
/// # Errors
/// [`Error::Interrupted`] once `stop` is set.
pub fn neighbours(
    params: &Params,
    count: usize,
    quiet: bool,
    stop: &AtomicBool,
) -> Result<Vec<Vec<Neighbour>>> {
    let (m, d) = (params.n_latents, params.d_in);
    if count == 0 {
        return Ok(vec![vec![]; m]);
    }
    let spinner = Mutex::new(Spinner::new("neighbours", quiet));
    let mut unit = params.decoder().to_vec();
    unit.par_chunks_exact_mut(d).for_each(normalize);
    let zero: Vec<bool> = unit.par_chunks_exact(d).map(|row| row.iter().all(|&v| v == 0.0)).collect();
    let done = AtomicUsize::new(0);
    let blocks: Vec<Vec<Vec<Neighbour>>> = (0..m.div_ceil(BLOCK))
        .into_par_iter()
        .map_init(Vec::new, |cosines: &mut Vec<f32>, block| {
            if stop.load(Ordering::Relaxed) {
                return vec![];
            }
            let first = block * BLOCK;
            let rows = BLOCK.min(m - first);
            cosines.resize(BLOCK * m, 0.0);
            let a = View::new(&unit[first * d..], rows, d, d);
            product(cosines, m, a, View::new(&unit, m, d, d).t(), false);
            let found = (0..rows).map(|i| {
                let j = first + i;
                if zero[j] { vec![] } else { nearest(&cosines[i * m..(i + 1) * m], j, &zero, count) }
            });
            let found = found.collect();
            let seen = done.fetch_add(rows, Ordering::Relaxed) + rows;
            if let Ok(spinner) = spinner.lock() {
                spinner.update(&format!("{} of {} latents", thousands(seen as u64), thousands(m as u64)));
            }
            found
        })
        .collect();
    if stop.load(Ordering::Relaxed) {
        return Err(Error::Interrupted("interrupted; nothing was written".into()));
    }
    if let Ok(spinner) = spinner.into_inner() {
        spinner.finish(&format!("{} latents", thousands(m as u64)));
    }
    Ok(blocks.into_iter().flatten().collect())
}

/// The largest of a row of cosines, without latent `own` and rows of zeros.
fn nearest(cosines: &[f32], own: usize, zero: &[bool], count: usize) -> Vec<Neighbour> {
    let mut best: Vec<Neighbour> = Vec::with_capacity(count + 1);
    for (j, &cosine) in cosines.iter().enumerate() {
        let full = best.len() == count;
        if full && best.last().is_some_and(|last| cosine <= last.cosine) || j == own || zero[j] {
            continue;
        }
        let place = best.partition_point(|b| b.cosine >= cosine);
        best.insert(place, Neighbour { latent: j as u32, cosine: cosine.clamp(-1.0, 1.0) });
        best.truncate(count);
    }
    best
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn params(rows: &[[f32; 2]]) -> Params {
        let mut params = Params::zeros(2, rows.len(), false);
        params.w_dec = Some(rows.concat());
        params
    }

    fn of(params: &Params, count: usize) -> Vec<Vec<(u32, f32)>> {
        let found = neighbours(params, count, true, &AtomicBool::new(false)).unwrap();
        found.into_iter().map(|row| row.into_iter().map(|n| (n.latent, n.cosine)).collect()).collect()
    }

    #[test]
    fn neighbours_are_by_direction_and_not_by_length() {
        let found = of(&params(&[[1.0, 0.0], [0.0, 9.0], [5.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]), 2);
        assert_eq!(found[0], [(2, 1.0), (1, 0.0)]);
        assert_eq!(found[1], [(0, 0.0), (2, 0.0)], "equal ones by number");
        assert!(found[3].is_empty());
        assert_eq!(found[4], [(1, 0.0), (0, -1.0)]);
        assert!(of(&params(&[[1.0, 0.0]]), 3)[0].is_empty());
        assert!(of(&params(&[[1.0, 0.0]; 3]), 0).iter().all(Vec::is_empty));
    }

    #[test]
    fn blocks_give_what_plain_loops_give() {
        let rows: Vec<[f32; 2]> =
            (0..BLOCK + 7).map(|i| [(i as f32 * 0.7).sin(), (i as f32 * 1.3).cos()]).collect();
        let cosine = |a: &[f32; 2], b: &[f32; 2]| {
            let norm = |v: &[f32; 2]| f64::from(v[0]).hypot(f64::from(v[1]));
            (f64::from(a[0]) * f64::from(b[0]) + f64::from(a[1]) * f64::from(b[1])) / (norm(a) * norm(b))
        };
        for (i, found) in of(&params(&rows), 3).into_iter().enumerate() {
            let mut want: Vec<f64> =
                (0..rows.len()).filter(|&j| j != i).map(|j| cosine(&rows[i], &rows[j])).collect();
            want.sort_by(|a, b| b.total_cmp(a));
            for ((j, got), want) in found.into_iter().zip(want) {
                // Unit rows are rounded to float32, and so are two products and a sum.
                assert!((f64::from(got) - want).abs() < 4e-7, "{i}: {got} {want}");
                assert!((cosine(&rows[i], &rows[j as usize]) - want).abs() < 4e-7, "{i}: another latent");
            }
        }
    }

    #[test]
    fn an_interruption_is_told() {
        let result = neighbours(&params(&[[1.0, 0.0]; 3]), 1, true, &AtomicBool::new(true));
        assert!(matches!(result, Err(Error::Interrupted(_))));
    }
}
