//! What is queued of a step after its message: the forward pass, the backward pass, the update.

use super::device::Device;
use super::engine::{Parts, no_buffers};
use super::launch::{self, CarriedOver, Counts, Dense, DeviceBatch, Summed, Unit, Update};
use super::tensors::{Operands, Tensors};
use super::work::{self, Kept, Sizes, WorkBuffers};
use crate::backend::Phase;
use crate::error::Result;

/// What is queued of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// The whole step.
    Train,
    /// Gradients into `kept`, and no update.
    Look,
}

/// Called after each tile of the softmax's backward pass.
pub(super) type AfterTile<'a> = &'a mut dyn FnMut(&mut dyn Device, (usize, usize), &work::Soft) -> Result<()>;

impl Parts {
    /// Everything of a step after its message.
    pub(super) fn queue(
        &mut self,
        dev: &mut dyn Device,
        batch: &DeviceBatch,
        phase: Phase,
        aim: Aim,
        after_tile: AfterTile<'_>,
    ) -> Result<()> {
        let operands = self.tensors.operands()?;
        self.forward(dev, batch, phase, &operands)?;
        self.backward(dev, batch, phase, aim, &operands, after_tile)
    }

    fn forward(
        &mut self,
        dev: &mut dyn Device,
        batch: &DeviceBatch,
        phase: Phase,
        w: &Operands,
    ) -> Result<()> {
        let Self { work: Some(work), sizes: s, spec, tensors, shared, others, .. } = self else {
            return Err(no_buffers());
        };
        let mut others = others.as_mut();
        launch::gather_norm(dev, s, batch, spec.forward.row_eps(), w.b_pre, work)?;
        launch::encode(dev, s, batch.n, w.enc, work)?;
        if s.has_lengths() {
            launch::row_lengths(dev, s, tensors, work)?;
        }
        if s.is_dense() {
            launch::above_count(dev, s, batch, w, Counts::Step, shared, work)?;
        } else {
            launch::topk(dev, s, batch, w.b_lat, shared, true, phase, others.as_deref_mut(), work)?;
        }
        // The selection over a batch has counted which latents fire.
        if phase.has_candidates() && s.activation.is_per_row() {
            launch::gate_weights(dev, s, batch, spec.warmup.relaxation, shared, work)?;
        }
        launch::topk_dead(dev, s, batch, tensors, shared, others.as_deref_mut(), work)?;
        if is_tiled(s, phase)
            && let Some(mut half) = work.soft.take()
        {
            half.clear(dev, s, batch.n)?;
            for tile in s.tiles() {
                if s.is_dense() {
                    launch::above_tile(dev, s, batch, w, tile, work, &mut half)?;
                } else {
                    launch::soft_weights(dev, s, batch, w.b_lat, tile, work, &mut half)?;
                }
                launch::decode_tile(dev, s, batch.n, w.dec, tile, &mut half)?;
            }
            work.soft = Some(half);
        }
        match others {
            Some(ranks) => {
                let parts = Summed { entries: !s.is_dense(), softmax: phase == Phase::Softmax, step: true };
                launch::add_parts(dev, s, batch, w, ranks, parts, shared, work)?;
                if phase == Phase::Weighed {
                    // Each rank adds the gradients of its own candidates to those of the others.
                    work.main.grad.zero(dev, batch.n * work.main.k)?;
                }
                launch::reconstruct(dev, s, batch, w, parts, shared, work)?;
            }
            None => launch::decode(dev, s, batch, w, shared, phase, work)?,
        }
        launch::finish_loss(dev, s, batch, work, tensors.carried.as_ref(), shared)
    }

