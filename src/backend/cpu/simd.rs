//! Row arithmetic in float32 that the compiler turns into vector code, compiled once for each level of the
//! instruction set and chosen at run time (`multiversion`).
//!
//! Sums are kept in [`LANES`] partial sums of fixed order, so a result does not depend on the vector width.

use crate::noise::{GROUP, philox_lanes, stream, unit};
use multiversion::multiversion;

/// Partial sums of a reduction.
pub const LANES: usize = 32;

/// Values summed in float32 before the partial sum goes to float64.
const BLOCK: usize = 512;

#[inline(always)]
fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    let mut lanes = lanes;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `sum_i a_i b_i` over the shorter of the two.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut lanes = [0.0f32; LANES];
    let (ca, cb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (i, (x, y)) in ca.remainder().iter().zip(cb.remainder()).enumerate() {
        lanes[i] += x * y;
    }
    for (x, y) in ca.zip(cb) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    sum_lanes(lanes)
}

/// `sum_i x_i^2` in float64: no float32 is too large or too small for it.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let parts = x.chunks_exact(LANES);
    for (lane, &v) in lanes.iter_mut().zip(parts.remainder()) {
        *lane = f64::from(v) * f64::from(v);
    }
    for part in parts {
        for i in 0..LANES {
            lanes[i] += f64::from(part[i]) * f64::from(part[i]);
        }
    }
    lanes.iter().sum()
}

/// Scales `row` to length 1; a zero row stays zero.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn to_unit_length(row: &mut [f32]) {
    let norm = sum_of_squares(row).sqrt();
    if norm > 0.0 {
        let scale = 1.0 / norm;
        row.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
    }
}

/// `y += a x`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// `y += a0 x0 + a1 x1 + a2 x2 + a3 x3`: four rows for one pass over `y`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn axpy4(a: [f32; 4], x: [&[f32]; 4], y: &mut [f32]) {
    let n = y.len();
    let [x0, x1, x2, x3] = x.map(|x| &x[..n]);
    for i in 0..n {
        y[i] += (a[0] * x0[i] + a[1] * x1[i]) + (a[2] * x2[i] + a[3] * x3[i]);
    }
}

/// Adds column sums of the rows of `x` (each as long as `sum`) to `sum`.
pub fn add_rows(x: &[f32], sum: &mut [f64]) {
    for row in x.chunks_exact(sum.len()) {
        for (s, &v) in sum.iter_mut().zip(row) {
            *s += f64::from(v);
        }
    }
}

/// Largest value of each chunk of `width` scores, into `maxima`; returns a sum that is NaN when any score is
/// NaN or infinite.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn chunk_maxima(scores: &[f32], width: usize, maxima: &mut [f32]) -> f32 {
    let mut check = [0.0f32; LANES];
    for (chunk, max) in scores.chunks(width).zip(maxima.iter_mut()) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let parts = chunk.chunks_exact(LANES);
        for (i, &v) in parts.remainder().iter().enumerate() {
            lanes[i] = if v > lanes[i] { v } else { lanes[i] };
            check[i] += v * 0.0;
        }
        for part in parts {
            for i in 0..LANES {
                lanes[i] = if part[i] > lanes[i] { part[i] } else { lanes[i] };
                check[i] += part[i] * 0.0;
            }
        }
        *max = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    }
    sum_lanes(check)
}

/// Coefficients of one Adam step, the same for every value of it.
#[derive(Debug, Clone, Copy)]
pub struct AdamStep {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// `1 - beta1`, rounded once from float64.
    pub one_minus_beta1: f32,
    /// `1 - beta2`, rounded once from float64.
    pub one_minus_beta2: f32,
    /// `lr / (1 - beta1^t)`.
    pub rate: f32,
    /// `1 / (1 - beta2^t)`.
    pub fix2: f32,
    /// Added to the root.
    pub eps: f32,
    /// `1 - lr * weight_decay`; 1 for biases.
    pub keep: f32,
    /// The gradient's factor from clipping.
    pub clip: f32,
}

