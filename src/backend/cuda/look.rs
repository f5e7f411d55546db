//! A look inside a pass: everything in float32 on the host, for tests and for people.

use super::device::Device;
use super::engine::Engine;
use super::step::is_tiled;
use super::tensors::gather;
use super::work::{Entries, WorkBuffers};
use crate::backend::{Pass, StepPlan};
use crate::error::{Error, Result};
use crate::model::Params;
use crate::spec::Activation;

impl Engine {
    /// See [`crate::backend::Look::inspect`].
    ///
    /// # Errors
    /// The device fails.
    pub(super) fn look(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<Pass> {
        let Self { parts, device, .. } = self;
        let dev = device.as_mut();
        let s = parts.sizes;
        let (n, m) = (rows.len(), s.m);
        let (mut code, mut grad) = (vec![0.0f32; n * m], vec![0.0f32; n * m]);
        let (_, stats) = parts.look(dev, rows, plan, &mut |dev, (first, cols), half| {
            for (values, out) in [(&half.code, &mut code), (&half.grad, &mut grad)] {
                let tile = values.read(dev, n * s.tile)?;
                for (tile, out) in tile.chunks_exact(s.tile).zip(out.chunks_exact_mut(m)) {
                    out[first..first + cols].copy_from_slice(&tile[..cols]);
                }
            }
            Ok(())
        })?;
        let any_dead = parts.shared.control.read(dev, 1)?[0].n_dead > 0;
        let Some(work) = &mut parts.work else {
            return Err(Error::Failed("a look left nothing behind; please report this".into()));
        };
        if !is_tiled(&s, parts.spec.phase(plan)) {
            scatter(dev, &work.main, n, m, Some(&mut code), &mut grad)?;
        }
        if let Some(aux) = work.aux.as_ref().filter(|_| any_dead) {
            scatter(dev, aux, n, m, None, &mut grad)?;
        }
        let b_lat = parts.tensors.lat.w.read(dev, m)?;
        let scores = work.scores.read(dev, n * s.score_pitch)?;
        let biased = |row: &[f32]| row[..m].iter().zip(&b_lat).map(|(z, b)| z + b).collect::<Vec<f32>>();
        let pre_acts = scores.chunks_exact(s.score_pitch).flat_map(biased).collect();
        let recon = match work.recon.take() {
            Some(recon) => gather(&recon.read(dev, n * s.pitch)?, s.d, s.pitch),
            None => vec![],
        };
        let grads = gradients(dev, work, &s)?;
        Ok(Pass { stats, pre_acts, code, recon, grad_pre_acts: grad, grad_code: None, grads })
    }
}

/// Adds sparse entries to their places in (N, M).
fn scatter(
    dev: &mut dyn Device,
    e: &Entries,
    n: usize,
    m: usize,
    mut code: Option<&mut Vec<f32>>,
    grad: &mut [f32],
) -> Result<()> {
    let entries = e.read(dev, n)?;
    for row in 0..n {
        for (latent, value, slope) in entries.row(row) {
            let place = row * m + latent as usize;
            if let Some(code) = code.as_deref_mut() {
                code[place] += value;
            }
            grad[place] += slope;
        }
    }
    Ok(())
}

fn gradients(dev: &mut dyn Device, work: &WorkBuffers, s: &super::work::Sizes) -> Result<Params> {
    let Some(kept) = &work.kept else {
        return Err(Error::Failed("a look kept no gradients; please report this".into()));
    };
    let rows = s.m * s.pitch;
    let w_dec = if s.tied { None } else { Some(gather(&kept.dec.read(dev, rows)?, s.d, s.pitch)) };
    // That of a batch's places is no weight that has a gradient.
    let threshold = match (s.trains_thresholds(), s.activation == Activation::BatchTopk) {
        (true, _) => Some(kept.threshold.read(dev, s.m)?),
        (false, true) => Some(vec![0.0; s.m]),
        (false, false) => None,
    };
    Ok(Params {
        d_in: s.d,
        n_latents: s.m,
        w_enc: gather(&kept.enc.read(dev, rows)?, s.d, s.pitch),
        w_dec,
        b_pre: work.pre_grad.read(dev, s.d)?,
        b_lat: kept.bias.read(dev, s.m)?,
        threshold,
    })
}
