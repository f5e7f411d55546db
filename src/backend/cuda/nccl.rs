//! Ranks that are processes with a card each: NCCL's collectives, queued on the card's stream.

use super::device::Device;
use super::fault::one_line;
use super::libraries::{self, Copy, Nccl as Functions, Need};
use super::ranks::{Number, Ranks, Span};
use crate::error::{Error, Result};
use crate::peers::Peers;
use cudarc::cublas::sys::cudaStream_t;
use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;

/// A rank's communicator, over which all ranks meet.
pub struct Nccl {
    copy: &'static Copy<Functions>,
    comm: ncclComm_t,
    peers: Arc<Peers>,
}

// SAFETY: a communicator belongs to a device, not to a thread: any thread may use it, one at a time, which `&mut self` sees to.
unsafe impl Send for Nccl {}

/// A type of values as NCCL numbers it.
fn number(of: Number) -> c_int {
    (match of {
        Number::F32 => ncclDataType_t::ncclFloat32,
        Number::F64 => ncclDataType_t::ncclFloat64,
        Number::U32 => ncclDataType_t::ncclUint32,
    }) as c_int
}

/// NCCL's words, if it has any.
fn words(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: NCCL gives strings that end with a zero and live as long as its library, which is never closed.
    let text = unsafe { CStr::from_ptr(text) };
    one_line(&text.to_string_lossy())
}

impl Nccl {
    /// Meets the ranks of `peers`, each of which calls this with `device` open on a card of its own: rank 0 makes the id of
    /// their meeting and hands it on.
    ///
    /// # Errors
    /// [`Error::Failed`]: no NCCL, or it fails; a rank is gone.
    pub fn join(peers: Arc<Peers>, device: &mut dyn Device) -> Result<Self> {
        let copy = libraries::nccl(Need::default()).map_err(Error::Failed)?;
        let mut nccl = Self { copy, comm: std::ptr::null_mut(), peers };
        let mut id = ncclUniqueId { internal: [0; 128] };
        let place = nccl.peers.place().clone();
        if place.rank == 0 {
            // SAFETY: NCCL writes one id to the address it is given.
            nccl.check(unsafe { (copy.functions.ncclGetUniqueId)(&mut id) }, "starting")?;
        }
        let bytes = nccl.peers.from_first(bytemuck::cast_slice(&id.internal))?;
        if bytes.len() != id.internal.len() {
            return Err(Error::Failed("rank 0 handed on no id of NCCL; please report this".into()));
        }
        id.internal.copy_from_slice(bytemuck::cast_slice(&bytes));
        // Makes the card's context current on this thread.
        device.synchronize()?;
        let (count, rank) = (place.count as c_int, place.rank as c_int);
        // No wait of which the peers hear: among many nodes this may take a minute.
        // SAFETY: NCCL writes one communicator, of the device that is current; every rank calls this with the same id.
        let status = unsafe { (copy.functions.ncclCommInitRank)(&mut nccl.comm, count, id, rank) };
        nccl.check(status, "meeting the other ranks")?;
        Ok(nccl)
    }

    /// Version of NCCL, and the file that it comes from.
    pub fn version(&self) -> ((u32, u32), &str) {
        (self.copy.version, &self.copy.from)
    }

    fn check(&self, status: c_int, doing: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        let functions = &self.copy.functions;
        // SAFETY: both take any number and any communicator of this library, null too.
        let (what, last) = unsafe {
            (words((functions.ncclGetErrorString)(status)), words((functions.ncclGetLastError)(self.comm)))
        };
        let last = if last.is_empty() { last } else { format!(": {last}") };
        Err(Error::Failed(format!(
            "NCCL fails while {doing}: {what} ({status}){last}; `NCCL_DEBUG=WARN` has it say more, and \
             NCCL_SOCKET_IFNAME names the network to use where there are several"
        )))
    }

    /// Queues calls that belong together.
    fn group(&mut self, calls: impl Iterator<Item = c_int>) -> Result<()> {
        let doing = "exchanging with the other ranks";
        // SAFETY: takes nothing; ended below whatever the calls give.
        self.check(unsafe { (self.copy.functions.ncclGroupStart)() }, doing)?;
        let failed = calls.filter(|&status| status != 0).last();
        // SAFETY: as above.
        let ended = unsafe { (self.copy.functions.ncclGroupEnd)() };
        self.check(failed.unwrap_or(ended), doing)?;
        self.peers.counts();
        Ok(())
    }
}

impl Ranks for Nccl {
    fn rank(&self) -> usize {
        self.peers.place().rank
    }

    fn count(&self) -> usize {
        self.peers.place().count
    }

    unsafe fn sum(&mut self, device: &mut dyn Device, spans: &[Span]) -> Result<()> {
        let (all_reduce, comm) = (self.copy.functions.ncclAllReduce, self.comm);
        let stream = device.stream() as cudaStream_t;
        let add = ncclRedOp_t::ncclSum as c_int;
        self.group(spans.iter().map(|span| {
            let at = span.address as *mut c_void;
            // SAFETY: the caller's promise: `len` values of live memory of this device, which the stream is of; NCCL takes one
            // address for what it reads and what it writes.
            unsafe { all_reduce(at, at, span.len, number(span.number), add, comm, stream) }
        }))
    }

    unsafe fn gather(&mut self, device: &mut dyn Device, spans: &[(Span, u64)]) -> Result<()> {
        let (all_gather, comm) = (self.copy.functions.ncclAllGather, self.comm);
        let stream = device.stream() as cudaStream_t;
        self.group(spans.iter().map(|(span, to)| {
            let (from, to) = (span.address as *const c_void, *to as *mut c_void);
            // SAFETY: as above; `to` has room for the span of every rank.
            unsafe { all_gather(from, to, span.len, number(span.number), comm, stream) }
        }))
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if !self.comm.is_null() {
            // SAFETY: made by `join` and destroyed here alone. An error leaves nothing to do.
            let _ = unsafe { (self.copy.functions.ncclCommDestroy)(self.comm) };
        }
    }
}
