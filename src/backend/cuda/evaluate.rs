//! The inference code on a device: its quality, and its entries brought to the host.

use super::buffer::Buffer;
use super::device::Device;
use super::engine::{Parts, RING, no_buffers};
use super::launch::{self, Counts, DeviceBatch};
use super::params::StepParams;
use super::tensors::Operands;
use crate::backend::calibrate::Calibration;
use crate::backend::{Codes, Phase, StepPlan};
use crate::error::{Error, Result};
use crate::model::Weights;
use crate::noise::Noise;
use crate::spec::Inference;

impl Parts {
    /// Scores of `rows` into the buffers.
    fn score(&mut self, dev: &mut dyn Device, rows: &[u32], w: &Operands) -> Result<DeviceBatch> {
        let noise = Noise::Philox { seed: 0 };
        let plan = StepPlan { step: 0, alpha: 1.0, tau: 1.0, lr: 0.0, l1: 0.0, noise };
        self.need_rows(dev, rows.len())?;
        let params =
            StepParams::new(&self.spec, &plan, rows.len(), (self.sizes.d, &self.sizes.shard), RING as u32);
        let batch = self.send_rows(dev, rows, &params)?;
        let Self { work: Some(work), sizes: s, spec, .. } = self else { return Err(no_buffers()) };
        launch::gather_norm(dev, s, &batch, spec.forward.row_eps(), w.b_pre, work)?;
        launch::encode(dev, s, batch.n, w.enc, work)?;
        Ok(batch)
    }

    /// What is active of the scores in the buffers: the top k of each row, or counts of what is above thresholds.
    fn select(
        &mut self,
        dev: &mut dyn Device,
        batch: &DeviceBatch,
        w: &Operands,
        counts: Counts,
    ) -> Result<()> {
        let Self { work: Some(work), sizes: s, spec, shared, others, .. } = self else {
            return Err(no_buffers());
        };
        match spec.forward.inference {
            Inference::Topk => {
                launch::topk(dev, s, batch, w.b_lat, shared, false, Phase::Hard, others.as_mut(), work)
            }
            Inference::Relu | Inference::Threshold => {
                launch::above_count(dev, s, batch, w, counts, shared, work)
            }
        }
    }

    /// Adds the quality of `rows` to the running sums.
    ///
    /// # Errors
    /// The device fails.
    pub(super) fn evaluate(&mut self, dev: &mut dyn Device, rows: &[u32], w: &Operands) -> Result<()> {
        let batch = self.score(dev, rows, w)?;
        self.select(dev, &batch, w, Counts::Rows)?;
        let Self { work: Some(work), sizes: s, spec, shared, others, .. } = self else {
            return Err(no_buffers());
        };
        let dense = spec.forward.inference != Inference::Topk;
        if dense {
            work.need_soft(dev, s)?;
            let Some(mut half) = work.soft.take() else { return Err(no_buffers()) };
            half.clear(dev, s, batch.n)?;
            for tile in s.tiles() {
                launch::above_tile(dev, s, &batch, w, tile, work, &mut half)?;
                launch::decode_tile(dev, s, batch.n, w.dec, tile, &mut half)?;
            }
            work.soft = Some(half);
        }
        if let Some(ranks) = others {
            let parts = launch::Summed { entries: !dense, softmax: false, step: false };
            launch::add_parts(dev, s, &batch, w, ranks, parts, shared, work)?;
        }
        launch::evaluate(dev, s, &batch, w, dense, work, shared)?;
        self.done_reading(dev)
    }

    /// See [`crate::backend::Backend::encode`].
    ///
    /// # Errors
    /// The device fails.
    pub(super) fn encode(&mut self, dev: &mut dyn Device, rows: &[u32], weights: Weights) -> Result<Codes> {
        if self.others.is_some() {
            return Err(Error::Failed(
                "codes are not made by ranks: `sae encode` makes them with the finished model; please report this".into(),
            ));
        }
        let operands = self.operands(dev, weights)?;
        let (b_lat, thresholds) = self.vectors(dev, weights)?;
        let mut codes = Codes::default();
        self.each_chunk(dev, rows, &operands, &mut |parts, dev, batch| {
            parts.select(dev, batch, &operands, Counts::Active)?;
            match parts.spec.forward.inference {
                Inference::Topk => parts.read_top(dev, batch.n, &mut codes),
                Inference::Relu | Inference::Threshold => {
                    let thresholds = thresholds.as_deref();
                    parts.read_above(dev, batch.n, &b_lat, thresholds, &mut codes)
                }
            }
        })?;
        Ok(codes)
    }

