//! Selection over a batch: `kernels/batch_topk.cu`.

use super::super::device::{Arg, Device, Launch, WARP};
use super::super::ranks::Number;
use super::super::work::{BATCH_WORDS, Batch, Sizes, WorkBuffers};
use super::ranks::{Others, gather, sum};
use super::{BLOCK, CarriedOver, DeviceBatch, NULL, by_element, grid, per_value, u};
use crate::backend::Phase;
use crate::error::{Error, Result};

/// Digits of a key, from the highest: shift and width.
const DIGITS: [(u32, u32); 3] = [(20, 11), (10, 10), (0, 10)];

/// The N k largest positive scores of the batch into `work.main`, or more while k is annealed; latents of the N k largest
/// have fired.
#[allow(clippy::too_many_arguments)]
pub fn batch_topk(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    b_lat: u64,
    shared: &mut CarriedOver,
    phase: Phase,
    mut others: Others<'_>,
    work: &mut WorkBuffers,
) -> Result<()> {
    let larger = phase == Phase::LargerK;
    work.main.k = if larger { s.pool } else { s.k };
    if larger {
        // Which latents fire is another search than which are decoded.
        search(device, s, batch, b_lat, Aim::Fire, shared, others.as_deref_mut(), work)?;
    }
    search(device, s, batch, b_lat, if larger { Aim::Take } else { Aim::Both }, shared, others, work)
}

/// What a search is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// Entries, and which latents fire.
    Both,
    /// Entries alone.
    Take,
    /// Which latents fire, alone.
    Fire,
}

#[allow(clippy::too_many_arguments)]
fn search(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    b_lat: u64,
    aim: Aim,
    shared: &mut CarriedOver,
    mut others: Others<'_>,
    work: &mut WorkBuffers,
) -> Result<()> {
    let (n, m) = (batch.n, s.m);
    let WorkBuffers { batch: Some(b), scores, bad, main: e, exchange, .. } = work else {
        return Err(Error::Failed("buffers of a batch's places are missing; please report this".into()));
    };
    let Batch { maxima, histogram, found, above, equal } = b;
    let maxima = maxima.holds(n * s.runs())?;
    let (words, bins) = BATCH_WORDS;
    histogram.zero(device, bins)?;
    let (histogram, found) = (histogram.holds(bins)?, found.holds(words)?);
    let (above, equal) = (above.holds(n)?, equal.holds(n)?);
    let (first, count) = (e.first.holds(n)?, e.count.holds(n)?);
    let all = [scores.holds(n * s.score_pitch)?, Arg::Pointer(b_lat), u(m)?, u(s.score_pitch)?, u(s.runs())?];
    let rows = [&all[..], &[u(n)?, maxima, found]].concat();
    let one = Launch { grid: (1, 1), block: 1024, shared: 0 };
    let warp_per_row = per_value(n * WARP as usize)?;
    let find = |device: &mut dyn Device, others: Others<'_>, shift: u32, bits: u32| {
        if let Some(ranks) = others {
            sum(device, ranks, &[(histogram, bins, Number::U32)])?;
        }
        let fires = Arg::U32(u32::from(aim == Aim::Fire));
        let k = u(if aim == Aim::Fire { s.k } else { e.k })?;
        let args = [histogram, Arg::U32(shift), Arg::U32(bits), k, fires, Arg::Pointer(batch.step), found];
        // SAFETY: the histogram and the search were checked.
        unsafe { device.launch("batch_find", one, &args) }
    };
    let block_per_row = Launch { grid: grid(n)?, block: BLOCK, shared: 0 };
    let name = by_element(s, ["batch_maxima_f32", "batch_maxima_bf16"]);
    // SAFETY: scores, maxima and flags were checked for N rows; b_lat holds M (`Tensors`).
    unsafe {
        device.launch(name, block_per_row, &[&all[..], &[maxima, histogram, bad.holds(n)?]].concat())?;
    }
    find(device, others.as_deref_mut(), 0, 0)?;
    for (shift, bits) in DIGITS {
        let name = by_element(s, ["batch_digits_f32", "batch_digits_bf16"]);
        let args = [&rows[..], &[Arg::U32(shift), Arg::U32(bits), histogram]].concat();
        // SAFETY: as above; a digit is below the number of bins.
        unsafe { device.launch(name, warp_per_row, &args)? };
        find(device, others.as_deref_mut(), shift, bits)?;
    }
    let g = s.shard.ranks;
    let of_ranks = exchange.as_ref().map_or(Ok(NULL), |exchange| exchange.equal.holds(g * n))?;
    let places = [above, equal, u(n)?, found, of_ranks, u(g)?, u(s.shard.rank)?, first, count];
    let fired = if aim == Aim::Take { NULL } else { shared.fired.holds(m)? };
    let fires = Arg::U32(u32::from(aim == Aim::Fire));
    let fill = [equal, first, fires, e.index.holds(n * e.k)?, e.value.holds(n * e.k)?, fired];
    // SAFETY: counts and places were checked for N rows, lists for N k entries, of which the search leaves no more; flags
    // for M.
    unsafe {
        let name = by_element(s, ["batch_count_f32", "batch_count_bf16"]);
        device.launch(name, warp_per_row, &[&rows[..], &[above, equal]].concat())?;
    }
    if let Some(ranks) = others {
        gather(device, ranks, &[(equal, n, of_ranks)])?;
    }
    // SAFETY: as above; the ties of all ranks were checked for G N rows.
    unsafe {
        device.launch("batch_places", one, &places)?;
        let name = by_element(s, ["batch_fill_f32", "batch_fill_bf16"]);
        device.launch(name, warp_per_row, &[&rows[..], &fill].concat())
    }
}
