//! Forward pass of the relaxed top-k on rows of scores, in place: no second (N, M) buffer.
//!
//! 1. The hard code is selected from the scores.
//! 2. `t = relu(z) + g` into a row of scratch; `max t` and `S` on the way.
//! 3. `e^((t - max) / tau)` takes the score's place; its lowest bit remembers the sign of the score.
//! 4. Where all but [`LEFT_OUT`] of a row's weight lies on few latents, the decoder and its gradients use these
//!    alone ([`Mode::Support`]). Else everything stays dense ([`Mode::Dense`]).

use super::gates::{GateRule, Gates};
use super::select::{self, Scratch};
use super::simd;
use super::sparse::CodeChunk;
use crate::backend::{Phase, StepPlan};
use crate::noise::Noise;
use crate::spec::{Activation, ModelSpec};

/// Most of a row's weight that the support leaves out: its effect on a gradient stays a few float32 roundings.
/// (A cut at a share of the largest weight alone would not do: thousands of weights just below it add up.)
pub const LEFT_OUT: f64 = 1.0 / 524_288.0;

/// Shares of the row's largest weight at which the support may end, the smallest support first.
const CUTS: [f32; 3] = [1.0 / 16_777_216.0, 1.0 / 268_435_456.0, 1.0 / 4_294_967_296.0];

/// The support is used where it holds at most one in `DENSEST` entries; gathers cost about that much more an
/// entry than a dense product (measured by `cargo bench --bench cpu_ops`).
pub const DENSEST: usize = 12;

/// How the decoder and its gradients see the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Only the top k.
    Hard,
    /// The top k and the support of the softmax.
    Support,
    /// Every latent.
    Dense,
    /// Every latent, of a code without a softmax that many latents take part in.
    DenseCode,
}

/// What the softmax of a row leaves beside the exponentials.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowSoftmax {
    /// `1 / sum_j e_j`: p = e * inv_total.
    pub inv_total: f32,
    /// `S`, the sum of positive scores.
    pub sum: f32,
    /// Weights in the support.
    pub support: usize,
    /// The support's smallest exponential.
    pub cut: f32,
}

/// Memory of one task.
#[derive(Debug, Default)]
pub struct RowScratch {
    /// For the selection.
    pub select: Scratch,
    /// Selected (latent, score).
    pub top: Vec<(u32, f32)>,
    gates: Gates,
    keys: Vec<u64>,
    perturbed: Vec<f32>,
}

/// Selects the hard code of `z` into `chunk` (as the row after its last) and returns false where a score is
/// not finite. `scale` multiplies the value: alpha while the mix is soft.
pub fn hard_row(
    activation: Activation,
    z: &[f32],
    k: usize,
    scale: f32,
    scratch: &mut RowScratch,
    chunk: &mut CodeChunk,
) -> bool {
    let finite = select::top(activation, z, k, &mut scratch.select, &mut scratch.top);
    for &(j, value) in &scratch.top {
        chunk.push(j, scale * value, 0.0, scale);
        chunk.fired.push(j);
    }
    chunk.end_row();
    finite
}

/// The code of a warm-up over candidates into `chunk`; false where a score is not finite.
pub fn candidate_row(
    spec: &ModelSpec,
    plan: &StepPlan<'_>,
    z: &[f32],
    scratch: &mut RowScratch,
    chunk: &mut CodeChunk,
) -> bool {
    let RowScratch { select, top, gates, keys, .. } = scratch;
    let finite = select::top_k(z, spec.candidates(plan), select, top);
    keys.clear();
    keys.extend(top.iter().map(|&(j, value)| select::key(value, j)));
    let mut least = 0;
    if top.len() > spec.forward.k {
        least = *keys.select_nth_unstable_by(spec.forward.k - 1, |a, b| b.cmp(a)).1;
    }
    let alpha = plan.alpha as f32;
    let phase = spec.phase(plan);
    if phase == Phase::Weighed {
        gates.forward(GateRule::new(spec, plan), top.iter().map(|&(_, z)| z));
    }
    for (i, &(j, value)) in top.iter().enumerate() {
        let is_top = select::key(value, j) >= least;
        let factor = match phase {
            Phase::Weighed => (1.0 - alpha) * gates.weights[i] as f32 + if is_top { alpha } else { 0.0 },
            _ => 1.0,
        };
        chunk.push(j, factor * value, 0.0, factor);
        if is_top {
            chunk.fired.push(j);
        }
    }
    chunk.end_row();
    finite
}

/// Steps 2 and 3 on one row of scores.
pub fn soften_row(plan: &StepPlan<'_>, n: usize, z: &mut [f32], scratch: &mut RowScratch) -> RowSoftmax {
    scratch.perturbed.resize(z.len(), 0.0);
    let t = &mut scratch.perturbed;
    let row = match plan.noise {
        Noise::Philox { seed } => simd::perturb(seed, plan.step, n as u32, z, t),
        Noise::Given(u) => simd::perturb_given(&u[n * z.len()..(n + 1) * z.len()], z, t),
    };
    let total = simd::exponentials(row.max, (1.0 / plan.tau) as f32, t, z);
    let whole = (z.len(), 0.0);
    let (support, cut) = CUTS
        .into_iter()
        .find_map(|cut| {
            let (count, below) = simd::split_at(cut, z);
            (below <= LEFT_OUT * total).then_some((count, cut))
        })
        .unwrap_or(whole);
    RowSoftmax { inv_total: (1.0 / total) as f32, sum: row.sum as f32, support, cut }
}

/// Rewrites the chunk of hard entries as the union with the support: each entry's value becomes
/// `(1 - alpha) p S + alpha hard`. `e` holds the exponentials of the chunk's rows (rows x M).
pub fn add_support(chunk: &mut CodeChunk, softmax: &[RowSoftmax], alpha: f64, e: &[f32], m: usize) {
    let most = chunk.index.len() + softmax.iter().map(|soft| soft.support).sum::<usize>();
    let mut merged = CodeChunk::with_capacity(most);
    merged.fired = std::mem::take(&mut chunk.fired);
    for (i, (soft, e)) in softmax.iter().zip(e.chunks_exact(m)).enumerate() {
        let mut hard = chunk.row(i).peekable();
        let rest = (1.0 - alpha) as f32 * soft.sum;
        let mut emit = |j: usize, entry: Option<usize>| {
            let p = e[j] * soft.inv_total;
            let share = if simd::was_positive(e[j]) { p } else { -p };
            let (value, direct) = entry.map_or((0.0, 0.0), |h| (chunk.value[h], chunk.direct[h]));
            merged.push(j as u32, rest * p + value, share, direct);
        };
        for (j, &weight) in e.iter().enumerate() {
            let is_hard = hard.peek().is_some_and(|&h| chunk.index[h] as usize == j);
            if is_hard {
                emit(j, hard.next());
            } else if weight >= soft.cut {
                emit(j, None);
            }
        }
        merged.end_row();
    }
    *chunk = merged;
}
