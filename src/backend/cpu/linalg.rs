//! Dense products in float32 by the `gemm` crate, cut into blocks of fixed size that run side by side.
//!
//! The cut does not depend on the number of threads, so the bits of a result do not either.

use gemm::{Parallelism, gemm};

/// A matrix over a slice: element (i, j) is at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix (rows, cols) whose rows are `stride` apart.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let end = if rows == 0 { 0 } else { (rows - 1) * stride + cols };
        assert!(cols <= stride && end <= data.len(), "a view of {rows} x {cols} does not fit");
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The same values with rows and columns exchanged.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// `out = a b`, or `out += a b` with `add`; `out` is row-major (a.rows, b.cols) with rows `stride` apart.
/// Runs on the calling thread.
pub fn product(out: &mut [f32], stride: usize, a: View<'_>, b: View<'_>, add: bool) {
    assert_eq!(a.cols, b.rows, "inner sizes differ");
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    let end = (a.rows - 1) * stride + b.cols;
    assert!(b.cols <= stride && end <= out.len(), "the output does not fit");
    // SAFETY: `View::new` checked that every element of `a` and `b` lies in its slice, transposing keeps the
    // set of elements, and the line above checked the same for `out`, which is borrowed for writing alone.
    unsafe { raw_product(out.as_mut_ptr(), stride, a, b, add) }
}

/// # Safety
/// `out` must be valid for writes (and reads with `add`) at `i * stride + j` for all i < a.rows, j < b.cols,
/// and nothing else may touch these places meanwhile.
unsafe fn raw_product(out: *mut f32, stride: usize, a: View<'_>, b: View<'_>, add: bool) {
    // SAFETY: the caller vouches for `out`; the views were checked when made.
    unsafe {
        gemm(
            a.rows,
            b.cols,
            a.cols,
            out,
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// A pointer that threads may share because each writes places of its own.
#[derive(Clone, Copy)]
struct SharedPointer(*mut f32);
// SAFETY: only `parallel_product` makes one, and its tasks write disjoint blocks.
unsafe impl Send for SharedPointer {}
// SAFETY: as above.
unsafe impl Sync for SharedPointer {}

impl SharedPointer {
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// `out = a b` for contiguous row-major `out` (a.rows, b.cols), in blocks of `block` = (rows, columns).
pub fn parallel_product(out: &mut [f32], a: View<'_>, b: View<'_>, block: (usize, usize)) {
    use rayon::prelude::*;
    assert_eq!(a.cols, b.rows, "inner sizes differ");
    assert_eq!(out.len(), a.rows * b.cols, "the output does not fit");
    let stride = b.cols;
    let shared = SharedPointer(out.as_mut_ptr());
    let (n_i, n_j) = (a.rows.div_ceil(block.0), b.cols.div_ceil(block.1));
    (0..n_i * n_j).into_par_iter().for_each(|task| {
        // Neighbouring tasks share columns of `b`, the larger operand in every use.
        let (i, j) = ((task % n_i) * block.0, (task / n_i) * block.1);
        let (a, b) = (rows(a, i, block.0), cols(b, j, block.1));
        // SAFETY: i + a.rows <= out rows and j + b.cols <= stride by the cut, the length was checked above,
        // and the blocks of two tasks do not overlap.
        unsafe { raw_product(shared.at(i * stride + j), stride, a, b, false) }
    });
}

fn rows(v: View<'_>, first: usize, count: usize) -> View<'_> {
    let data = &v.data[first * v.row_stride..];
    View { data, rows: count.min(v.rows - first), ..v }
}

fn cols(v: View<'_>, first: usize, count: usize) -> View<'_> {
    rows(v.t(), first, count).t()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 11) % 17) as f32 - 8.0).collect()
    }

    #[test]
    fn blocked_and_transposed_products_equal_plain_loops() {
        for (n, m, k) in [(1, 1, 1), (5, 7, 3), (33, 65, 31), (70, 130, 64)] {
            let (a, b) = (values(n * k, 1), values(m * k, 2));
            let mut want = vec![0.0f32; n * m];
            for i in 0..n {
                for j in 0..m {
                    want[i * m + j] = (0..k).map(|l| a[i * k + l] * b[j * k + l]).sum();
                }
            }
            let (av, bv) = (View::new(&a, n, k, k), View::new(&b, m, k, k).t());
            let mut out = vec![9.0; n * m];
            parallel_product(&mut out, av, bv, (16, 32));
            assert_eq!(out, want);
            product(&mut out, m, av, bv, true);
            assert!(out.iter().zip(&want).all(|(o, w)| *o == 2.0 * w));
        }
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_view_larger_than_its_slice_is_refused() {
        View::new(&[0.0; 11], 3, 4, 4);
    }
}
