//! Dense products by plain loops, with float64 sums.

use crate::{Element, Matrix, Product, Result};
use half::bf16;

/// Bytes from the first to the last value.
pub fn extent(m: &Matrix) -> usize {
    if m.rows == 0 || m.cols == 0 { 0 } else { ((m.rows - 1) * m.stride + m.cols) * m.element.size() }
}

/// Runs `p`.
///
/// # Errors
/// Sizes that do not go together, or a result that lies over an operand.
///
/// # Safety
/// The three matrices lie in live memory.
pub unsafe fn product(p: &Product) -> Result<()> {
    let turn = |m: &Matrix, turned: bool| if turned { (m.cols, m.rows) } else { (m.rows, m.cols) };
    let ((m, inner), (inner_b, n)) = (turn(&p.a, p.a_transposed), turn(&p.b, p.b_transposed));
    if inner != inner_b || (m, n) != (p.out.rows, p.out.cols) {
        return Err(format!("a dense product does not fit: {p:?}"));
    }
    let parts = [&p.a, &p.b].map(|x| (x.address, x.address + extent(x) as u64));
    let (start, end) = (p.out.address, p.out.address + extent(&p.out) as u64);
    if parts.iter().any(|&(first, last)| first < end && start < last) {
        return Err(format!("a dense product writes over its operands: {p:?}"));
    }
    // SAFETY: the caller's promise.
    let (a, b) = unsafe { (load(&p.a, p.a_transposed), load(&p.b, p.b_transposed)) };
    let mut sums = vec![0.0f64; n];
    for i in 0..m {
        sums.fill(0.0);
        for (l, &left) in a[i * inner..(i + 1) * inner].iter().enumerate() {
            let left = f64::from(left);
            for (sum, &right) in sums.iter_mut().zip(&b[l * n..(l + 1) * n]) {
                *sum += left * f64::from(right);
            }
        }
        for (j, &sum) in sums.iter().enumerate() {
            // SAFETY: i < rows and j < cols of `out`, in live memory.
            unsafe {
                let old = if p.add { get(&p.out, i, j) } else { 0.0 };
                put(&p.out, i, j, (f64::from(old) + sum) as f32);
            }
        }
    }
    Ok(())
}

/// The values of `m` row by row, transposed if so asked.
unsafe fn load(m: &Matrix, transposed: bool) -> Vec<f32> {
    let (rows, cols) = if transposed { (m.cols, m.rows) } else { (m.rows, m.cols) };
    let mut out = Vec::with_capacity(rows * cols);
    for i in 0..rows {
        for j in 0..cols {
            let (r, c) = if transposed { (j, i) } else { (i, j) };
            // SAFETY: r < m.rows and c < m.cols; the caller promises live memory.
            out.push(unsafe { get(m, r, c) });
        }
    }
    out
}

unsafe fn get(m: &Matrix, i: usize, j: usize) -> f32 {
    let at = i * m.stride + j;
    // SAFETY: the caller promises that element (i, j) lies in live memory; addresses are aligned to their type.
    unsafe {
        match m.element {
            Element::F32 => *(m.address as *const f32).add(at),
            Element::Bf16 => (*(m.address as *const bf16).add(at)).to_f32(),
        }
    }
}

unsafe fn put(m: &Matrix, i: usize, j: usize, value: f32) {
    let at = i * m.stride + j;
    // SAFETY: as in `get`.
    unsafe {
        match m.element {
            Element::F32 => *(m.address as *mut f32).add(at) = value,
            Element::Bf16 => *(m.address as *mut bf16).add(at) = bf16::from_f32(value),
        }
    }
}
