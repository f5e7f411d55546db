//! What a rank does where latents are shared out: `kernels/ranks.cu`, and what ranks add up or exchange between.

use super::super::buffer::Buffer;
use super::super::device::{Arg, Device, Launch, WARP};
use super::super::params::ROW_LOSS;
use super::super::ranks::{Number, Ranks, Span};
use super::super::tensors::Operands;
use super::super::work::{BLOCKS, Exchange, Sizes, WorkBuffers};
use super::{BLOCK, CarriedOver, DeviceBatch, NULL, by_element, grid, kind, per_value, u};
use crate::backend::Phase;
use crate::error::{Error, Result};

/// The ranks of a run, where its latents are shared out; as launchers of a step are given them.
pub type Others<'a> = Option<&'a mut Box<dyn Ranks>>;

fn exchange(work: &WorkBuffers) -> Result<&Exchange> {
    work.exchange
        .as_ref()
        .ok_or_else(|| Error::Failed("buffers for ranks are missing; please report this".into()))
}

/// Every one of `len` values at `values` becomes the sum over ranks.
pub(super) fn sum(
    device: &mut dyn Device,
    ranks: &mut Box<dyn Ranks>,
    values: &[(Arg, usize, Number)],
) -> Result<()> {
    let spans = values.iter().map(|&(arg, len, number)| Span::at(arg, len, number));
    let spans = spans.collect::<Result<Vec<Span>>>()?;
    // SAFETY: every caller checked its buffer for so many values, and buffers live until the device has done its work.
    unsafe { ranks.sum(device, &spans) }
}

/// The values of all ranks, to the buffers beside.
pub(super) fn gather(
    device: &mut dyn Device,
    ranks: &mut Box<dyn Ranks>,
    values: &[(Arg, usize, Arg)],
) -> Result<()> {
    let mut spans = vec![];
    for &(from, len, to) in values {
        let to = Span::at(to, len, Number::U32)?;
        spans.push((Span::at(from, len, Number::U32)?, to.address));
    }
    // SAFETY: every caller checked its buffers for so many values, and G times as many; they are different memory.
    unsafe { ranks.gather(device, &spans) }
}

/// Which entries of a row are cut to those of all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The top k, or the candidates, with as many places as the lists have.
    Main(Phase),
    /// Those of the auxiliary loss.
    Aux,
}

/// The best of all ranks, from the best of each in `exchange.sent`: the rank's own into `work.main` or `work.aux`. Latents of the
/// rank have fired where `count_fired`.
#[allow(clippy::too_many_arguments)]
pub fn keep_top(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    ranks: &mut Box<dyn Ranks>,
    cut: Cut,
    shared: &mut CarriedOver,
    count_fired: bool,
    work: &WorkBuffers,
) -> Result<()> {
    let (n, x) = (batch.n, exchange(work)?);
    let missing = || Error::Failed("lists of the auxiliary loss are missing; please report this".into());
    let (e, all) = match cut {
        Cut::Main(_) => (&work.main, &x.all),
        Cut::Aux => (work.aux.as_ref().ok_or_else(missing)?, &x.all_aux),
    };
    let (k, g) = (e.k, s.shard.ranks);
    let sent = [x.sent.index.holds(n * k)?, x.sent.value.holds(n * k)?, x.sent.count.holds(n)?];
    let gathered = [
        x.gathered.index.holds(g * n * k)?,
        x.gathered.value.holds(g * n * k)?,
        x.gathered.count.holds(g * n)?,
    ];
    let soft = match (&work.soft, cut) {
        (Some(half), Cut::Main(Phase::Softmax)) => Some(half),
        _ => None,
    };
    let mut values =
        vec![(sent[0], n * k, gathered[0]), (sent[1], n * k, gathered[1]), (sent[2], n, gathered[2])];
    if let Some(half) = soft {
        values.push((half.rows.holds(n)?, 4 * n, x.softmaxes.holds(4 * g * n)?));
    }
    gather(device, ranks, &values)?;
    let value = match (&work.gates, cut) {
        (Some(gates), Cut::Main(Phase::Weighed)) => &gates.score,
        _ => &e.value,
    };
    let args = [
        &gathered[..],
        &[u(n)?, u(k)?, u(g)?, u(s.shard.rank)?, u(s.shard.groups())?, Arg::U32(u32::from(cut == Cut::Aux))],
        &[
            Arg::Pointer(batch.step),
            all.index.holds(n * k)?,
            value.holds(n * k)?,
            all.first.holds(n)?,
            all.count.holds(n)?,
            e.index.holds(n * k)?,
            e.first.holds(n)?,
            e.count.holds(n)?,
            soft.map_or(Ok(NULL), |half| half.kth.holds(n))?,
            if count_fired { shared.fired.holds(s.m)? } else { NULL },
        ],
    ]
    .concat();
    // SAFETY: lists were checked for N rows of k entries, those of all ranks for G times as many, of which the kernel keeps at
    // most k per row; latents of a rank are below its M (`topk`).
    unsafe { device.launch("keep_top", per_value(n * WARP as usize)?, &args)? };
    let Some(half) = soft else { return Ok(()) };
    let args = [x.softmaxes.holds(4 * g * n)?, u(n)?, u(g)?, Arg::Pointer(batch.step), half.rows.holds(n)?];
    // SAFETY: both were checked for N rows of four words, one of them for each rank.
    unsafe { device.launch("softmax_of_ranks", per_value(n)?, &args) }
}

