//! A ring of pinned host memory, through which small messages go to the card without a wait.

use super::fault;
use crate::error::{Error, Result};
use cudarc::driver::result;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;

/// Messages under way before a new one waits for the oldest. A step sends a few: the host stays several steps ahead.
const SLOTS: usize = 16;

/// Smallest slot, in bytes.
const SMALLEST: usize = 4096;

const DOING: &str = "sending to the GPU";

/// Slots in the order of their last use.
pub(super) struct Ring {
    slots: VecDeque<Slot>,
}

struct Slot {
    memory: Pinned,
    /// Recorded after the last copy from the slot.
    done: CudaEvent,
}

/// Pinned host memory; all of it is initialised.
pub(super) struct Pinned {
    pointer: *mut c_void,
    bytes: usize,
    context: Arc<CudaContext>,
}

// SAFETY: the memory is owned by this value alone, and the driver maps it for all threads of the process.
unsafe impl Send for Pinned {}

impl Pinned {
    /// The context must be current.
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self> {
        // SAFETY: the caller has made the context current.
        let pointer = unsafe { result::malloc_host(bytes, 0) }.map_err(|e| {
            let told = fault::driver("taking pinned host memory", e);
            Error::Failed(format!("{told} ({bytes} bytes)"))
        })?;
        // SAFETY: the driver has just given `bytes` bytes at `pointer`; they must hold something before they are
        // lent as a slice.
        unsafe { std::ptr::write_bytes(pointer.cast::<u8>(), 0, bytes) };
        Ok(Self { pointer, bytes, context: context.clone() })
    }

    /// Bytes that it has.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first `len` bytes, or all where it has fewer.
    ///
    /// # Safety
    /// No copy from this memory may be under way.
    pub(super) unsafe fn first(&mut self, len: usize) -> &mut [u8] {
        // SAFETY: `bytes` initialised bytes are at `pointer`, of which no more are lent; `&mut self` keeps others away, and
        // the caller vouches for the driver.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast::<u8>(), len.min(self.bytes)) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Errors leave nothing to do: the memory goes with the process.
        let _ = self.context.bind_to_thread();
        // SAFETY: from `malloc_host`, freed here alone; whoever drops a slot has waited for its event.
        let _ = unsafe { result::free_host(self.pointer) };
    }
}

impl Ring {
    pub(super) fn new() -> Self {
        Self { slots: VecDeque::new() }
    }

    /// Has `fill` write `len` bytes, and queues their copy to `address` on `stream`.
    ///
    /// # Safety
    /// `len` bytes at `address` must be live device memory of the stream's context, which is current.
    pub(super) unsafe fn send(
        &mut self,
        stream: &Arc<CudaStream>,
        address: u64,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<()> {
        let slot = self.free(stream.context(), len)?;
        // SAFETY: the slot's last copy is done (`free`); it has at least `len` bytes.
        let bytes = unsafe { slot.memory.first(len) };
        fill(bytes);
        let failed = |e| fault::driver(DOING, e);
        // SAFETY: the caller vouches for the target; the source stays as it is until `done`, recorded next on the
        // same stream, is over.
        unsafe { result::memcpy_htod_async(address, bytes, stream.cu_stream()) }.map_err(failed)?;
        slot.done.record(stream).map_err(failed)?;
        self.slots.rotate_left(1);
        Ok(())
    }

    /// The first slot, with at least `len` bytes, and nothing under way from it.
    fn free(&mut self, context: &Arc<CudaContext>, len: usize) -> Result<&mut Slot> {
        let failed = |e| fault::driver(DOING, e);
        let bytes = len.max(SMALLEST).next_power_of_two();
        let busy = match self.slots.front() {
            Some(oldest) => !oldest.done.try_is_complete().map_err(failed)?,
            None => true,
        };
        if busy && self.slots.len() < SLOTS {
            let done = context.new_event(None).map_err(failed)?;
            self.slots.push_front(Slot { memory: Pinned::new(context, bytes)?, done });
        } else if busy && let Some(oldest) = self.slots.front() {
            oldest.done.synchronize().map_err(failed)?;
        }
        match self.slots.front_mut() {
            Some(slot) => {
                if slot.memory.bytes < len {
                    slot.memory = Pinned::new(context, bytes)?;
                }
                Ok(slot)
            }
            None => Err(Error::Failed("no slot to send from; please report this".to_owned())),
        }
    }
}