    /// Calls `f` with the scores of `rows` in the buffers, as many at a time as these hold.
    fn each_chunk(
        &mut self,
        dev: &mut dyn Device,
        rows: &[u32],
        w: &Operands,
        f: &mut dyn FnMut(&mut Self, &mut dyn Device, &DeviceBatch) -> Result<()>,
    ) -> Result<()> {
        let mut chunks = rows.chunks(self.room()).peekable();
        while let Some(chunk) = chunks.next() {
            let batch = self.score(dev, chunk, w)?;
            self.done_reading(dev)?;
            if let Some(next) = chunks.peek() {
                self.expect(dev, next)?;
            }
            f(self, dev, &batch)?;
        }
        // What this waited is not asked for.
        dev.idle()?;
        Ok(())
    }

    /// Biases of latents, and thresholds where there are any (M each).
    fn vectors(&self, dev: &mut dyn Device, weights: Weights) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
        let (t, m) = (&self.tensors, self.sizes.m);
        let thresholds = t.threshold.as_ref().map(|t| t.weights(weights).read(dev, m)).transpose()?;
        Ok((t.lat.weights(weights).read(dev, m)?, thresholds))
    }

    /// See [`crate::backend::Backend::calibrate`]. The scores leave the device as they are.
    ///
    /// # Errors
    /// The device fails.
    pub(super) fn calibrate(&mut self, dev: &mut dyn Device, rows: &[u32], weights: Weights) -> Result<()> {
        let Some(mut calibration) = Calibration::new(&self.spec, rows.len()) else { return Ok(()) };
        let operands = self.operands(dev, weights)?;
        let (mut b_lat, mut thresholds) = self.vectors(dev, weights)?;
        self.each_chunk(dev, rows, &operands, &mut |parts, dev, batch| {
            for row in parts.read_scores(dev, batch.n, &b_lat)?.chunks_exact(b_lat.len()) {
                calibration.add(row, thresholds.as_deref());
            }
            Ok(())
        })?;
        if let Some(ranks) = &mut self.others {
            let own = calibration.kept();
            let mut sent = Buffer::zeros(dev, own.len(), "the largest scores")?;
            let all = Buffer::zeros(dev, ranks.count() * own.len(), "the largest scores")?;
            sent.write(dev, &own)?;
            launch::gather_values(dev, ranks, &sent, &all)?;
            calibration.join(&all.read(dev, all.len())?);
        }
        calibration.apply(&mut b_lat, thresholds.as_deref_mut());
        self.tensors.lat.weights_mut(weights).write(dev, &b_lat)?;
        match (&mut self.tensors.threshold, thresholds) {
            (Some(tensor), Some(values)) => tensor.weights_mut(weights).write(dev, &values),
            _ => Ok(()),
        }
    }

    /// The scores (n, M) in the buffers, with their biases.
    fn read_scores(&self, dev: &mut dyn Device, n: usize, b_lat: &[f32]) -> Result<Vec<f32>> {
        let Some(work) = &self.work else { return Err(no_buffers()) };
        let pitch = self.sizes.score_pitch;
        let scores = work.scores.read(dev, n * pitch)?;
        let biased = scores.chunks_exact(pitch).flat_map(|row| row.iter().zip(b_lat).map(|(z, b)| z + b));
        Ok(biased.collect())
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

    /// All scores above their thresholds, or above 0, from the scores themselves: they leave the device as they are, which
    /// costs more than sparse entries would, and needs no kernel of its own.
    fn read_above(
        &self,
        dev: &mut dyn Device,
        n: usize,
        b_lat: &[f32],
        thresholds: Option<&[f32]>,
        codes: &mut Codes,
    ) -> Result<()> {
        let scores = self.read_scores(dev, n, b_lat)?;
        let Some(work) = &self.work else { return Err(no_buffers()) };
        for (z, bad) in scores.chunks_exact(b_lat.len()).zip(work.bad.read(dev, n)?) {
            let active = z.iter().enumerate().filter(|&(j, &z)| z > thresholds.map_or(0.0, |t| t[j]));
            codes.push_row(active.map(|(j, &z)| (j as u32, z)), bad == 0);
        }
        Ok(())
    }
}
