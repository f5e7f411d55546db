//! Means and sums over rows, on several threads: their bits do not depend on how many.

use super::RowSource;
use crate::error::Result;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

/// Fewest columns that a thread takes.
const LEAST_COLUMNS: usize = 64;
/// Fewest rows.
const LEAST_ROWS: usize = 16;

/// Mean and variance of some rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// A hash of the numbers of the rows.
    pub rows: u64,
    /// Their mean (D).
    pub mean: Vec<f64>,
    /// Mean squared distance of a value to the mean row.
    pub variance: f64,
}

/// A hash of row numbers: equal means that they are the same.
pub fn hash_rows(rows: &[u32]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(bytemuck::cast_slice(rows));
    hash.digest()
}

/// Bytes of rows that are read at a time.
const READ_BYTES: usize = 16 << 20;

/// Calls `take` with the values of `rows`, some rows at a time, in their order.
fn each_block(data: &dyn RowSource, rows: &[u32], mut take: impl FnMut(&[f32])) -> Result<()> {
    let d = data.d_in();
    let n = (READ_BYTES / (4 * d).max(1)).max(1);
    let mut values = vec![0.0f32; rows.len().min(n) * d];
    for rows in rows.chunks(n) {
        let values = &mut values[..rows.len() * d];
        data.read(rows, values)?;
        take(values);
    }
    Ok(())
}

/// Mean row of `rows` (D), summed in float64 in row order.
///
/// # Errors
/// What the rows' source gives.
pub fn mean_row(data: &dyn RowSource, rows: &[u32]) -> Result<Vec<f64>> {
    let mut mean = vec![0.0f64; data.d_in()];
    each_block(data, rows, |values| add_rows(&mut mean, values))?;
    mean.iter_mut().for_each(|m| *m /= rows.len().max(1) as f64);
    Ok(mean)
}

/// `sum (x - mean)^2` over `rows`.
///
/// # Errors
/// What the rows' source gives.
pub fn variance_about(data: &dyn RowSource, rows: &[u32], mean: &[f64]) -> Result<f64> {
    let mut sum = 0.0;
    each_block(data, rows, |values| add_squares(&mut sum, values, mean))?;
    Ok(sum)
}

/// Adds rows of `values` (rows, D) to `sum` (D), one after the other in each column.
pub fn add_rows(sum: &mut [f64], values: &[f32]) {
    let d = sum.len();
    let columns = d.div_ceil(rayon::current_num_threads()).max(LEAST_COLUMNS);
    sum.par_chunks_mut(columns).enumerate().for_each(|(part, sum)| {
        for row in values.chunks_exact(d) {
            let row = &row[part * columns..][..sum.len()];
            sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
    });
}

/// Adds `sum (x - centre)^2` of rows of `values` (rows, D) to `sum`, row by row.
pub fn add_squares(sum: &mut f64, values: &[f32], centre: &[f64]) {
    let rows = values.par_chunks_exact(centre.len().max(1)).with_min_len(LEAST_ROWS);
    let square = |row: &[f32]| row.iter().zip(centre).map(|(&x, m)| (f64::from(x) - m).powi(2)).sum::<f64>();
    let squares: Vec<f64> = rows.map(square).collect();
    squares.into_iter().for_each(|square| *sum += square);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_one_thread() {
        let d = 300;
        let values: Vec<f32> = (0..d * 200).map(|i| ((i * 7919) % 1013) as f32 / 97.0 - 4.0).collect();
        let (mut sum, mut squares) = (vec![0.0; d], 0.0);
        for rows in values.chunks(d * 64) {
            add_rows(&mut sum, rows);
            add_squares(&mut squares, rows, &vec![0.25; d]);
        }
        let (mut plain, mut plain_squares) = (vec![0.0f64; d], 0.0);
        for row in values.chunks(d) {
            plain.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
            plain_squares += row.iter().map(|&x| (f64::from(x) - 0.25).powi(2)).sum::<f64>();
        }
        assert!(sum == plain && squares == plain_squares);
    }
}