/// Active latents of each row and flags of rows over all ranks, after their sum.
fn settle(device: &mut dyn Device, n: usize, x: &Exchange, bad: &Buffer<u32>) -> Result<()> {
    let args = [x.facts.holds(3 * n)?, u(n)?, x.active.holds(n)?, bad.holds(n)?];
    // SAFETY: all were checked for N rows.
    unsafe { device.launch("facts_of_ranks", per_value(n)?, &args) }
}

/// What of a code is added up over ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summed {
    /// The code is entries; else `soft.recon` has its segments' parts.
    pub entries: bool,
    /// A softmax has a dense part besides, in `soft.recon`.
    pub softmax: bool,
    /// Of a training step: with the auxiliary loss, and the penalty's part of a dense code in `loss`.
    pub step: bool,
}

/// The rank's part of the reconstructions and of what is known of rows, and their sums over ranks.
#[allow(clippy::too_many_arguments)]
pub fn add_parts(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    w: &Operands,
    ranks: &mut Box<dyn Ranks>,
    parts: Summed,
    shared: &mut CarriedOver,
    work: &WorkBuffers,
) -> Result<()> {
    let (n, x, e, p) = (batch.n, exchange(work)?, &work.main, s.prefixes.parts());
    let facts = [
        e.index.holds(n * e.k)?,
        e.value.holds(n * e.k)?,
        if parts.entries { e.first.holds(n)? } else { NULL },
        e.count.holds(n)?,
        work.bad.holds(n)?,
        if !parts.entries && parts.step { work.loss.holds(n * ROW_LOSS)? } else { NULL },
        u(n)?,
        if parts.entries && !parts.step { shared.fired_rows.holds(s.m)? } else { NULL },
        x.facts.holds(3 * n)?,
    ];
    // SAFETY: lists and outputs were checked for N rows; counts of latents hold M.
    unsafe { device.launch("own_facts", per_value(n * WARP as usize)?, &facts)? };
    let name = by_element(s, ["own_parts_f32", "own_parts_bf16"]);
    let launch = Launch { grid: grid(n)?, block: s.row_block(), shared: 0 };
    let mut sums = vec![(facts[8], 3 * n, Number::F64)];
    if parts.entries {
        let planes = x.planes.holds(p * n * s.pitch)?;
        let args = [
            Arg::Pointer(w.dec.address),
            u(s.pitch)?,
            facts[0],
            facts[1],
            facts[2],
            facts[3],
            work.ends.holds(s.prefixes.len())?,
            u(p)?,
            planes,
        ];
        // SAFETY: as above; the decoder holds (M, pitch) (`Tensors`), and latents of entries are below M (`topk`).
        unsafe { device.launch(name, launch, &args)? };
        sums.push((planes, p * n * s.pitch, Number::F32));
    }
    if let (Some(half), false) = (&work.soft, parts.entries && !parts.softmax) {
        sums.push((half.recon.holds(p * n * s.pitch)?, p * n * s.pitch, Number::F32));
    }
    if let (Some(aux), true) = (&work.aux, parts.step) {
        let plane = x.aux.holds(n * s.pitch)?;
        let args = [
            Arg::Pointer(w.dec.address),
            u(s.pitch)?,
            aux.index.holds(n * aux.k)?,
            aux.value.holds(n * aux.k)?,
            aux.first.holds(n)?,
            aux.count.holds(n)?,
            NULL,
            u(1)?,
            plane,
        ];
        // SAFETY: as above.
        unsafe { device.launch(name, launch, &args)? };
        sums.push((plane, n * s.pitch, Number::F32));
    }
    sum(device, ranks, &sums)?;
    settle(device, n, x, &work.bad)
}

