//! A backend that is one of several: while it waits for its device the others are told, because the device may wait for theirs.

use super::engine::Engine;
use crate::backend::{Asks, Backend, Codes, EvalSums, StepPlan, StepStats};
use crate::error::Result;
use crate::model::{Fill, TrainState, Weights};
use crate::peers::Peers;
use crate::rows::RowSource;
use std::borrow::Cow;
use std::sync::Arc;

/// An engine whose peers hear when it waits.
pub(super) struct Rank {
    engine: Engine,
    peers: Arc<Peers>,
}

impl Rank {
    /// Waits for what the engine has done so far: whoever waits for its peers may not have them wait for its device.
    ///
    /// # Errors
    /// The device fails.
    pub(super) fn new(mut engine: Engine, peers: Arc<Peers>) -> Result<Self> {
        engine.device.synchronize()?;
        Ok(Self { engine, peers })
    }
}

impl Backend for Rank {
    fn device(&self) -> String {
        self.engine.device()
    }

    fn asks_for_rows(&self) -> Asks {
        self.engine.asks_for_rows()
    }

    fn expect(&mut self, rows: &[u32]) -> Result<()> {
        self.engine.expect(rows)
    }

    fn idle(&mut self) -> Result<f64> {
        self.engine.idle()
    }

    fn step(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<()> {
        let _waits = self.peers.waits();
        self.engine.step(rows, plan)
    }

    fn collect(&mut self) -> Result<Vec<StepStats>> {
        let _waits = self.peers.waits();
        self.engine.collect()
    }

    fn evaluate_checked(
        &mut self,
        rows: &[u32],
        weights: Weights,
        fired: &mut [u64],
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<EvalSums> {
        let _waits = self.peers.waits();
        self.engine.evaluate_checked(rows, weights, fired, check)
    }

    fn encode(&mut self, rows: &[u32], weights: Weights) -> Result<Codes> {
        self.engine.encode(rows, weights)
    }

    fn calibrate(&mut self, rows: &[u32], weights: Weights) -> Result<()> {
        let _waits = self.peers.waits();
        self.engine.calibrate(rows, weights)
    }

    fn set_data(&mut self, data: Arc<dyn RowSource>) -> Result<()> {
        self.engine.set_data(data)
    }

    fn state(&mut self) -> Result<Cow<'_, TrainState>> {
        let _waits = self.peers.waits();
        self.engine.state()
    }

    fn set_state(&mut self, step: u64, fill: &mut Fill<'_>) -> Result<()> {
        let _waits = self.peers.waits();
        self.engine.set_state(step, fill)
    }
}
