//! Kernels that visit latents: the inverted index, gradients and Adam.

use super::super::buffer::{Buffer, Values};
use super::super::device::{Arg, Device, Element, Launch, WARP};
use super::super::params::ModelView;
use super::super::work::{BLOCKS, Entries, Kept, Sizes, WorkBuffers};
use super::{BLOCK, CarriedOver, DeviceBatch, NULL, count, grid, per_value, u};
use crate::error::Result;

/// The inverted index of `entries`, in which long lists are cut into runs.
pub fn index(
    device: &mut dyn Device,
    s: &Sizes,
    n: usize,
    entries: &mut Entries,
    totals: &mut Buffer<u32>,
    cursor: &mut Buffer<u32>,
    unordered: &mut Buffer<u32>,
) -> Result<()> {
    let k = entries.k;
    let rows = u(n)?;
    let lists = [entries.index.holds(n * k)?, entries.first.holds(n)?, entries.count.holds(n)?, rows];
    let row = entries.row.holds(n * k)?;
    let offsets = entries.offsets.holds(s.m + 1)?;
    let cost = entries.cost.holds(s.m + 1)?;
    totals.zero(device, s.m)?;
    let (totals, cursor) = (totals.holds(s.m)?, cursor.holds(s.m)?);
    let (unordered, slots) = (unordered.holds(n * k)?, entries.slots.holds(n * k)?);
    let warp_per_row = per_value(n * WARP as usize)?;
    let cut = cut_args(s, entries)?;
    // SAFETY: all buffers were checked for N k entries, M latents and the runs that are told as the most; entries of a row
    // lie in the lists and their latents are below M (`topk`), and N k fits in 32 bits (`Entries::new`).
    unsafe {
        device.launch("index_count", warp_per_row, &[&lists[..], &[totals, row]].concat())?;
        let one = Launch { grid: (1, 1), block: 1024, shared: 0 };
        device.launch("index_scan", one, &[&[totals, u(s.m)?, offsets, cursor, cost][..], &cut].concat())?;
        device.launch("index_fill", warp_per_row, &[&lists[..], &[cursor, unordered]].concat())?;
        let latents = Launch { grid: grid(s.m)?, block: WARP, shared: 0 };
        let lists = [offsets, unordered, row, rows];
        device.launch("index_order", latents, &[&lists[..], &cut, &[slots]].concat())?;
        let Some(runs) = &entries.runs else { return Ok(()) };
        let launch = Launch { grid: grid(runs.most.min(BLOCKS))?, block: BLOCK, shared: 0 };
        device.launch("index_order_long", launch, &[&lists[..], &[u(s.m)?], &cut, &[slots]].concat())
    }
}

/// What [`latent_update`] does so that rows of the decoder keep length 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Nothing.
    Free = 0,
    /// Frees the gradient of its part along the row, and scales the row after the step.
    Both = 1,
    /// Scales the row after the step.
    Scale = 2,
}

/// Dense gradients of some latents, and what goes with them; null where there is none.
#[derive(Debug, Clone, Copy)]
pub struct Dense {
    /// Of the encoder.
    pub enc: Arg,
    /// Of the decoder; unused when tied.
    pub dec: Arg,
    /// Of the biases.
    pub bias: Arg,
    /// Of the thresholds, where they are trained.
    pub threshold: Arg,
    /// Sums of each latent's code, where the penalty has lengths and its part of the gradient is still missing.
    pub code: Arg,
}

/// Where [`latent_update`] finds its parts.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// First latent and count.
    pub latents: (usize, usize),
    /// The top k, in the hard phase.
    pub main: Option<&'a Entries>,
    /// Entries of the auxiliary loss and its gradient of the reconstruction.
    pub aux: Option<(&'a Entries, &'a Values)>,
    /// Dense gradients of these latents.
    pub dense: Option<Dense>,
    /// Keep the gradients instead of using them.
    pub kept: Option<&'a Kept>,
    /// What keeps rows of the decoder at length 1.
    pub unit: Unit,
    /// Add to `partial`.
    pub partial: bool,
}

/// How lists are cut into runs, as kernels take it (`Cut`).
fn cut_args(s: &Sizes, e: &Entries) -> Result<[Arg; 4]> {
    match &e.runs {
        Some(runs) => {
            Ok([u(runs.length)?, u(runs.most)?, runs.first.holds(s.m + 1)?, runs.latent.holds(runs.most)?])
        }
        None => Ok(UNCUT),
    }
}

/// No list is cut.
const UNCUT: [Arg; 4] = [Arg::U32(u32::MAX), Arg::U32(0), NULL, NULL];

