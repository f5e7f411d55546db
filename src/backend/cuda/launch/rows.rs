//! Kernels that visit rows: gather and normalise, select, decode, evaluate.

use super::super::buffer::Buffer;
use super::super::device::{Arg, Device, Launch, Matrix, Product, WARP};
use super::super::params::{ROW_LOSS, ROW_QUALITY};
use super::super::tensors::{Operands, Tensors};
use super::super::work::{Entries, Exchange, Sizes, WorkBuffers};
use super::ranks::{Cut, Others, keep_top};
use super::{BLOCK, CarriedOver, DeviceBatch, NULL, by_element, count, grid, kind, u};
use crate::backend::Phase;
use crate::error::Result;
use crate::spec::Activation;

/// Normalised rows into `work.input`, with their means and deviations.
pub fn gather_norm(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    eps: Option<f64>,
    b_pre: u64,
    work: &mut WorkBuffers,
) -> Result<()> {
    let name = by_element(s, ["gather_norm_f32", "gather_norm_bf16"]);
    let args = [
        Arg::Pointer(batch.data),
        kind(s),
        Arg::Pointer(batch.rows),
        u(batch.n)?,
        Arg::Pointer(b_pre),
        u(s.d)?,
        u(s.pitch)?,
        Arg::U32(u32::from(eps.is_some())),
        Arg::F32(eps.unwrap_or(0.0) as f32),
        work.input.holds(batch.n * s.pitch)?,
        work.mean.holds(batch.n)?,
        work.std.holds(batch.n)?,
    ];
    let launch = Launch { grid: grid(batch.n.div_ceil((BLOCK / WARP) as usize))?, block: BLOCK, shared: 0 };
    // SAFETY: outputs were checked for N rows; b_pre holds `pitch` values (`Tensors`); row numbers were checked
    // against the data by the engine.
    unsafe { device.launch(name, launch, &args) }
}

/// `scores = input W_enc^T`.
pub fn encode(
    device: &mut dyn Device,
    s: &Sizes,
    n: usize,
    enc: Matrix,
    work: &mut WorkBuffers,
) -> Result<()> {
    let a = work.input.matrix(0, n, s.pitch, s.pitch)?;
    let out = work.scores.matrix(0, n, s.m, s.score_pitch)?;
    // SAFETY: `matrix` checked both buffers; `enc` comes from `Tensors::operands`; they are different memory.
    unsafe {
        device.product(&Product { a, a_transposed: false, b: enc, b_transposed: true, out, add: false })
    }
}

/// The kernel that selects a row's entries.
fn select(s: &Sizes) -> &'static str {
    match s.activation {
        Activation::AbsTopk => by_element(s, ["topk_abs_f32", "topk_abs_bf16"]),
        _ => by_element(s, ["topk_stream_f32", "topk_stream_bf16"]),
    }
}

/// The top k of each row into `work.main`, or its candidates, of all `others`' latents too; with the softmax of each row in that phase. Scores of
/// candidates that will be weighed go to `work.gates`. Latents of the top k have fired where `count_fired`; among
/// candidates [`super::gate_weights`] decides which.
#[allow(clippy::too_many_arguments)]
pub fn topk(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    b_lat: u64,
    shared: &mut CarriedOver,
    count_fired: bool,
    phase: Phase,
    others: Others<'_>,
    work: &mut WorkBuffers,
) -> Result<()> {
    if s.activation == Activation::BatchTopk {
        return super::batch_topk(device, s, batch, b_lat, shared, phase, others, work);
    }
    let n = batch.n;
    let soft = phase == Phase::Softmax;
    let (width, weighed) = match phase {
        Phase::Weighed => (s.pool, work.gates.as_ref()),
        Phase::LargerK => (s.pool, None),
        Phase::Hard | Phase::Softmax => (s.k, None),
    };
    work.main.k = width;
    let scores = work.scores.holds(n * s.score_pitch)?;
    let count_fired = count_fired && !phase.has_candidates();
    let fired = if count_fired && others.is_none() { shared.fired.holds(s.m)? } else { NULL };
    let values = weighed.map_or(&work.main.value, |gates| &gates.score);
    let to = selected(work, &work.main, values, n, width)?;
    let mut args = vec![scores, Arg::Pointer(b_lat), u(s.m)?, u(s.score_pitch)?, u(width)?];
    let name = if soft {
        by_element(s, ["topk_softmax_f32", "topk_softmax_bf16"])
    } else {
        args.push(NULL);
        select(s)
    };
    args.extend([Arg::Pointer(batch.step), shared.control.holds(1)?]);
    args.extend(to);
    match (&work.soft, soft) {
        (Some(half), true) => args.extend([
            half.kth.holds(n)?,
            work.bad.holds(n)?,
            fired,
            Arg::Pointer(batch.given),
            half.rows.holds(n)?,
        ]),
        _ => args.extend([work.bad.holds(n)?, fired]),
    }
    let launch = Launch { grid: grid(n)?, block: BLOCK, shared: 0 };
    // SAFETY: scores and outputs were checked for N rows, flags for M; b_lat holds M (`Tensors`); `width` is at
    // most `MOST_ACTIVE` (`Sizes::new`); `given` holds N M where it is not null (engine).
    unsafe { device.launch(name, launch, &args)? };
    match others {
        Some(ranks) => keep_top(device, s, batch, ranks, Cut::Main(phase), shared, count_fired, work),
        None => Ok(()),
    }
}

