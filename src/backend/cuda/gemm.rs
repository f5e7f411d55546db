//! A row-major dense product as the call of column-major cuBLAS that computes it.

use super::device::{Element, Matrix, Product};
use crate::error::{Error, Result};
use cudarc::cublas::sys::{
    cublasComputeType_t as Compute, cublasOperation_t as Turn, cudaDataType_t as DataType,
};

/// How the dense products compute. Sums are float32 in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Math {
    /// float32 throughout.
    F32,
    /// float32 operands are rounded to TF32 (10 bits of mantissa).
    Tf32,
    /// For operands that are stored as bfloat16; those that are float32 are rounded to TF32, which is finer.
    Bf16,
}

/// The arguments of `cublasGemmEx`: C = op(A) op(B) + beta C, all column-major.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GemmCall {
    /// How A is taken.
    pub turn_a: Turn,
    /// How B is taken.
    pub turn_b: Turn,
    /// Rows of op(A) and of C.
    pub m: i32,
    /// Columns of op(B) and of C.
    pub n: i32,
    /// Columns of op(A), rows of op(B).
    pub k: i32,
    /// Address of A.
    pub a: u64,
    /// Values between the starts of two columns of A.
    pub lda: i32,
    /// Address of B.
    pub b: u64,
    /// Values between the starts of two columns of B.
    pub ldb: i32,
    /// 0 or 1.
    pub beta: f32,
    /// Address of C.
    pub c: u64,
    /// Values between the starts of two columns of C.
    pub ldc: i32,
    /// Type of A and B.
    pub operands: DataType,
    /// Type of C.
    pub result: DataType,
    /// Type of the arithmetic.
    pub compute: Compute,
}

/// The call for `product`.
///
/// What row-major memory holds is, read column-major, the transposed matrix. So cuBLAS is asked for
/// out^T = b^T a^T: b comes first, and an operand that is already transposed in this reading is taken as it is.
///
/// # Errors
/// Sizes or types that do not go together, or sizes beyond 2^31 - 1.
pub fn gemm_call(product: &Product, math: Math) -> Result<GemmCall> {
    let (rows, cols, inner) = product.sizes()?;
    let small = |n: usize| {
        i32::try_from(n).map_err(|_| {
            Error::Failed(format!("a dense product has a size of {n}, and cuBLAS takes up to {}", i32::MAX))
        })
    };
    // cuBLAS wants a leading dimension of at least 1, even of a matrix without columns.
    let leading = |m: &Matrix| small(m.stride.max(1));
    let turn = |transposed| if transposed { Turn::CUBLAS_OP_T } else { Turn::CUBLAS_OP_N };
    Ok(GemmCall {
        turn_a: turn(product.b_transposed),
        turn_b: turn(product.a_transposed),
        m: small(cols)?,
        n: small(rows)?,
        k: small(inner)?,
        a: product.b.address,
        lda: leading(&product.b)?,
        b: product.a.address,
        ldb: leading(&product.a)?,
        beta: if product.add { 1.0 } else { 0.0 },
        c: product.out.address,
        ldc: leading(&product.out)?,
        operands: data_type(product.a.element),
        result: data_type(product.out.element),
        compute: match (product.a.element, math) {
            (Element::F32, Math::Tf32 | Math::Bf16) => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
            (Element::F32, Math::F32) | (Element::Bf16, _) => Compute::CUBLAS_COMPUTE_32F,
        },
    })
}

