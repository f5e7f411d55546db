//! The memory that training on the CPU takes, before it is taken.

use super::block::latents_in_block;
use super::fast::EVAL_ROWS;
use super::relax::{DENSEST, Mode};
use crate::spec::{Activation, Inference, Relaxation, Training};

/// Bytes of an entry of a row's code: [`super::sparse::CodeChunk`] and [`super::sparse::ByLatent`].
const ENTRY: u128 = 24 + 12;
/// Bytes of what a block of latents is cut into for a step.
const BLOCK: u128 = 400;

/// Bytes of memory that training takes beside the data, without what libraries need for themselves; `n_data` is the
/// number of rows, `n_train` that of the training rows.
pub fn bytes(t: &Training, n_train: usize, n_data: usize) -> u64 {
    let spec = &t.model;
    let least = EVAL_ROWS.min(n_train) as u128;
    // Wide numbers: asked about sizes that no machine has, too.
    let [d, m, n, k, n_data, n_train] =
        [t.d_in, t.n_latents, t.schedule.batch_size, spec.forward.k, n_data, n_train].map(|v| v as u128);
    let warm_up = t.schedule.anneal_steps > 0;
    let softmax = warm_up && spec.warmup.relaxation == Relaxation::Softmax;
    let clip = spec.optimizer.clip_norm.is_some();
    let params = u128::from(t.n_params());
    let copies = 3 + u128::from(spec.optimizer.ema.is_some()) + u128::from(clip);
    // Evaluations use the buffers of steps.
    let rows = n.max(least);
    // Of thresholds or relu, which may have many active latents at the start: the code as a matrix too, and entries up to the
    // share from which on it is one. With prefixes all of them are entries.
    let unplaced = matches!(spec.forward.activation, Activation::JumpRelu | Activation::Relu);
    let prefixes = spec.forward.prefixes;
    let dense = unplaced && prefixes.is_empty();
    let activations =
        2 + prefixes.parts() as u128 + u128::from(softmax || dense) + u128::from(spec.objective.aux_k > 0);
    let matrices = if dense { 2 } else { 1 };
    let state = 4 * (copies * params + m + matrices * rows * m + activations * rows * d);
    let pooled =
        if warm_up && spec.warmup.relaxation.has_candidates() { k.max(spec.warmup.pool as u128) } else { k };
    let support = match (unplaced, dense) {
        (true, false) => n * m / 2,
        (true, true) => n * m / DENSEST as u128,
        _ if softmax => n * m / DENSEST as u128,
        _ => 0,
    };
    let aux = n * (spec.objective.aux_k as u128).min(m);
    // Each latent's first entry, and counts of the latents that fire.
    let by_latent = 8 * m * (3 + u128::from(aux > 0));
    let entries = ENTRY * (n * pooled + support + aux) + by_latent + relu(t, rows, m);
    let at_once = |mode| latents_in_block(mode) as u128;
    let mode = if softmax || dense { Mode::Dense } else { Mode::Hard };
    let gradients = if clip { 0 } else { 2 * d };
    let of_thread =
        at_once(mode) * (gradients + if softmax || dense { n } else { 0 }) + if softmax { m } else { 0 };
    let threads = 4 * rayon::current_num_threads() as u128 * of_thread;
    // A part of the pre-bias's gradient for each block.
    let blocks = m / at_once(Mode::Hard) * (4 * d + BLOCK);
    let order = 4 * (2 * n_data + 3 * n_train);
    u64::try_from(state + entries + threads + blocks + order).unwrap_or(u64::MAX)
}

/// Bytes of the codes of an evaluation with all positive scores: half of them, as long as nothing is learned.
fn relu(t: &Training, rows: u128, m: u128) -> u128 {
    // A tenth more, for lists grow by doubling.
    if t.model.forward.inference == Inference::Relu { 24 * rows * m / 2 * 11 / 10 } else { 0 }
}
