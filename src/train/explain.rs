//! Why a figure is not finite: rows without variance, or a row that the arithmetic cannot hold.

use super::metrics::{EvalSet, Quality};
use crate::backend::{Backend, EvalSums};
use crate::error::Result;
use crate::model::Weights;
use crate::rows::RowSource;

impl EvalSet {
    /// Why figures of these rows, measured as `quality`, are not finite, in one line; `None` where all are. `which`
    /// names the rows, as in "validation".
    ///
    /// # Errors
    /// What the device refuses.
    pub fn explain(
        &self,
        quality: &Quality,
        which: &str,
        data: &dyn RowSource,
        backend: &mut dyn Backend,
        n_latents: usize,
    ) -> Result<Option<String>> {
        let Quality { mse, mae, fvu, l0, cosine, .. } = *quality;
        if [mse, mae, fvu, l0, cosine].iter().all(|v| v.is_finite()) {
            return Ok(None);
        }
        if mse.is_finite() && mae.is_finite() && cosine.is_finite() {
            return Ok(Some(format!(
                "the {which} rows have no variance about the training mean: their FVU is undefined"
            )));
        }
        // Which latents fire is not asked here.
        let mut fired = vec![0; n_latents];
        let mut finite = |rows: &[u32]| -> Result<bool> {
            let sums = backend.evaluate(rows, Weights::Averaged, &mut fired)?;
            let EvalSums { squared, absolute, cosine, .. } = sums;
            Ok([squared, absolute, cosine].iter().all(|v| v.is_finite()))
        };
        let Some(at) = first_bad(&self.rows, &mut finite)? else {
            return Ok(Some(format!("the errors of the {which} rows add up to a number that is not finite")));
        };
        let (before, after) = (&self.rows[..at], &self.rows[at + 1..]);
        let alone = (before.is_empty() || finite(before)?) && (after.is_empty() || finite(after)?);
        in_words(self.rows[at], which, alone, data).map(Some)
    }
}

/// The place of the first row that is not finite by itself, by halving; `None` where only the sum is not.
fn first_bad(rows: &[u32], finite: &mut impl FnMut(&[u32]) -> Result<bool>) -> Result<Option<usize>> {
    let (mut from, mut to) = (0, rows.len());
    while to - from > 1 {
        let middle = from + (to - from) / 2;
        if finite(&rows[from..middle])? {
            from = middle;
        } else {
            to = middle;
        }
    }
    Ok(if finite(&rows[from..to])? { None } else { Some(from) })
}

fn in_words(row: u32, which: &str, alone: bool, data: &dyn RowSource) -> Result<String> {
    let mut values = vec![0.0; data.d_in()];
    data.read(&[row], &mut values)?;
    let largest = values.iter().fold(0.0f32, |a, v| a.max(v.abs()));
    let (what, others) = (data.describe(row), if alone { "" } else { " and others" });
    Ok(format!(
        "the {which} {what}{others} cannot be measured: values up to {largest:e} and this model's weights \
         give a reconstruction that is not finite in float32; drop or rescale such rows, train without \
         --no-normalize, or lower --lr"
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bad_row_is_found_wherever_it_is() {
        for n in 1..20u32 {
            let rows: Vec<u32> = (0..n).collect();
            for bad in 0..n {
                let mut finite = |rows: &[u32]| Ok(!rows.iter().any(|&row| row >= bad && row % 2 == bad % 2));
                assert_eq!(first_bad(&rows, &mut finite).unwrap(), Some(bad as usize));
            }
            // A sum that overflows without a bad row.
            let mut finite = |rows: &[u32]| Ok(rows.len() < 3);
            assert_eq!(first_bad(&rows, &mut finite).unwrap(), None);
        }
    }
}
