//! Rows in memory.

use super::{Dtype, RowSource, TOGETHER, Values};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// Rows of D values each, all in memory, in the type that they are stored in.
#[derive(Clone, Debug, PartialEq)]
pub struct Resident {
    pub(crate) values: Values,
    n_rows: usize,
    d_in: usize,
}

impl Resident {
    /// Rows of `d_in` values, one after another.
    ///
    /// # Errors
    /// [`Error::Failed`] where `values` are not whole rows.
    pub fn new(values: Values, d_in: usize) -> Result<Self> {
        let n = values.bytes().len() / values.dtype().size();
        // No rows at all may have any width.
        if n > 0 && (d_in == 0 || !n.is_multiple_of(d_in) || n / d_in > u32::MAX as usize) {
            return Err(Error::Failed(format!("{n} values are not rows of {d_in} values")));
        }
        Ok(Self { values, n_rows: n / d_in.max(1), d_in })
    }

    /// Their values.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// Their values alone.
    pub(crate) fn into_values(self) -> Values {
        self.values
    }

    /// The same rows kept in another type, rounded to the nearest.
    #[must_use]
    pub fn kept_as(self, dtype: Dtype) -> Self {
        use half::slice::HalfFloatSliceExt;
        let mut wide = vec![0.0; self.n_rows * self.d_in];
        for (row, out) in wide.chunks_exact_mut(self.d_in).enumerate() {
            self.values.row_into(row, self.d_in, out);
        }
        let values = match dtype {
            Dtype::F16 => {
                let mut out = vec![half::f16::ZERO; wide.len()];
                out.convert_from_f32_slice(&wide);
                Values::F16(out.into())
            }
            Dtype::Bf16 => {
                let mut out = vec![half::bf16::ZERO; wide.len()];
                out.convert_from_f32_slice(&wide);
                Values::Bf16(out.into())
            }
            Dtype::F32 => Values::F32(wide.into()),
            Dtype::F64 => Values::F64(wide.into_iter().map(f64::from).collect()),
        };
        Self { values, ..self }
    }
}

impl RowSource for Resident {
    fn n_rows(&self) -> usize {
        self.n_rows
    }

    fn d_in(&self) -> usize {
        self.d_in
    }

    fn dtype(&self) -> Dtype {
        self.values.dtype()
    }

    fn read(&self, rows: &[u32], out: &mut [f32]) -> Result<()> {
        let copy = |(rows, out): (&[u32], &mut [f32])| {
            for (&row, out) in rows.iter().zip(out.chunks_exact_mut(self.d_in)) {
                self.values.row_into(row as usize, self.d_in, out);
            }
        };
        // Not worth a call to other threads.
        if rows.len() <= TOGETHER {
            copy((rows, out));
        } else {
            rows.par_chunks(TOGETHER).zip(out.par_chunks_mut(TOGETHER * self.d_in)).for_each(copy);
        }
        Ok(())
    }

    fn read_stored(&self, row: u32, out: &mut [u8]) -> Result<()> {
        if let Values::F64(values) = &self.values {
            let values = &values[row as usize * self.d_in..][..self.d_in];
            for (out, value) in out.chunks_exact_mut(4).zip(values) {
                out.copy_from_slice(&(*value as f32).to_ne_bytes());
            }
            return Ok(());
        }
        let width = self.d_in * self.dtype().size();
        out.copy_from_slice(&self.values.bytes()[row as usize * width..][..width]);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_gathered_in_parallel_are_those_read_one_by_one() {
        let values: Vec<f64> = (0..1000 * 5).map(|i| (f64::from(i) * 0.37).sin()).collect();
        let wide = Resident::new(Values::F64(values.into()), 5).unwrap();
        let order: Vec<u32> = (0..700).map(|i| i * 7919 % 1000).collect();
        for rows in [wide.clone().kept_as(Dtype::F16), wide] {
            let width = 5 * if rows.dtype() == Dtype::F64 { 4 } else { rows.dtype().size() };
            let mut together = vec![0; order.len() * width];
            rows.gather_stored(&order, &mut together).unwrap();
            let mut one = vec![0; width];
            for (&row, gathered) in order.iter().zip(together.chunks_exact(width)) {
                rows.read_stored(row, &mut one).unwrap();
                assert_eq!(one, gathered, "{row}");
            }
            rows.gather_stored(&[], &mut []).unwrap();
        }
    }
}
