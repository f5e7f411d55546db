//! All rows on a device, sent once: backends of one process that read the same source share them, and a source may keep them
//! for later ones ([`RowSource::lend`]).

use super::device::{AHEAD, Device, Memory};
use crate::error::{Error, Result};
use crate::rows::RowSource;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Bytes of a message that has a part of the rows.
const MESSAGE: usize = 16 << 20;

/// The rows of a source in the memory of a device.
pub(super) struct AllRows {
    memory: Memory,
    /// No other source has its address as long as it is known.
    source: Weak<dyn RowSource>,
    card: Option<usize>,
}

/// Those that some backend or source holds.
static HELD: Mutex<Vec<Weak<AllRows>>> = Mutex::new(vec![]);

impl AllRows {
    /// The rows of `data`, `row_bytes` bytes each: those that another backend has on this card; else they are sent, where
    /// `fits` finds room for so many bytes. `None` where there is none.
    ///
    /// # Errors
    /// What the device or the source gives.
    pub(super) fn of(
        dev: &mut dyn Device,
        data: &Arc<dyn RowSource>,
        row_bytes: usize,
        fits: impl FnOnce(&dyn Device, u64) -> Result<bool>,
    ) -> Result<Option<Arc<Self>>> {
        let card = dev.card();
        // Whoever wants the same rows meanwhile waits for them here. The list is whole after a panic, too.
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|rows| rows.strong_count() > 0);
        let same = |rows: &Arc<Self>| card.is_some() && rows.card == card && is_same(&rows.source, data);
        if let Some(rows) = held.iter().filter_map(Weak::upgrade).find(same) {
            return Ok(Some(rows));
        }
        if !fits(dev, (data.n_rows() * row_bytes) as u64)? {
            return Ok(None);
        }
        let memory = send(dev, data.as_ref(), row_bytes)?;
        let rows = Arc::new(Self { memory, source: Arc::downgrade(data), card });
        held.push(Arc::downgrade(&rows));
        data.lend(rows.clone());
        Ok(Some(rows))
    }

    /// Where the first row lies.
    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }
}

/// Whether two are one source, by their addresses alone: one type may have several tables of functions.
fn is_same(a: &Weak<dyn RowSource>, b: &Arc<dyn RowSource>) -> bool {
    std::ptr::addr_eq(Weak::as_ptr(a), Arc::as_ptr(b))
}

/// Brings all rows to the device, one after another, `row_bytes` bytes each.
fn send(dev: &mut dyn Device, data: &dyn RowSource, row_bytes: usize) -> Result<Memory> {
    let n = data.n_rows();
    let mut memory = dev.allocate((n * row_bytes).max(1), "the data")?;
    for slot in 0..AHEAD {
        dev.leave(slot)?;
    }
    let run = (MESSAGE / row_bytes.max(1)).max(1);
    let last =
        u32::try_from(n).map_err(|_| Error::Failed(format!("{n} rows are more than can be numbered")))?;
    // Rows that are in files come by blocks, not one by one.
    let blocks = |rows: &[u32]| match (rows.first(), rows.last()) {
        (Some(&first), Some(&last)) => (data.block_of(first)..=data.block_of(last)).collect::<Vec<u32>>(),
        _ => vec![],
    };
    let rows: Vec<u32> = (0..last).collect();
    for (at, now) in rows.chunks(run).enumerate() {
        let next = rows.chunks(run).nth(at + 1).unwrap_or_default();
        data.hold(&blocks(now), &blocks(next))?;
        let (first, len) = (at * run * row_bytes, now.len() * row_bytes);
        dev.send_ahead(at % AHEAD, &mut memory, first, len, &mut |out| data.gather_stored(now, out))?;
    }
    data.hold(&[], &[])?;
    for slot in 0..AHEAD {
        dev.arrive(slot, false)?;
    }
    // Other streams than this device's may read them.
    dev.synchronize()?;
    Ok(memory)
}
