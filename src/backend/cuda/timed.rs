//! A device that times each launch of another: where the time of a step goes. For benches.

use super::device::{Arg, Device, Element, Facts, Launch, Memory, Product, RecordKey};
use crate::error::Result;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// What one launch took.
#[derive(Debug, Clone, PartialEq)]
pub struct Lap {
    /// The kernel, or a product with its sizes.
    pub name: String,
    /// Seconds on the device.
    pub seconds: f64,
    /// Multiplications and additions of a product; 0 for a kernel.
    pub operations: f64,
}

/// Times what is queued through it. Nothing is recorded: each launch stands alone.
pub struct Timed {
    inner: Box<dyn Device>,
    laps: Arc<Mutex<Vec<Lap>>>,
}

impl Timed {
    /// A device that does what `inner` does, and the list that its launches are written to.
    pub fn new(inner: Box<dyn Device>) -> (Self, Arc<Mutex<Vec<Lap>>>) {
        let laps = Arc::<Mutex<Vec<Lap>>>::default();
        (Self { inner, laps: laps.clone() }, laps)
    }

    fn lap(
        &mut self,
        name: String,
        operations: f64,
        work: &mut dyn FnMut(&mut dyn Device) -> Result<()>,
    ) -> Result<()> {
        let seconds = self.inner.timed(work)?;
        self.laps.lock().unwrap_or_else(PoisonError::into_inner).push(Lap { name, seconds, operations });
        Ok(())
    }
}

impl Device for Timed {
    fn facts(&self) -> Result<Facts> {
        self.inner.facts()
    }

    fn card(&self) -> Option<usize> {
        self.inner.card()
    }

    fn stream(&self) -> u64 {
        self.inner.stream()
    }

    fn allocate(&mut self, bytes: usize, what: &'static str) -> Result<Memory> {
        self.inner.allocate(bytes, what)
    }

    fn write(&mut self, to: &mut Memory, offset: usize, bytes: &[u8]) -> Result<()> {
        self.inner.write(to, offset, bytes)
    }

    fn read(&mut self, from: &Memory, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.inner.read(from, offset, bytes)
    }

    fn send(&mut self, to: &mut Memory, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        self.inner.send(to, len, fill)
    }

    fn send_ahead(
        &mut self,
        slot: usize,
        to: &mut Memory,
        offset: usize,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.inner.send_ahead(slot, to, offset, len, fill)
    }

    fn arrive(&mut self, slot: usize, in_turn: bool) -> Result<()> {
        self.inner.arrive(slot, in_turn)
    }

    fn leave(&mut self, slot: usize) -> Result<()> {
        self.inner.leave(slot)
    }

    fn idle(&mut self) -> Result<f64> {
        self.inner.idle()
    }

    fn zero(&mut self, memory: &mut Memory, range: Range<usize>) -> Result<()> {
        self.lap("zero".into(), 0.0, &mut |dev| dev.zero(memory, range.clone()))
    }

    unsafe fn launch(&mut self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        // SAFETY: the caller's promise is handed on.
        self.lap(kernel.into(), 0.0, &mut |dev| unsafe { dev.launch(kernel, launch, args) })
    }

    unsafe fn product(&mut self, product: &Product) -> Result<()> {
        let (m, n, inner) = product.sizes()?;
        let kind = match product.a.element {
            Element::F32 => "f32",
            Element::Bf16 => "bf16",
        };
        let name = format!("product {m} x {n} x {inner} {kind}");
        let operations = 2.0 * m as f64 * n as f64 * inner as f64;
        // SAFETY: the caller's promise is handed on.
        self.lap(name, operations, &mut |dev| unsafe { dev.product(product) })
    }

    fn record(&mut self, _: RecordKey, work: &mut dyn FnMut(&mut dyn Device) -> Result<()>) -> Result<()> {
        work(self)
    }

    fn timed(&mut self, work: &mut dyn FnMut(&mut dyn Device) -> Result<()>) -> Result<f64> {
        self.inner.timed(work)
    }

    fn forget(&mut self) {
        self.inner.forget();
    }

    fn synchronize(&mut self) -> Result<()> {
        self.inner.synchronize()
    }
}