    fn backward(
        &mut self,
        dev: &mut dyn Device,
        batch: &DeviceBatch,
        phase: Phase,
        aim: Aim,
        w: &Operands,
        after_tile: AfterTile<'_>,
    ) -> Result<()> {
        let Self { work: Some(work), sizes: s, spec, tensors, shared, others, .. } = self else {
            return Err(no_buffers());
        };
        let mut others = others.as_mut();
        if phase == Phase::Weighed {
            if let Some(ranks) = others.as_deref_mut() {
                launch::add_gradients(dev, batch.n, ranks, work)?;
            }
            launch::gate_gradients(dev, s, batch, work)?;
        }
        let WorkBuffers { main, aux, totals, cursor, unordered, .. } = work;
        if !is_tiled(s, phase) {
            launch::index(dev, s, batch.n, main, totals, cursor, unordered)?;
        }
        if let Some(aux) = aux {
            launch::index(dev, s, batch.n, aux, totals, cursor, unordered)?;
        }
        if !is_tiled(s, phase) {
            let met = (&work.grad_recon, s.prefixes.parts());
            launch::list_runs(dev, s, batch, &work.main, met, shared, work)?;
        }
        if let (Some(aux), Some(recon)) = (&work.aux, &work.aux_recon) {
            launch::list_runs(dev, s, batch, aux, (recon, 1), shared, work)?;
        }
        work.partial.zero(dev, work.places * s.pitch)?;
        let keep = aim == Aim::Look || spec.optimizer.clip_norm.is_some();
        if keep {
            work.squares.zero(dev, work::BLOCKS)?;
        }
        // A look shows the gradient itself; the constraint is part of the update.
        let unit =
            if spec.optimizer.unit_norm_decoder && aim == Aim::Train { Unit::Both } else { Unit::Free };
        let view = &tensors.view;
        let aux = work.aux.as_ref().zip(work.aux_recon.as_ref());
        let kept = if keep { work.kept.as_ref() } else { None };
        let base = Update { latents: (0, s.m), main: None, aux, dense: None, kept, unit, partial: true };
        if is_tiled(s, phase) {
            let Some(mut half) = work.soft.take() else { return Err(no_buffers()) };
            for tile in s.tiles() {
                launch::backward_tile(dev, s, batch.n, w.dec, tile, work, &mut half)?;
                if s.is_dense() {
                    launch::above_gradients(dev, s, batch, w, tile, shared, work, &mut half)?;
                } else {
                    launch::soft_gradients(dev, s, batch, w.b_lat, tile, work, &mut half)?;
                }
                launch::tile_gradients(dev, s, batch.n, tile, work, &mut half)?;
                after_tile(dev, tile, &half)?;
                let dense = Dense {
                    enc: half.enc.holds(tile.1 * s.pitch)?,
                    dec: half.dec.holds(if s.tied { 0 } else { tile.1 * s.pitch })?,
                    bias: half.bias.holds(tile.1)?,
                    threshold: launch::where_any(s.trains_thresholds(), &half.threshold, tile.1)?,
                    code: launch::where_any(s.has_lengths(), &half.code_sums, tile.1)?,
                };
                let up = Update { latents: tile, dense: Some(dense), ..base };
                launch::latent_update(dev, s, batch, view, shared, work, &up)?;
            }
            work.soft = Some(half);
        } else {
            let up = Update { main: Some(&work.main), ..base };
            launch::latent_update(dev, s, batch, view, shared, work, &up)?;
        }
        launch::pre_bias_gradient(
            dev,
            s,
            batch.n,
            spec.optimizer.train_pre_bias,
            others.as_deref_mut(),
            work,
        )?;
        if aim == Aim::Look {
            return Ok(());
        }
        if keep {
            if let Some(ranks) = others.as_deref_mut() {
                launch::add_squares(dev, ranks, work)?;
            }
            launch::clip_factor(dev, s, batch, work, shared)?;
            let unit = if unit == Unit::Both { Unit::Scale } else { Unit::Free };
            apply_kept(dev, s, batch, tensors, shared, work, unit)?;
        }
        if spec.optimizer.train_pre_bias {
            launch::update_pre_bias(dev, s, batch, view, work, shared)?;
        }
        if let Some(carried) = &tensors.carried {
            launch::carry_weight(dev, carried, shared)?;
        }
        launch::count_idle(dev, s, batch.n, spec.objective.dead_after, others, &mut tensors.idle, shared)
    }
}

/// Whether the code is a matrix, tile of latents by tile.
pub(super) fn is_tiled(s: &Sizes, phase: Phase) -> bool {
    phase == Phase::Softmax || s.is_dense()
}

/// Adam from kept gradients, once the clip factor is known.
fn apply_kept(
    dev: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    tensors: &Tensors,
    shared: &CarriedOver,
    work: &WorkBuffers,
    unit: Unit,
) -> Result<()> {
    let Some(Kept { enc, dec, bias, threshold }) = &work.kept else { return Err(no_buffers()) };
    let all = s.m * s.pitch;
    let dense = Dense {
        enc: enc.holds(all)?,
        dec: dec.holds(if s.tied { 0 } else { all })?,
        bias: bias.holds(s.m)?,
        threshold: launch::where_any(s.trains_thresholds(), threshold, s.m)?,
        // What lengths add is in what was kept.
        code: launch::NULL,
    };
    let up = Update {
        latents: (0, s.m),
        main: None,
        aux: None,
        dense: Some(dense),
        kept: None,
        unit,
        partial: false,
    };
    launch::latent_update(dev, s, batch, &tensors.view, shared, work, &up)
}
