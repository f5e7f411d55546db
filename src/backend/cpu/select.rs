//! Exact top-k of a row of scores.
//!
//! 1. The row is cut into chunks and the largest score of each taken, in one vector pass.
//! 2. The k-th largest of these maxima is a bound: at least k scores reach it.
//! 3. Scores at or above the bound are collected from the chunks whose maximum reaches it.
//! 4. The k best of the collected are selected. A key of (score, lowest index first) makes ties exact.
//!
//! Only positive scores are wanted (the code is relu of the k largest), so fewer than k may come back.

use super::simd::chunk_maxima;
use crate::spec::Activation;

/// Scores in a chunk. A row of 8192 has 256 of them; k above that number takes the plain path.
const CHUNK: usize = 32;

/// Memory that [`top_k`] works in, kept from row to row.
#[derive(Debug, Default, Clone)]
pub struct Scratch {
    maxima: Vec<f32>,
    order: Vec<f32>,
    keys: Vec<u64>,
    magnitudes: Vec<f32>,
}

/// The positive ones among the `k` largest scores, as (index, score) by index into `out`. The lowest index
/// wins a tie. Returns false when a score is NaN or infinite (`out` is then of no use).
pub fn top_k(scores: &[f32], k: usize, scratch: &mut Scratch, out: &mut Vec<(u32, f32)>) -> bool {
    out.clear();
    let n_chunks = scores.len().div_ceil(CHUNK);
    scratch.maxima.resize(n_chunks, 0.0);
    if chunk_maxima(scores, CHUNK, &mut scratch.maxima).is_nan() {
        return false;
    }
    let mut bound = f32::MIN_POSITIVE;
    if k < n_chunks {
        scratch.order.clear();
        scratch.order.extend_from_slice(&scratch.maxima);
        let (_, kth, _) = scratch.order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        bound = bound.max(*kth);
    }
    scratch.keys.clear();
    for (chunk, (values, &max)) in scores.chunks(CHUNK).zip(&scratch.maxima).enumerate() {
        if max >= bound {
            for (i, &value) in values.iter().enumerate() {
                if value >= bound {
                    scratch.keys.push(key(value, (chunk * CHUNK + i) as u32));
                }
            }
        }
    }
    if scratch.keys.len() > k {
        scratch.keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        scratch.keys.truncate(k);
    }
    out.extend(scratch.keys.iter().map(|&key| (!(key as u32), f32::from_bits((key >> 32) as u32))));
    out.sort_unstable_by_key(|&(index, _)| index);
    true
}

/// The entries of a code of at most `k` of `scores`, as (index, value) by index into `out`; else as [`top_k`].
pub fn top(
    activation: Activation,
    scores: &[f32],
    k: usize,
    scratch: &mut Scratch,
    out: &mut Vec<(u32, f32)>,
) -> bool {
    match activation {
        Activation::AbsTopk => top_magnitudes(scores, k, scratch, out),
        _ => top_k(scores, k, scratch, out),
    }
}

/// The `k` scores of largest magnitude, but for zeros, with their signs; else as [`top_k`].
fn top_magnitudes(scores: &[f32], k: usize, scratch: &mut Scratch, out: &mut Vec<(u32, f32)>) -> bool {
    let mut magnitudes = std::mem::take(&mut scratch.magnitudes);
    magnitudes.clear();
    magnitudes.extend(scores.iter().map(|z| z.abs()));
    let finite = top_k(&magnitudes, k, scratch, out);
    scratch.magnitudes = magnitudes;
    out.iter_mut().for_each(|(j, value)| *value = scores[*j as usize]);
    finite
}

/// Bits of a positive float rise with its value; the inverted index makes the lowest index the largest key.
pub fn key(value: f32, index: u32) -> u64 {
    u64::from(value.to_bits()) << 32 | u64::from(!index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::reference;

    fn check(scores: &[f32], k: usize) {
        let mut got = vec![];
        assert!(top_k(scores, k, &mut Scratch::default(), &mut got));
        let wide: Vec<f64> = scores.iter().map(|&v| f64::from(v)).collect();
        let mut want: Vec<(u32, f32)> = reference::top_k(&wide, k)
            .into_iter()
            .filter(|&j| scores[j] >= f32::MIN_POSITIVE)
            .map(|j| (j as u32, scores[j]))
            .collect();
        want.sort_unstable_by_key(|&(j, _)| j);
        assert_eq!(got, want, "M = {}, k = {k}", scores.len());
    }

    fn hash(i: usize) -> f32 {
        let words = crate::noise::philox4x32([i as u32, 1, 2, 3], [4, 5]);
        crate::noise::unit(words[0]) - 0.4
    }

    #[test]
    fn top_k_equals_a_full_sort_at_awkward_sizes() {
        for m in [1, 2, 31, 32, 33, 64, 1000, 1024, 8192, 32_768, 40_001] {
            let scores: Vec<f32> = (0..m).map(hash).collect();
            for k in [1, 2, 16, 31, 32, 33, 64, 255, 256, 257, 512, m] {
                if k <= m {
                    check(&scores, k);
                }
            }
        }
    }

    #[test]
    fn ties_go_to_the_lowest_index_wherever_they_fall() {
        let constant = vec![0.5f32; 3000];
        let steps: Vec<f32> = (0..3000).map(|i| (i % 10) as f32).collect();
        let late: Vec<f32> = (0..3000).map(|i| if i > 2900 { 2.0 } else { 1.0 }).collect();
        for k in [1, 5, 32, 93, 94, 95, 500, 3000] {
            check(&constant, k);
            check(&steps, k);
            check(&late, k);
        }
    }

    #[test]
    fn rows_without_positive_scores_give_an_empty_code() {
        check(&[-1.0; 500], 8);
        check(&[0.0; 500], 8);
        check(&[-0.0, 0.0, -3.0, 1e-45], 2);
        let one: Vec<f32> = (0..5000).map(|i| if i == 4321 { 1.0 } else { -1.0 }).collect();
        check(&one, 64);
    }

    #[test]
    fn magnitudes_compete_and_signs_come_back() {
        let scores: Vec<f32> = (0..5000).map(|i| hash(i) - 0.1).collect();
        for k in [1, 32, 500] {
            let mut got = vec![];
            assert!(top_magnitudes(&scores, k, &mut Scratch::default(), &mut got));
            let wide: Vec<f64> = scores.iter().map(|v| f64::from(v.abs())).collect();
            let mut want: Vec<(u32, f32)> =
                reference::top_k(&wide, k).into_iter().map(|j| (j as u32, scores[j])).collect();
            want.sort_unstable_by_key(|&(j, _)| j);
            assert_eq!(got, want);
            assert!(k == 1 || (got.iter().any(|e| e.1 < 0.0) && got.iter().any(|e| e.1 > 0.0)));
        }
        let mut out = vec![];
        assert!(!top_magnitudes(&[1.0, f32::NEG_INFINITY], 1, &mut Scratch::default(), &mut out));
    }

    #[test]
    fn scores_that_are_not_finite_are_told() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut scores = vec![0.25f32; 777];
            scores[700] = bad;
            assert!(!top_k(&scores, 4, &mut Scratch::default(), &mut vec![]));
        }
    }
}