/// What kernels take as a list of entries by latent; `None` is no list.
fn list_args(s: &Sizes, n: usize, e: Option<&Entries>) -> Result<Vec<Arg>> {
    let Some(e) = e else { return Ok([&[NULL; 5][..], &UNCUT, &[NULL; 3]].concat()) };
    let all = n * e.k;
    let lists = [
        e.offsets.holds(s.m + 1)?,
        e.slots.holds(all)?,
        e.value.holds(all)?,
        e.grad.holds(all)?,
        e.row.holds(all)?,
    ];
    let runs = match &e.runs {
        Some(runs) => [
            runs.enc.holds(runs.most * s.pitch)?,
            if s.tied { NULL } else { runs.dec.holds(runs.most * s.pitch)? },
            runs.bias.holds(runs.most)?,
        ],
        None => [NULL; 3],
    };
    Ok([&lists[..], &cut_args(s, e)?, &runs].concat())
}

/// What each run of a long list adds to the gradients, where there are any; its entries meet one of `parts` planes of `recon`.
pub fn list_runs(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    entries: &Entries,
    (recon, parts): (&Values, usize),
    shared: &CarriedOver,
    work: &WorkBuffers,
) -> Result<()> {
    let Some(runs) = &entries.runs else { return Ok(()) };
    let (n, rows) = (batch.n, batch.n * s.pitch);
    let mut args = vec![
        u(s.m)?,
        u(s.pitch)?,
        work.ends.holds(s.prefixes.len())?,
        u(parts)?,
        work.input.holds(rows)?,
        recon.holds(parts * rows)?,
    ];
    args.extend(list_args(s, n, Some(entries))?);
    args.extend([Arg::Pointer(batch.step), shared.control.holds(1)?]);
    let name = by_kind(
        s,
        ["list_runs_f32_tied", "list_runs_f32_untied", "list_runs_bf16_tied", "list_runs_bf16_untied"],
    );
    let launch = Launch { grid: grid(runs.most.min(BLOCKS))?, block: s.row_block(), shared: 0 };
    // SAFETY: operands were checked for N rows, lists for N k entries, M latents and all runs that they can be cut into.
    unsafe { device.launch(name, launch, &args) }
}

/// The name of a kernel for the run's operands and matrices: float32 tied and untied, bfloat16 tied and untied.
fn by_kind(s: &Sizes, names: [&'static str; 4]) -> &'static str {
    let element = if s.element == Element::Bf16 { 2 } else { 0 };
    names[element + usize::from(!s.tied)]
}

/// Gradient and Adam (or the gradient alone) of a run of latents.
pub fn latent_update(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    view: &Buffer<ModelView>,
    shared: &CarriedOver,
    work: &WorkBuffers,
    up: &Update<'_>,
) -> Result<()> {
    let n = batch.n;
    let (first, latents) = up.latents;
    let rows = n * s.pitch;
    let mut args = vec![
        u(first)?,
        u(latents)?,
        up.main.map_or(Ok(NULL), |e| e.cost.holds(s.m + 1))?,
        u(s.d)?,
        u(s.pitch)?,
        work.ends.holds(s.prefixes.len())?,
        u(s.prefixes.parts())?,
        work.input.holds(rows)?,
        work.grad_recon.holds(s.prefixes.parts() * rows)?,
        up.aux.map_or(Ok(NULL), |(_, recon)| recon.holds(rows))?,
    ];
    args.extend(list_args(s, n, up.main)?);
    args.extend(list_args(s, n, up.aux.map(|(e, _)| e))?);
    let none = Dense { enc: NULL, dec: NULL, bias: NULL, threshold: NULL, code: NULL };
    let Dense { enc, dec, bias, threshold, code } = up.dense.unwrap_or(none);
    args.extend([enc, if s.tied { NULL } else { dec }, bias, threshold, code]);
    let (at, size) = (first * s.pitch, latents * s.pitch);
    match up.kept {
        Some(kept) => args.extend([
            kept.enc.part(at, size)?,
            if s.tied { NULL } else { kept.dec.part(at, size)? },
            kept.bias.part(first, latents)?,
            if s.trains_thresholds() { kept.threshold.part(first, latents)? } else { NULL },
            work.squares.holds(BLOCKS)?,
        ]),
        None => args.extend([NULL; 5]),
    }
    args.extend([
        if s.has_lengths() { work.lengths.holds(s.m)? } else { NULL },
        Arg::U32(up.unit as u32),
        view.holds(1)?,
        Arg::Pointer(batch.step),
        shared.control.holds(1)?,
        if up.partial { work.partial.holds(BLOCKS * s.pitch)? } else { NULL },
    ]);
    let name = by_kind(
        s,
        [
            "latent_update_f32_tied",
            "latent_update_f32_untied",
            "latent_update_bf16_tied",
            "latent_update_bf16_untied",
        ],
    );
    let launch =
        Launch { grid: grid(latents.min(work.places))?, block: s.row_block(), shared: count(12 * s.pitch)? };
    // SAFETY: operands were checked for N rows, lists for N k entries and M latents, kept gradients for these
    // latents; `dense` was checked by who made it; the model's addresses stay valid while `Tensors` lives.
    unsafe { device.launch(name, launch, &args) }
}
