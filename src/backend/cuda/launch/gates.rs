//! Kernels that weigh a row's candidates, before the decoder and after it.

use super::super::device::{Arg, Device, Launch, WARP};
use super::super::work::{Exchange, Gates, Sizes, WorkBuffers};
use super::{BLOCK, CarriedOver, DeviceBatch, count, grid, u};
use crate::error::{Error, Result};
use crate::spec::Relaxation;

/// One block per row; threads for `width` candidates, up to four each.
fn launch(n: usize, width: usize) -> Result<Launch> {
    let block = count(width)?.next_multiple_of(WARP).clamp(WARP, BLOCK);
    Ok(Launch { grid: grid(n)?, block, shared: 0 })
}

fn gates(work: &WorkBuffers) -> Result<&Gates> {
    work.gates.as_ref().ok_or_else(|| {
        Error::Failed("buffers of candidates are missing on the GPU; please report this".into())
    })
}

/// Latents of all candidates of a row, where they start, and how many: those of all ranks.
fn candidates(n: usize, work: &WorkBuffers) -> Result<[Arg; 3]> {
    let all = n * work.main.k;
    match &work.exchange {
        Some(Exchange { all: e, .. }) => Ok([e.index.holds(all)?, e.first.holds(n)?, e.count.holds(n)?]),
        None => Ok([work.main.index.holds(all)?, work.main.first.holds(n)?, work.main.count.holds(n)?]),
    }
}

/// The code of the candidates in `work.main`, and which latents fired.
pub fn gate_weights(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    relaxation: Relaxation,
    shared: &mut CarriedOver,
    work: &mut WorkBuffers,
) -> Result<()> {
    let (n, e) = (batch.n, &work.main);
    let all = n * e.k;
    let [index, first, held] = candidates(n, work)?;
    let fired = shared.fired.holds(s.m)?;
    let plain = launch(n, e.k)?;
    if !relaxation.is_gated() {
        let step = Arg::Pointer(batch.step);
        let args = [index, e.value.holds(all)?, first, held, u(s.k)?, step, u(s.m)?, fired];
        // SAFETY: lists were checked for N rows of `e.k` entries, at most `MOST_ACTIVE` (`Sizes::new`) and so four a
        // thread; flags for M; counts are at most `e.k` and indices below M (`topk`).
        return unsafe { device.launch("fire_top", plain, &args) };
    }
    let gates = gates(work)?;
    let args = [
        index,
        gates.score.holds(all)?,
        first,
        held,
        u(s.k)?,
        Arg::Pointer(batch.step),
        u(s.m)?,
        fired,
        gates.direct.holds(all)?,
        e.value.holds(all)?,
        gates.threshold.holds(n)?,
    ];
    // SAFETY: as above; outputs were checked for N rows.
    unsafe { device.launch("gate_weights_lapsum", plain, &args) }
}

/// dh of the candidates becomes dz, where they were weighed.
pub fn gate_gradients(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    work: &mut WorkBuffers,
) -> Result<()> {
    let (n, e, gates) = (batch.n, &work.main, gates(work)?);
    let all = n * e.k;
    let (score, direct) = (gates.score.holds(all)?, gates.direct.holds(all)?);
    let ([_, first, held], k, grad) = (candidates(n, work)?, u(s.k)?, e.grad.holds(all)?);
    let step = Arg::Pointer(batch.step);
    let args = [score, direct, first, held, k, step, gates.threshold.holds(n)?, grad];
    // SAFETY: lists were checked for N rows of `e.k` entries, as in `gate_weights`, which left the thresholds.
    unsafe { device.launch("gate_gradients_lapsum", launch(n, e.k)?, &args) }
}