/// Where a selection of `k` latents per row writes them, their values, starts and counts: into `e`, or to what other ranks get.
fn selected(work: &WorkBuffers, e: &Entries, value: &Buffer<f32>, n: usize, k: usize) -> Result<[Arg; 4]> {
    let (index, value, first, count) = match &work.exchange {
        Some(Exchange { sent, .. }) => (&sent.index, &sent.value, &sent.first, &sent.count),
        None => (&e.index, value, &e.first, &e.count),
    };
    Ok([index.holds(n * k)?, value.holds(n * k)?, first.holds(n)?, count.holds(n)?])
}

/// The top `aux_k` of dead latents into `work.aux`.
#[allow(clippy::too_many_arguments)]
pub fn topk_dead(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    tensors: &Tensors,
    shared: &mut CarriedOver,
    others: Others<'_>,
    work: &WorkBuffers,
) -> Result<()> {
    let Some(e) = &work.aux else { return Ok(()) };
    let n = batch.n;
    let [index, value, first, count] = selected(work, e, &e.value, n, s.aux_k)?;
    let args = [
        work.scores.holds(n * s.score_pitch)?,
        Arg::Pointer(tensors.lat.w.address()),
        u(s.m)?,
        u(s.score_pitch)?,
        u(s.aux_k)?,
        tensors.idle.holds(s.m)?,
        Arg::Pointer(batch.step),
        shared.control.holds(1)?,
        index,
        value,
        first,
        count,
        NULL,
        NULL,
    ];
    let launch = Launch { grid: grid(n)?, block: BLOCK, shared: 0 };
    // SAFETY: as in `topk`; idle counts hold M.
    unsafe { device.launch(select(s), launch, &args)? };
    match others {
        Some(ranks) => keep_top(device, s, batch, ranks, Cut::Aux, shared, false, work),
        None => Ok(()),
    }
}

/// What kernels that decode a row's entries begin with: the rows, the decoder, the entries.
fn entry_args(s: &Sizes, batch: &DeviceBatch, w: &Operands, work: &WorkBuffers) -> Result<Vec<Arg>> {
    let (n, e) = (batch.n, &work.main);
    Ok(vec![
        Arg::Pointer(batch.data),
        kind(s),
        Arg::Pointer(batch.rows),
        u(s.d)?,
        work.mean.holds(n)?,
        work.std.holds(n)?,
        Arg::Pointer(w.dec.address),
        Arg::Pointer(w.b_pre),
        u(s.pitch)?,
        e.index.holds(n * e.k)?,
        e.value.holds(n * e.k)?,
        e.first.holds(n)?,
        e.count.holds(n)?,
        u(s.staged(e.k))?,
        work.ends.holds(s.prefixes.len())?,
        u(s.prefixes.parts())?,
    ])
}

