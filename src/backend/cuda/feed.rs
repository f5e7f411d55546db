//! Rows on their way to the device, batch by batch, where they do not all fit: gathered in parallel and sent ahead
//! ([`Device::send_ahead`]), the next batch while the device computes with the one before it.

use super::device::{AHEAD, Device, Memory};
use crate::error::Result;
use crate::rows::RowSource;

/// Batches of rows that travel.
pub(super) struct Feed {
    buffers: Vec<Memory>,
    row_bytes: usize,
    /// Rows of a batch at most.
    capacity: usize,
    /// The slot that the next batch goes to.
    next: usize,
    /// Rows that were announced: they are there, or on their way.
    ready: Option<Vec<u32>>,
    /// The slot whose rows are computed with.
    in_use: Option<usize>,
}

/// A batch that the work queued next may read.
pub(super) struct Fed {
    /// Where its rows lie.
    pub(super) address: u64,
    /// Bytes there, in whole words.
    pub(super) bytes: usize,
    /// Which of the feed's places that is.
    pub(super) slot: usize,
}

impl Feed {
    /// Buffers for batches of up to `capacity` rows of `row_bytes` bytes.
    pub(super) fn new(dev: &mut dyn Device, capacity: usize, row_bytes: usize) -> Result<Self> {
        let mut buffers = vec![];
        for slot in 0..AHEAD {
            // Whole words, as ranks add them up.
            let bytes = (capacity * row_bytes).next_multiple_of(4).max(4);
            buffers.push(dev.allocate(bytes, "rows of a batch")?);
            // Copies come after the zeros that are there at first.
            dev.leave(slot)?;
        }
        Ok(Self { buffers, row_bytes, capacity, next: 0, ready: None, in_use: None })
    }

    /// Whether a batch of `n` rows fits.
    pub(super) fn holds(&self, n: usize) -> bool {
        n <= self.capacity
    }

    /// Gathers rows that the next batch will have, and queues their copy; returns without a wait for what is computed.
    pub(super) fn expect(&mut self, dev: &mut dyn Device, data: &dyn RowSource, rows: &[u32]) -> Result<()> {
        if self.ready.as_deref() == Some(rows) {
            return Ok(());
        }
        self.done(dev)?;
        // A batch that was announced and did not come leaves its place to this one.
        let mut kept = self.ready.take().unwrap_or_default();
        let (slot, len) = (self.next, rows.len() * self.row_bytes);
        dev.send_ahead(slot, &mut self.buffers[slot], 0, len, &mut |out| data.gather_stored(rows, out))?;
        kept.clear();
        kept.extend_from_slice(rows);
        self.ready = Some(kept);
        Ok(())
    }

    /// The rows of the work that is queued next, gathered now where they were not announced.
    pub(super) fn take(&mut self, dev: &mut dyn Device, data: &dyn RowSource, rows: &[u32]) -> Result<Fed> {
        let in_turn = self.ready.as_deref() == Some(rows);
        self.expect(dev, data, rows)?;
        self.ready = None;
        let slot = self.next;
        dev.arrive(slot, in_turn)?;
        self.in_use = Some(slot);
        self.next = (slot + 1) % AHEAD;
        let bytes = (rows.len() * self.row_bytes).next_multiple_of(4);
        let address = self.buffers[slot].part(0..bytes)?;
        Ok(Fed { address, bytes, slot })
    }

    /// Has the device wait for rows that were announced, so that what it waits for after that is not them.
    pub(super) fn settle(&mut self, dev: &mut dyn Device) -> Result<()> {
        self.ready.as_ref().map_or(Ok(()), |_| dev.arrive(self.next, true))
    }

    /// All work that reads the rows given last is queued.
    pub(super) fn done(&mut self, dev: &mut dyn Device) -> Result<()> {
        self.in_use.take().map_or(Ok(()), |slot| dev.leave(slot))
    }
}