/// Adam on one run of values: weights, moments and gradient of equal length.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn adam(c: AdamStep, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
    let n = w.len();
    let (m, v, g) = (&mut m[..n], &mut v[..n], &g[..n]);
    for i in 0..n {
        let grad = g[i] * c.clip;
        m[i] = c.beta1 * m[i] + c.one_minus_beta1 * grad;
        v[i] = c.beta2 * v[i] + c.one_minus_beta2 * (grad * grad);
        w[i] = c.keep * w[i] - c.rate * m[i] / ((v[i] * c.fix2).sqrt() + c.eps);
    }
}

/// `average = keep average + (1 - keep) w`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn average(keep: f32, average: &mut [f32], w: &[f32]) {
    for (a, &w) in average.iter_mut().zip(w) {
        *a = keep * *a + (1.0 - keep) * w;
    }
}

/// `ln` of `1 + f` for `1 + f` on [1/sqrt 2, sqrt 2): the minimax polynomial of Cephes' `logf` (Moshier 1992).
#[inline(always)]
fn ln_1p_small(f: f32) -> f32 {
    let mut p = 7.037_683_6e-2f32;
    for c in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        0.333_333_3,
    ] {
        p = p * f + c;
    }
    let square = f * f;
    f - (0.5 * square - square * f * p)
}

/// `ln x` for normal positive `x`, to about 1 unit in the last place; where `near_one` holds, `f` is `x - 1`,
/// known better than from `x`. One polynomial for both, so that there is no branch.
#[inline(always)]
fn ln(x: f32, near_one: bool, f: f32) -> f32 {
    // Bits split so that the mantissa lies on [1/sqrt 2, sqrt 2).
    let bits = x.to_bits().wrapping_sub(0x3f35_04f3);
    let exponent = if near_one { 0.0 } else { (bits as i32 >> 23) as f32 };
    let mantissa = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let f = if near_one { f } else { mantissa - 1.0 };
    ln_1p_small(f) + exponent * std::f32::consts::LN_2
}

/// `-ln(-ln(U + 1e-9) + 1e-9)`.
///
/// Near 1 the inner logarithm is taken of `1 + ((U - 1) + 1e-9)`: `U - 1` is exact there, while `U + 1e-9`
/// would lose the 1e-9 and with it the largest noise values.
#[inline(always)]
fn gumbel(u: f32) -> f32 {
    const EPS: f32 = 1e-9;
    let inner = ln(u + EPS, u > 0.75, (u - 1.0) + EPS);
    -ln(EPS - inner, false, 0.0)
}

/// `e^x` for `x <= 0`, to about 1 unit in the last place (Cephes' `expf`, Moshier 1992); 0 below -87.
#[inline(always)]
fn exp_negative(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to a whole number, whose bits are then the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let inside = x > -87.0;
    let x = if inside { x } else { -87.0 };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    let value = (p * (r * r) + r + 1.0) * scale;
    if inside { value } else { 0.0 }
}

/// Largest perturbed score and sum of positive scores of a row.
#[derive(Debug, Clone, Copy)]
pub struct Perturbed {
    /// `max_j (r_j + g_j)`.
    pub max: f32,
    /// `S = sum_j r_j`.
    pub sum: f64,
}

/// `t_j = relu(z_j) + g_j` with the noise of (seed, step, row), into `t`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn perturb(seed: u64, step: u64, row: u32, z: &[f32], t: &mut [f32]) -> Perturbed {
    let (rest, key) = stream(seed, step, row);
    let mut uniform = [0.0f32; GROUP];
    let (mut max, mut sum) = ([f32::NEG_INFINITY; LANES], 0.0f64);
    for (group, (z, t)) in z.chunks(GROUP).zip(t.chunks_mut(GROUP)).enumerate() {
        let words = philox_lanes(32 * group as u32, rest, key);
        for (out, words) in uniform.chunks_exact_mut(32).zip(&words) {
            for i in 0..32 {
                out[i] = unit(words[i]);
            }
        }
        sum += perturb_group(z, &uniform, t, &mut max);
    }
    Perturbed { max: max.iter().copied().fold(f32::NEG_INFINITY, f32::max), sum }
}

