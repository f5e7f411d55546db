//! Messages that go to the card beside its work: a stream of copies, and the events that order it and the stream of work.
//!
//! Per slot, with the next message gathered while the one before it is computed with:
//!
//! ```text
//! host      gather 1 | gather 2 | wait: 1 copied | gather 3 | wait: 2 copied | ...
//! copies      copy 1 | copy 2 |      wait: 1 left |  copy 3 | wait: 2 left |   copy 4
//! work              wait: copied 1 | step 1 | wait: copied 2 | step 2 | wait: copied 3 | step 3
//! ```
//!
//! So the copy of message 3 waits for step 1 alone, which read that memory last, and is made during step 2.

use super::card::elapsed_ms;
use super::device::AHEAD;
use super::fault;
use super::pinned::Pinned;
use crate::error::{Error, Result};
use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};
use std::collections::VecDeque;
use std::sync::Arc;

fn failed(e: DriverError) -> Error {
    fault::driver("sending rows to the GPU", e)
}

/// A stream of copies with its slots.
pub(super) struct Lane {
    slots: Vec<Slot>,
    clock: Clock,
    stream: Arc<CudaStream>,
}

/// Where one message is written on the host, and what it waits for. An event that was never recorded is over.
struct Slot {
    /// `None` before the first message.
    memory: Option<Pinned>,
    /// Recorded after the last copy.
    copied: CudaEvent,
    /// Recorded on the stream of work, after what reads the last copy.
    left: CudaEvent,
    /// Whether the next copy has to wait for `left`.
    occupied: bool,
}

impl Lane {
    /// The context must be current.
    pub(super) fn new(stream: Arc<CudaStream>) -> Result<Self> {
        let event = || stream.context().new_event(None).map_err(failed);
        let slot = || Ok(Slot { memory: None, copied: event()?, left: event()?, occupied: false });
        let slots = (0..AHEAD).map(|_| slot()).collect::<Result<_>>()?;
        Ok(Self { slots, clock: Clock::default(), stream })
    }

    /// The stream of copies.
    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// See [`super::device::Device::send_ahead`].
    ///
    /// # Safety
    /// `len` bytes at `address` must be live device memory of the stream's context, which is current, until the copy is
    /// done.
    pub(super) unsafe fn send(
        &mut self,
        slot: usize,
        address: u64,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let slot = find(&mut self.slots, slot)?;
        slot.copied.synchronize().map_err(failed)?;
        let memory = match slot.memory.take().filter(|memory| memory.bytes() >= len) {
            Some(memory) => slot.memory.insert(memory),
            None => slot.memory.insert(Pinned::new(self.stream.context(), len)?),
        };
        // SAFETY: the last copy from it is done; it has at least `len` bytes.
        let bytes = unsafe { memory.first(len) };
        fill(bytes)?;
        if std::mem::take(&mut slot.occupied) {
            self.stream.wait(&slot.left).map_err(failed)?;
        }
        // SAFETY: the caller vouches for the target; the source stays as it is until `copied`, recorded next on the same
        // stream, is over.
        unsafe { result::memcpy_htod_async(address, bytes, self.stream.cu_stream()) }.map_err(failed)?;
        slot.copied.record(&self.stream).map_err(failed)
    }

    /// See [`super::device::Device::arrive`].
    pub(super) fn arrive(&mut self, work: &CudaStream, slot: usize, in_turn: bool) -> Result<()> {
        work.wait(&find(&mut self.slots, slot)?.copied).map_err(failed)?;
        self.clock.goes_on(work, in_turn)
    }

    /// See [`super::device::Device::leave`].
    pub(super) fn leave(&mut self, work: &CudaStream, slot: usize) -> Result<()> {
        let slot = find(&mut self.slots, slot)?;
        slot.left.record(work).map_err(failed)?;
        slot.occupied = true;
        self.clock.ends(work)
    }

    /// See [`super::device::Device::idle`].
    pub(super) fn idle(&mut self) -> Result<f64> {
        self.clock.count()?;
        Ok(std::mem::take(&mut self.clock.seconds))
    }
}

fn find(slots: &mut [Slot], slot: usize) -> Result<&mut Slot> {
    let none = || Error::Failed(format!("there is no slot {slot} to send from; please report this"));
    slots.get_mut(slot).ok_or_else(none)
}

/// How long the work stood still, from the end of what read one message to the beginning of what reads the next.
#[derive(Default)]
struct Clock {
    ended: Option<CudaEvent>,
    /// Ends and beginnings that may not be over yet: a few, since the host is a few messages ahead.
    gaps: VecDeque<(CudaEvent, CudaEvent)>,
    spare: Vec<CudaEvent>,
    seconds: f64,
}

impl Clock {
    fn ends(&mut self, work: &CudaStream) -> Result<()> {
        let ended = self.now(work)?;
        self.spare.extend(self.ended.replace(ended));
        Ok(())
    }

    fn goes_on(&mut self, work: &CudaStream, in_turn: bool) -> Result<()> {
        self.count()?;
        match self.ended.take() {
            Some(ended) if in_turn => {
                let began = self.now(work)?;
                self.gaps.push_back((ended, began));
            }
            other => self.spare.extend(other),
        }
        Ok(())
    }

    fn now(&mut self, work: &CudaStream) -> Result<CudaEvent> {
        let context: &Arc<CudaContext> = work.context();
        let event = match self.spare.pop() {
            Some(event) => event,
            // With the time in it, which is not cudarc's default.
            None => context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(failed)?,
        };
        event.record(work).map_err(failed)?;
        Ok(event)
    }

    /// Adds the gaps that are over.
    fn count(&mut self) -> Result<()> {
        while let Some((_, began)) = self.gaps.front()
            && began.try_is_complete().map_err(failed)?
            && let Some((ended, began)) = self.gaps.pop_front()
        {
            self.seconds += f64::from(elapsed_ms(&ended, &began).map_err(failed)?) * 1e-3;
            self.spare.extend([ended, began]);
        }
        Ok(())
    }
}