/// Reconstruction, loss and dy' from the sums over ranks, and the gradients of the rank's own entries.
pub fn reconstruct(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    w: &Operands,
    parts: Summed,
    shared: &CarriedOver,
    work: &WorkBuffers,
) -> Result<()> {
    let (n, x, p) = (batch.n, exchange(work)?, s.prefixes.parts());
    let (rows, values) = (n * s.pitch, p * n * s.pitch);
    let half = || {
        work.soft
            .as_ref()
            .ok_or_else(|| Error::Failed("the dense half is missing; please report this".into()))
    };
    let planes = if parts.entries { x.planes.holds(values)? } else { half()?.recon.holds(values)? };
    let (soft_recon, soft) = match parts.softmax {
        true => (half()?.recon.holds(rows)?, half()?.rows.holds(n)?),
        false => (NULL, NULL),
    };
    let aux = work.aux.as_ref().zip(work.aux_recon.as_ref());
    let args = [
        Arg::Pointer(batch.data),
        kind(s),
        Arg::Pointer(batch.rows),
        u(s.d)?,
        work.mean.holds(n)?,
        work.std.holds(n)?,
        Arg::Pointer(w.b_pre),
        u(s.pitch)?,
        u(p)?,
        soft_recon,
        soft,
        Arg::Pointer(batch.step),
        shared.control.holds(1)?,
        x.facts.holds(3 * n)?,
        planes,
        aux.map_or(Ok(NULL), |_| x.aux.holds(rows))?,
        work.grad_recon.holds(values)?,
        aux.map_or(Ok(NULL), |(_, recon)| recon.holds(rows))?,
        work.recon.as_ref().map_or(Ok(NULL), |recon| recon.holds(rows))?,
        work.loss.holds(n * ROW_LOSS)?,
    ];
    let name = by_element(s, ["reconstruct_f32", "reconstruct_bf16"]);
    let launch = Launch { grid: grid(n)?, block: BLOCK, shared: 0 };
    // SAFETY: every buffer was checked for N rows, planes for all segments; b_pre holds pitch values (`Tensors`); row numbers
    // were checked against the data by the engine.
    unsafe { device.launch(name, launch, &args)? };
    let mut dots = |e: &super::super::work::Entries, planes, ends, p, penalised: bool| {
        let all = n * e.k;
        let args = [
            Arg::Pointer(w.dec.address),
            u(s.pitch)?,
            e.index.holds(all)?,
            e.value.holds(all)?,
            e.first.holds(n)?,
            e.count.holds(n)?,
            ends,
            u(p)?,
            planes,
            Arg::U32(u32::from(penalised)),
            Arg::Pointer(batch.step),
            e.grad.holds(all)?,
        ];
        let name = by_element(s, ["own_dots_f32", "own_dots_bf16"]);
        // SAFETY: as above; lists were checked for N rows, and their latents are below M (`topk`).
        unsafe { device.launch(name, launch, &args) }
    };
    if parts.entries && !parts.softmax {
        dots(&work.main, planes, work.ends.holds(s.prefixes.len())?, p, true)?;
    }
    match &work.aux {
        Some(e) => dots(e, x.aux.holds(rows)?, NULL, 1, false),
        None => Ok(()),
    }
}

/// Gradients of all candidates, from those of each rank's own.
pub fn add_gradients(
    device: &mut dyn Device,
    n: usize,
    ranks: &mut Box<dyn Ranks>,
    work: &WorkBuffers,
) -> Result<()> {
    let all = n * work.main.k;
    sum(device, ranks, &[(work.main.grad.holds(all)?, all, Number::F32)])
}

/// Sums of squares of gradients over all ranks.
pub fn add_squares(device: &mut dyn Device, ranks: &mut Box<dyn Ranks>, work: &WorkBuffers) -> Result<()> {
    sum(device, ranks, &[(work.squares.holds(BLOCKS)?, BLOCKS, Number::F64)])
}

/// Every one of `counts` becomes the sum over ranks.
pub fn add_counts(device: &mut dyn Device, ranks: &mut Box<dyn Ranks>, counts: &Buffer<u32>) -> Result<()> {
    sum(device, ranks, &[(counts.holds(counts.len())?, counts.len(), Number::U32)])
}

/// The values of all ranks, those of rank 0 first.
pub fn gather_values(
    device: &mut dyn Device,
    ranks: &mut Box<dyn Ranks>,
    own: &Buffer<f32>,
    all: &Buffer<f32>,
) -> Result<()> {
    gather(device, ranks, &[(own.holds(own.len())?, own.len(), all.holds(ranks.count() * own.len())?)])
}

/// Brings the rows of a batch together, of which each rank has some, and zeros in place of the others: `bytes` bytes at
/// `address`, in whole words.
pub fn add_rows(
    device: &mut dyn Device,
    ranks: &mut Box<dyn Ranks>,
    (address, bytes): (u64, usize),
) -> Result<()> {
    sum(device, ranks, &[(Arg::Pointer(address), bytes / 4, Number::U32)])
}

/// Whether something holds on every rank.
pub fn is_of_all(device: &mut dyn Device, ranks: &mut Box<dyn Ranks>, here: bool) -> Result<bool> {
    let mut count = Buffer::zeros(device, 1, "a count of ranks")?;
    count.write(device, &[u32::from(here)])?;
    add_counts(device, ranks, &count)?;
    Ok(count.read(device, 1)?[0] as usize == ranks.count())
}
