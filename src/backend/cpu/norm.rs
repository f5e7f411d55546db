//! Rows of the data made ready for the encoder.

use super::fast::make_room;
use crate::error::Result;
use crate::rows::RowSource;
use rayon::prelude::*;

/// A batch of N rows.
#[derive(Debug, Default)]
pub struct Batch {
    /// (N, D): `x' - b_pre`, the encoder's operand.
    pub input: Vec<f32>,
    /// (N, D): `x - mu`, what `y' std` is compared with. Subtracting the mean first keeps the loss exact for
    /// rows whose offset is far larger than their spread.
    pub centered: Vec<f32>,
    /// (N): standard deviation, 1 without normalisation.
    pub std: Vec<f32>,
    /// (N): mean, 0 without normalisation.
    pub mean: Vec<f32>,
}

impl Batch {
    /// Gathers `rows` and normalises them, `eps` added to their deviations; without one they stay as they are.
    ///
    /// # Errors
    /// What the source of the rows gives.
    pub fn load(
        &mut self,
        data: &dyn RowSource,
        rows: &[u32],
        eps: Option<f64>,
        b_pre: &[f32],
    ) -> Result<()> {
        let d = data.d_in();
        make_room(&mut self.input, rows.len() * d);
        make_room(&mut self.centered, rows.len() * d);
        self.std.resize(rows.len(), 0.0);
        self.mean.resize(rows.len(), 0.0);
        self.input
            .par_chunks_exact_mut(d)
            .zip(self.centered.par_chunks_exact_mut(d))
            .zip(self.std.par_iter_mut().zip(self.mean.par_iter_mut()))
            .zip(rows.par_iter())
            .try_for_each(|(((input, centered), (std, mean)), row)| {
                data.read(std::slice::from_ref(row), centered)?;
                (*mean, *std) = if eps.is_some() { center(centered) } else { (0.0, 1.0) };
                let scale = eps.map_or(1.0, |eps| (1.0 / (f64::from(*std) + eps)) as f32);
                for ((out, &x), &b) in input.iter_mut().zip(centered.iter()).zip(b_pre) {
                    *out = x * scale - b;
                }
                Ok(())
            })
    }
}

/// Subtracts the mean in place; returns mean and unbiased standard deviation. Sums in float64.
fn center(row: &mut [f32]) -> (f32, f32) {
    let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / row.len() as f64;
    let mut squares = 0.0;
    for value in row.iter_mut() {
        let centered = f64::from(*value) - mean;
        squares += centered * centered;
        *value = centered as f32;
    }
    (mean as f32, (squares / (row.len() as f64 - 1.0)).sqrt() as f32)
}