/// The same with given uniform numbers.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn perturb_given(uniform: &[f32], z: &[f32], t: &mut [f32]) -> Perturbed {
    let (mut max, mut sum) = ([f32::NEG_INFINITY; LANES], 0.0f64);
    let groups = uniform.chunks(GROUP).zip(z.chunks(GROUP)).zip(t.chunks_mut(GROUP));
    for ((u, z), t) in groups {
        sum += perturb_group(z, u, t, &mut max);
    }
    Perturbed { max: max.iter().copied().fold(f32::NEG_INFINITY, f32::max), sum }
}

/// At most [`GROUP`] latents; returns their sum of positive scores.
#[inline(always)]
fn perturb_group(z: &[f32], uniform: &[f32], t: &mut [f32], max: &mut [f32; LANES]) -> f64 {
    let mut sums = [0.0f32; LANES];
    let parts = z.chunks(LANES).zip(uniform.chunks(LANES)).zip(t.chunks_mut(LANES));
    for ((z, u), t) in parts {
        // Whole lanes in arrays of known length: the form that becomes vector code. The end of a row is padded.
        let out = match (<&[f32; LANES]>::try_from(z), <&[f32; LANES]>::try_from(u)) {
            (Ok(z), Ok(u)) => perturb_lanes(z, u, max, &mut sums),
            _ => {
                let (mut whole_z, mut whole_u) = ([0.0; LANES], [0.0; LANES]);
                whole_z[..z.len()].copy_from_slice(z);
                whole_u[..z.len()].copy_from_slice(&u[..z.len()]);
                let mut ignored = [f32::NEG_INFINITY; LANES];
                let out = perturb_lanes(&whole_z, &whole_u, &mut ignored, &mut sums);
                for i in 0..z.len() {
                    max[i] = if out[i] > max[i] { out[i] } else { max[i] };
                }
                out
            }
        };
        t.copy_from_slice(&out[..t.len()]);
    }
    f64::from(sum_lanes(sums))
}

#[inline(always)]
fn perturb_lanes(
    z: &[f32; LANES],
    u: &[f32; LANES],
    max: &mut [f32; LANES],
    sums: &mut [f32; LANES],
) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        let r = if z[i] > 0.0 { z[i] } else { 0.0 };
        out[i] = r + gumbel(u[i]);
        max[i] = if out[i] > max[i] { out[i] } else { max[i] };
        sums[i] += r;
    }
    out
}

/// Replaces each score by `e^((t - max) / tau)` whose lowest mantissa bit says whether the score was positive,
/// so that the mask needs no memory of its own (it costs at most one unit in the last place). Returns the sum.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn exponentials(max: f32, inv_tau: f32, t: &[f32], z: &mut [f32]) -> f64 {
    let mut total = 0.0f64;
    for (t, z) in t.chunks(BLOCK).zip(z.chunks_mut(BLOCK)) {
        let mut lanes = [0.0f32; LANES];
        let whole = t.len() / LANES * LANES;
        for (t, z) in t.chunks_exact(LANES).zip(z.chunks_exact_mut(LANES)) {
            let mut out = [0.0f32; LANES];
            for i in 0..LANES {
                let e = exp_negative((t[i] - max) * inv_tau);
                lanes[i] += e;
                out[i] = with_mask(e, z[i]);
            }
            z.copy_from_slice(&out);
        }
        for (i, (t, z)) in t[whole..].iter().zip(&mut z[whole..]).enumerate() {
            let e = exp_negative((t - max) * inv_tau);
            lanes[i] += e;
            *z = with_mask(e, *z);
        }
        total += f64::from(sum_lanes(lanes));
    }
    total
}

#[inline(always)]
fn with_mask(e: f32, score: f32) -> f32 {
    f32::from_bits((e.to_bits() & !1) | u32::from(score > 0.0))
}

/// What [`exponentials`] kept in the lowest bit: was the score positive?
#[inline(always)]
pub fn was_positive(v: f32) -> bool {
    v.to_bits() & 1 == 1
}

