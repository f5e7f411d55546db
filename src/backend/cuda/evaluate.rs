//! The inference code on a device: its quality, and its entries brought to the host.

use super::device::Device;
use super::engine::{Parts, RING, no_buffers};
use super::launch::{self, DeviceBatch};
use super::params::StepParams;
use super::tensors::Operands;
use crate::backend::{Codes, Phase, StepPlan};
use crate::error::Result;
use crate::model::Weights;
use crate::noise::Noise;
use crate::spec::Inference;

impl Parts {
    /// Scores and top k of `rows` into the buffers.
    fn select(&mut self, dev: &mut dyn Device, rows: &[u32], w: &Operands) -> Result<DeviceBatch> {
        let noise = Noise::Philox { seed: 0 };
        let plan = StepPlan { step: 0, alpha: 1.0, tau: 1.0, lr: 0.0, l1: 0.0, noise };
        self.need_rows(dev, rows.len())?;
        let params = StepParams::new(&self.spec, &plan, rows.len(), self.sizes.m, RING as u32);
        let batch = self.send_rows(dev, rows, &params)?;
        let Self { work: Some(work), sizes: s, spec, shared, .. } = self else { return Err(no_buffers()) };
        launch::gather_norm(dev, s, &batch, spec.forward.row_eps(), w.b_pre, work)?;
        launch::encode(dev, s, batch.n, w.enc, work)?;
        launch::topk(dev, s, &batch, w.b_lat, shared, false, Phase::Hard, work)?;
        Ok(batch)
    }

    /// Adds the quality of `rows` to the running sums.
    ///
    /// # Errors
    /// The device fails.
    pub(super) fn evaluate(&mut self, dev: &mut dyn Device, rows: &[u32], w: &Operands) -> Result<()> {
        let batch = self.select(dev, rows, w)?;
        let Self { work: Some(work), sizes: s, spec, shared, .. } = self else { return Err(no_buffers()) };
        let relu = spec.forward.inference == Inference::Relu;
        if relu {
            work.need_soft(dev, s)?;
            work.main.count.zero(dev, batch.n)?;
            let Some(mut half) = work.soft.take() else { return Err(no_buffers()) };
            for tile in s.tiles() {
                launch::relu_tile(dev, s, &batch, w.b_lat, tile, work, &mut half, shared)?;
                launch::decode_tile(dev, s, batch.n, w.dec, tile, &mut half)?;
            }
            work.soft = Some(half);
        }
        launch::evaluate(dev, s, &batch, w, relu, work, shared)?;
        self.done_reading(dev)
    }

    /// See [`crate::backend::Backend::encode`].
    ///
    /// # Errors
    /// The device fails.
    pub(super) fn encode(&mut self, dev: &mut dyn Device, rows: &[u32], weights: Weights) -> Result<Codes> {
        let operands = self.operands(dev, weights)?;
        let b_lat = self.tensors.lat.weights(weights).read(dev, self.sizes.m)?;
        let mut codes = Codes::default();
        let mut chunks = rows.chunks(self.room()).peekable();
        while let Some(chunk) = chunks.next() {
            self.select(dev, chunk, &operands)?;
            self.done_reading(dev)?;
            if let Some(next) = chunks.peek() {
                self.expect(dev, next)?;
            }
            match self.spec.forward.inference {
                Inference::Topk | Inference::Threshold => self.read_top(dev, chunk.len(), &mut codes)?,
                Inference::Relu => self.read_positive(dev, chunk.len(), &b_lat, &mut codes)?,
            }
        }
        dev.idle()?;
        Ok(codes)
    }

    /// The top k that the selection left.
    fn read_top(&self, dev: &mut dyn Device, n: usize, codes: &mut Codes) -> Result<()> {
        let Some(work) = &self.work else { return Err(no_buffers()) };
        let (entries, bad) = (work.main.read(dev, n)?, work.bad.read(dev, n)?);
        for (row, bad) in bad.into_iter().enumerate() {
            let active = entries.row(row).filter(|(_, value, _)| *value != 0.0);
            codes.push_row(active.map(|(latent, value, _)| (latent, value)), bad == 0);
        }
        Ok(())
    }

    /// All positive scores, from the scores themselves: they leave the device as they are, which costs more than
    /// sparse entries would, and needs no kernel of its own.
    fn read_positive(&self, dev: &mut dyn Device, n: usize, b_lat: &[f32], codes: &mut Codes) -> Result<()> {
        let Some(work) = &self.work else { return Err(no_buffers()) };
        let pitch = self.sizes.score_pitch;
        let (scores, bad) = (work.scores.read(dev, n * pitch)?, work.bad.read(dev, n)?);
        for (row, bad) in scores.chunks_exact(pitch).zip(bad) {
            let biased = row.iter().zip(b_lat).map(|(z, b)| z + b);
            let active = biased.enumerate().filter(|(_, z)| *z > 0.0);
            codes.push_row(active.map(|(j, z)| (j as u32, z)), bad == 0);
        }
        Ok(())
    }
}