/// Reconstruction, loss, dy', and the gradients of sparse entries.
pub fn decode(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    w: &Operands,
    shared: &CarriedOver,
    phase: Phase,
    work: &mut WorkBuffers,
) -> Result<()> {
    let n = batch.n;
    let plain = s.activation.is_per_row() && s.prefixes.parts() == 1;
    let names = if plain { ["decode_f32", "decode_bf16"] } else { ["decode_parts_f32", "decode_parts_bf16"] };
    let name = by_element(s, names);
    let parts = s.prefixes.parts();
    let (soft_recon, soft_rows) = match (&work.soft, phase) {
        (Some(half), Phase::Softmax) => (half.recon.holds(n * s.pitch)?, half.rows.holds(n)?),
        (Some(half), _) if s.is_dense() => (half.recon.holds(parts * n * s.pitch)?, NULL),
        _ => (NULL, NULL),
    };
    let (aux, aux_recon, aux_grad) = match (&work.aux, &work.aux_recon) {
        (Some(e), Some(recon)) => {
            let k = s.aux_k;
            let entries =
                [e.index.holds(n * k)?, e.value.holds(n * k)?, e.first.holds(n)?, e.count.holds(n)?, u(k)?];
            (entries, recon.holds(n * s.pitch)?, e.grad.holds(n * k)?)
        }
        _ => ([NULL, NULL, NULL, NULL, Arg::U32(0)], NULL, NULL),
    };
    let e = &work.main;
    let recon = work.recon.as_ref().map_or(Ok(NULL), |recon| recon.holds(n * s.pitch))?;
    let mut args = entry_args(s, batch, w, work)?;
    args.extend([soft_recon, soft_rows]);
    args.extend(aux);
    args.extend([
        Arg::Pointer(batch.step),
        shared.control.holds(1)?,
        work.grad_recon.holds(parts * n * s.pitch)?,
        e.grad.holds(n * e.k)?,
        aux_recon,
        aux_grad,
        recon,
        work.loss.holds(n * ROW_LOSS)?,
    ]);
    let rows = parts + usize::from(s.aux_k > 0);
    let bytes = s.slab_sums() + 4 * rows * s.pitch + 8 * s.staged(e.k).max(s.aux_k);
    // What goes by slabs is shared out among all warps.
    let block = if plain || s.aux_k > 0 { BLOCK } else { s.row_block() };
    let launch = Launch { grid: grid(n)?, block, shared: count(bytes)? };
    // SAFETY: every buffer was checked for N rows; the decoder holds (M, pitch) and b_pre (pitch) (`Tensors`);
    // indices are below M (`topk`); row numbers were checked against the data by the engine.
    unsafe { device.launch(name, launch, &args) }
}

/// Loss of the step from its rows, into the ring of outcomes.
pub fn finish_loss(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    work: &WorkBuffers,
    carried: Option<&Buffer<f32>>,
    shared: &mut CarriedOver,
) -> Result<()> {
    let args = [
        work.loss.holds(batch.n * ROW_LOSS)?,
        work.bad.holds(batch.n)?,
        work.active(batch.n)?,
        carried.map_or(Ok(NULL), |carried| carried.holds(1))?,
        u(s.d)?,
        u(s.shard.all)?,
        Arg::Pointer(batch.step),
        shared.control.holds(1)?,
        shared.outcomes.holds(1)?,
    ];
    let launch = Launch { grid: (1, 1), block: 1024, shared: 0 };
    // SAFETY: rows were checked; the slot in the step's numbers is below the ring's length (engine).
    unsafe { device.launch("finish_loss", launch, &args) }
}

/// Quality of the rows of a batch, added to the running sums. `dense` where `soft.recon` holds the code's part.
pub fn evaluate(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    w: &Operands,
    dense: bool,
    work: &mut WorkBuffers,
    shared: &mut CarriedOver,
) -> Result<()> {
    let n = batch.n;
    let name = by_element(s, ["evaluate_f32", "evaluate_bf16"]);
    let planes = s.prefixes.parts() * n * s.pitch;
    let recon = match (&work.soft, &work.exchange, dense) {
        (Some(half), _, true) => half.recon.holds(planes)?,
        (_, Some(exchange), false) => exchange.planes.holds(planes)?,
        _ => NULL,
    };
    let prefixes = s.prefixes.len();
    let by_prefix = if prefixes > 0 { work.by_prefix.holds(n * prefixes)? } else { NULL };
    let quality = work.quality.holds(n * ROW_QUALITY)?;
    let mut args = entry_args(s, batch, w, work)?;
    args.extend([
        recon,
        work.active(n)?,
        work.bad.holds(n)?,
        shared.fired_rows.holds(s.m)?,
        quality,
        by_prefix,
    ]);
    let bytes = 8 * s.staged(work.main.k) + if prefixes > 0 { 4 * s.pitch } else { 0 };
    let launch = Launch { grid: grid(n)?, block: s.row_block(), shared: count(bytes)? };
    // SAFETY: as in `decode`; counts of latents hold M.
    unsafe {
        device.launch(name, launch, &args)?;
        let sum = Launch { grid: (1, 1), block: 1024, shared: 0 };
        device.launch(
            "add_quality",
            sum,
            &[quality, by_prefix, u(prefixes)?, u(n)?, shared.quality.holds(1)?],
        )
    }
}