fn data_type(element: Element) -> DataType {
    match element {
        Element::F32 => DataType::CUDA_R_32F,
        Element::Bf16 => DataType::CUDA_R_16BF,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// What cuBLAS documents: C = op(A) op(B) + beta C on column-major memory; addresses are indices here.
    fn cublas_by_loops(call: &GemmCall, memory: &mut [f64]) {
        let at = |base: u64, leading: i32, turn: Turn, i: i32, j: i32| {
            let (row, col) = if turn == Turn::CUBLAS_OP_T { (j, i) } else { (i, j) };
            base as usize + (row + col * leading) as usize
        };
        // The bounds that cuBLAS checks: a column must fit between the starts of two.
        let rows_a = if call.turn_a == Turn::CUBLAS_OP_T { call.k } else { call.m };
        let rows_b = if call.turn_b == Turn::CUBLAS_OP_T { call.n } else { call.k };
        assert!(call.lda >= rows_a.max(1) && call.ldb >= rows_b.max(1) && call.ldc >= call.m.max(1));
        for j in 0..call.n {
            for i in 0..call.m {
                let mut sum = 0.0;
                for l in 0..call.k {
                    sum += memory[at(call.a, call.lda, call.turn_a, i, l)]
                        * memory[at(call.b, call.ldb, call.turn_b, l, j)];
                }
                let c = at(call.c, call.ldc, Turn::CUBLAS_OP_N, i, j);
                memory[c] = sum + if call.beta == 0.0 { 0.0 } else { f64::from(call.beta) * memory[c] };
            }
        }
    }

    /// The definition of [`Product`], by plain loops.
    fn product_by_loops(p: &Product, memory: &mut [f64]) {
        let (rows, cols, inner) = p.sizes().unwrap();
        let at = |m: &Matrix, transposed: bool, i: usize, j: usize| {
            let (i, j) = if transposed { (j, i) } else { (i, j) };
            m.address as usize + i * m.stride + j
        };
        for i in 0..rows {
            for j in 0..cols {
                let sum: f64 = (0..inner)
                    .map(|l| memory[at(&p.a, p.a_transposed, i, l)] * memory[at(&p.b, p.b_transposed, l, j)])
                    .sum();
                let out = at(&p.out, false, i, j);
                memory[out] = sum + if p.add { memory[out] } else { 0.0 };
            }
        }
    }

    fn product(sizes: (usize, usize, usize), turned: (bool, bool), gap: usize, add: bool) -> Product {
        let (m, n, k) = sizes;
        let matrix = |address, (rows, cols): (usize, usize), gap| Matrix {
            address,
            element: Element::F32,
            rows,
            cols,
            stride: cols + gap,
        };
        let swap = |t: bool, (r, c)| if t { (c, r) } else { (r, c) };
        // Different gaps, so that strides that are mixed up are seen.
        Product {
            a: matrix(3, swap(turned.0, (m, k)), gap),
            a_transposed: turned.0,
            b: matrix(300, swap(turned.1, (k, n)), 2 * gap),
            b_transposed: turned.1,
            out: matrix(600, (m, n), 3 * gap),
            add,
        }
    }

    #[test]
    fn every_way_to_take_the_operands_gives_the_row_major_product() {
        // Small whole numbers: every sum is exact in any order.
        let start: Vec<f64> = (0..1000).map(|i| f64::from(i * 37 % 23) - 11.0).collect();
        let mut cases = 0;
        for sizes in [(2, 3, 4), (4, 3, 2), (5, 5, 5), (1, 7, 3), (7, 1, 1)] {
            for turned in [(false, false), (false, true), (true, false), (true, true)] {
                for (gap, add) in [(0, false), (0, true), (5, false), (5, true)] {
                    let p = product(sizes, turned, gap, add);
                    let (mut expected, mut found) = (start.clone(), start.clone());
                    product_by_loops(&p, &mut expected);
                    cublas_by_loops(&gemm_call(&p, Math::F32).unwrap(), &mut found);
                    assert_eq!(found, expected, "{p:?}");
                    assert_ne!(found, start, "{p:?}");
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 80);
    }

    #[test]
    fn a_wrong_flag_is_seen_by_this_test() {
        let p = product((4, 4, 4), (true, false), 0, false);
        let start: Vec<f64> = (0..1000).map(|i| f64::from(i * 37 % 23) - 11.0).collect();
        let (mut expected, mut found) = (start.clone(), start);
        product_by_loops(&p, &mut expected);
        let call = GemmCall { turn_b: Turn::CUBLAS_OP_N, ..gemm_call(&p, Math::F32).unwrap() };
        cublas_by_loops(&call, &mut found);
        assert_ne!(found, expected);
    }

    #[test]
    fn types_choose_the_arithmetic() {
        let call = |operands, result, math| {
            let mut p = product((2, 2, 2), (false, false), 0, false);
            (p.a.element, p.b.element, p.out.element) = (operands, operands, result);
            gemm_call(&p, math).map(|c| (c.operands, c.result, c.compute))
        };
        let (f32_type, bf16_type) = (DataType::CUDA_R_32F, DataType::CUDA_R_16BF);
        let (plain, tf32) = (Compute::CUBLAS_COMPUTE_32F, Compute::CUBLAS_COMPUTE_32F_FAST_TF32);
        assert_eq!(call(Element::F32, Element::F32, Math::F32).unwrap(), (f32_type, f32_type, plain));
        assert_eq!(call(Element::F32, Element::F32, Math::Tf32).unwrap(), (f32_type, f32_type, tf32));
        assert_eq!(call(Element::Bf16, Element::F32, Math::Bf16).unwrap(), (bf16_type, f32_type, plain));
        assert_eq!(call(Element::Bf16, Element::Bf16, Math::Bf16).unwrap(), (bf16_type, bf16_type, plain));
        assert!(call(Element::F32, Element::Bf16, Math::F32).is_err(), "cuBLAS has no such product");
    }

    #[test]
    fn sizes_that_cublas_cannot_count_are_refused() {
        let mut p = product((2, 2, 2), (false, false), 0, false);
        p.out.stride = 1 << 31;
        assert!(gemm_call(&p, Math::F32).unwrap_err().to_string().contains("2147483648"));
        p.out.stride = 1;
        assert!(gemm_call(&p, Math::F32).is_err(), "rows that overlap");
    }
}
