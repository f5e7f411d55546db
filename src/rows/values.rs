//! Values in memory, in the type they are stored in.

use super::{Dtype, Store};
use half::{bf16, f16};
use rayon::prelude::*;

/// Values of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// IEEE half precision.
    F16(Store<f16>),
    /// The upper half of a float32.
    Bf16(Store<bf16>),
    /// IEEE single precision.
    F32(Store<f32>),
    /// IEEE double precision.
    F64(Store<f64>),
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
            Dtype::F16 => Self::F16(Store::Own(vec![0u16; n].reinterpret_into())),
            Dtype::Bf16 => Self::Bf16(Store::Own(vec![0u16; n].reinterpret_into())),
            Dtype::F32 => Self::F32(vec![0.0; n].into()),
            Dtype::F64 => Self::F64(vec![0.0; n].into()),
        })
    }

    /// Their type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F16(_) => Dtype::F16,
            Self::Bf16(_) => Dtype::Bf16,
            Self::F32(_) => Dtype::F32,
            Self::F64(_) => Dtype::F64,
        }
    }

    /// All of them as bytes, in this machine's order.
    pub fn bytes(&self) -> &[u8] {
        each!(self, v => bytemuck::cast_slice(&v[..]))
    }

    /// The bytes to write into; lent values are copied first.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        each!(self, v => bytemuck::cast_slice_mut(v.own()))
    }

    /// Writes row `row` of `width` values to `out` as float32.
    ///
    /// # Panics
    /// If `row` is not a row, or `out` is not `width` long.
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

    /// Rows of `width` values that are all 0, ascending.
    pub fn zero_rows(&self, width: usize) -> Vec<usize> {
        let row_bytes = width * self.dtype().size();
        if row_bytes == 0 {
            return vec![];
        }
        let rows = self.bytes().par_chunks_exact(row_bytes).enumerate().with_min_len(64);
        rows.filter(|(_, row)| row.iter().all(|&byte| byte == 0)).map(|(row, _)| row).collect()
    }

    /// The value at `at`, as float64.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn get(&self, at: usize) -> f64 {
        match self {
            Self::F16(v) => v[at].to_f64(),
            Self::Bf16(v) => v[at].to_f64(),
            Self::F32(v) => f64::from(v[at]),
            Self::F64(v) => v[at],
        }
    }

    /// Keeps the rows of `width` values that `keep` marks, in order.
    pub fn retain_rows(&mut self, width: usize, keep: &[bool]) {
        each!(self, v => {
            // Lent values are not copied whole to keep a part of them.
            if let Store::Lent(_) = v {
                let rows = v.chunks_exact(width.max(1)).zip(keep).filter(|(_, keep)| **keep);
                *v = rows.flat_map(|(row, _)| row).copied().collect();
                return;
            }
            let v = v.own();
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
