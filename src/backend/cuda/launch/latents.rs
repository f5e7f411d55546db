//! Kernels that visit latents: the inverted index, gradients and Adam.

use super::super::buffer::{Buffer, Values};
use super::super::device::{Arg, Device, Element, Launch, WARP};
use super::super::params::ModelView;
use super::super::work::{BLOCKS, Entries, Kept, Sizes, WorkBuffers};
use super::{CarriedOver, DeviceBatch, NULL, count, grid, per_value, row_block, u};
use crate::error::Result;

/// The inverted index of `entries`.
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
    totals.zero(device, s.m)?;
    let (totals, cursor) = (totals.holds(s.m)?, cursor.holds(s.m)?);
    let (unordered, slots) = (unordered.holds(n * k)?, entries.slots.holds(n * k)?);
    let warp_per_row = per_value(n * WARP as usize)?;
    // SAFETY: all buffers were checked for N k entries and M latents; entries of a row lie in the lists and their
    // latents are below M (`topk`), and N k fits in 32 bits (`Entries::new`).
    unsafe {
        device.launch("index_count", warp_per_row, &[&lists[..], &[totals, row]].concat())?;
        let one = Launch { grid: (1, 1), block: 1024, shared: 0 };
        device.launch("index_scan", one, &[totals, u(s.m)?, offsets, cursor])?;
        device.launch("index_fill", warp_per_row, &[&lists[..], &[cursor, unordered]].concat())?;
        let latents = Launch { grid: grid(s.m)?, block: WARP, shared: 0 };
        device.launch("index_order", latents, &[offsets, unordered, row, rows, slots])
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
    let lists = |e: Option<&Entries>| -> Result<[Arg; 5]> {
        let Some(e) = e else { return Ok([NULL; 5]) };
        let all = n * e.k;
        Ok([
            e.offsets.holds(s.m + 1)?,
            e.slots.holds(all)?,
            e.value.holds(all)?,
            e.grad.holds(all)?,
            e.row.holds(all)?,
        ])
    };
    let rows = n * s.pitch;
    let mut args = vec![
        u(first)?,
        u(latents)?,
        u(s.d)?,
        u(s.pitch)?,
        work.ends.holds(s.prefixes.len())?,
        u(s.prefixes.parts())?,
        work.input.holds(rows)?,
        work.grad_recon.holds(s.prefixes.parts() * rows)?,
        up.aux.map_or(Ok(NULL), |(_, recon)| recon.holds(rows))?,
    ];
    args.extend(lists(up.main)?);
    args.extend(lists(up.aux.map(|(e, _)| e))?);
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
    let name = match (s.element, s.tied) {
        (Element::F32, true) => "latent_update_f32_tied",
        (Element::F32, false) => "latent_update_f32_untied",
        (Element::Bf16, true) => "latent_update_bf16_tied",
        (Element::Bf16, false) => "latent_update_bf16_untied",
    };
    let launch =
        Launch { grid: grid(latents.min(BLOCKS))?, block: row_block(s), shared: count(12 * s.pitch)? };
    // SAFETY: operands were checked for N rows, lists for N k entries and M latents, kept gradients for these
    // latents; `dense` was checked by who made it; the model's addresses stay valid while `Tensors` lives.
    unsafe { device.launch(name, launch, &args) }
}