/// Number of values at or above `threshold`, and the sum of those below it.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn split_at(threshold: f32, values: &[f32]) -> (usize, f64) {
    let (mut total, mut below) = (0usize, 0.0f64);
    for block in values.chunks(BLOCK) {
        let (mut counts, mut sums) = ([0u32; LANES], [0.0f32; LANES]);
        let parts = block.chunks_exact(LANES);
        for (i, &v) in parts.remainder().iter().enumerate() {
            counts[i] += u32::from(v >= threshold);
            sums[i] += if v >= threshold { 0.0 } else { v };
        }
        for part in parts {
            for i in 0..LANES {
                counts[i] += u32::from(part[i] >= threshold);
                sums[i] += if part[i] >= threshold { 0.0 } else { part[i] };
            }
        }
        total += counts.iter().sum::<u32>() as usize;
        below += f64::from(sum_lanes(sums));
    }
    (total, below)
}

/// The dense gradient of one row's scores in a block of latents, from `e` (what [`exponentials`] left) and
/// `dh`, into `dh`: `[z > 0] (e a (rest dh - c) + c)` with `a = S / (total tau)`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn softmax_backward(a: f32, rest: f32, c: f32, e: &[f32], dh: &mut [f32]) {
    for (dh, &e) in dh.iter_mut().zip(e) {
        let full = e * a * (rest * *dh - c) + c;
        *dh = if was_positive(e) { full } else { 0.0 };
    }
}

/// `c` where the score was positive, else 0.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn masked_constant(c: f32, e: &[f32], out: &mut [f32]) {
    for (out, &e) in out.iter_mut().zip(e) {
        *out = if was_positive(e) { c } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{gumbel_f64, uniform};

    #[test]
    fn vector_gumbel_noise_agrees_with_float64_even_where_u_is_next_to_one() {
        let top = 1.0 - f32::EPSILON / 2.0;
        let edge = [0.0, f32::EPSILON, 0.5, 0.7499999, 0.75, 0.7500001, top, 0.999, 0.367_879_4];
        let drawn = (0..100_000).map(|j| uniform(4, 2, 9, j));
        for u in edge.into_iter().chain(drawn) {
            let (got, want) = (f64::from(gumbel(u)), gumbel_f64(u));
            assert!((got - want).abs() <= 3e-7 * want.abs().max(1.0), "U = {u}: {got} {want}");
        }
    }

    #[test]
    fn exponential_and_logarithm_are_within_two_units_in_the_last_place() {
        for i in 0..100_000 {
            let x = -87.0 * (i as f32) / 100_001.0;
            let want = f64::from(x).exp();
            assert!((f64::from(exp_negative(x)) - want).abs() <= 2.4e-7 * want, "exp {x}");
            let y = 1e-9 + 30.0 * (i as f32 + 0.5) / 100_000.0;
            let want = f64::from(y).ln();
            assert!((f64::from(ln(y, false, 0.0)) - want).abs() <= 2.4e-7 * want.abs().max(0.5), "ln {y}");
        }
        assert_eq!(exp_negative(-1e9), 0.0);
        assert_eq!(exp_negative(0.0), 1.0);
    }

    #[test]
    fn sums_and_products_do_not_miss_the_tail_of_odd_lengths() {
        for n in [0usize, 1, 31, 32, 33, 100, 1024, 1027] {
            let a: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..n).map(|i| (i % 5) as f32 * 0.5).collect();
            let want: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
            assert_eq!(dot(&a, &b), want, "n = {n}");
            assert_eq!(sum_of_squares(&a), a.iter().map(|&x| f64::from(x * x)).sum::<f64>(), "n = {n}");
            let mut row = a.clone();
            to_unit_length(&mut row);
            let mut plain = a.clone();
            crate::model::normalize(&mut plain);
            // Divided by the same length in another order: one rounding apart.
            assert!(row.iter().zip(&plain).all(|(x, y)| (x - y).abs() <= f32::EPSILON * y.abs()), "n = {n}");
            let mut y = b.clone();
            axpy4([1.0, 2.0, -1.0, 0.5], [&a, &a, &a, &b], &mut y);
            for i in 0..n {
                assert_eq!(y[i], b[i] * 1.5 + 2.0 * a[i]);
            }
        }
    }
}
