//! What the engine asks of a device: memory, copies, kernels by name, dense products, recorded work.
//!
//! Two devices exist: a CUDA card, and the emulation on the CPU that the tests bring, so that every launch of the
//! engine is executed and checked on machines without a GPU. Work is queued in order on one stream; only
//! [`Device::read`] and [`Device::synchronize`] wait for it. Beside it, rows are sent ahead of the work that needs them
//! ([`Device::send_ahead`]).

use crate::error::{Error, Result};
use std::ops::Range;

/// Threads of a warp.
pub const WARP: u32 = 32;
/// Messages that are sent ahead: one that is computed with, and one on its way.
pub const AHEAD: usize = 2;

/// A block of device memory. Freed when dropped.
pub struct Memory {
    address: u64,
    bytes: usize,
    what: &'static str,
    release: Option<Box<dyn FnOnce(u64) + Send + Sync>>,
}

impl Memory {
    /// Memory at `address` of `bytes` bytes; `release` frees it. `what` names it in errors.
    pub fn new(
        address: u64,
        bytes: usize,
        what: &'static str,
        release: Box<dyn FnOnce(u64) + Send + Sync>,
    ) -> Self {
        Self { address, bytes, what, release: Some(release) }
    }

    /// Address of its first byte on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What it holds.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// Address of `range` (bytes).
    ///
    /// # Errors
    /// A range that does not lie inside.
    pub fn part(&self, range: Range<usize>) -> Result<u64> {
        if range.start > range.end || range.end > self.bytes {
            return Err(Error::Failed(format!(
                "bytes {range:?} do not lie in the {} bytes of {}; please report this",
                self.bytes, self.what
            )));
        }
        Ok(self.address + range.start as u64)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release(self.address);
        }
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.what, self.bytes)
    }
}

/// One kernel argument, passed by value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg {
    /// A pointer into device memory; 0 is the null pointer.
    Pointer(u64),
    /// `unsigned int`.
    U32(u32),
    /// `unsigned long long`.
    U64(u64),
    /// `float`.
    F32(f32),
}

/// Blocks, threads and dynamic shared memory of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x and y.
    pub grid: (u32, u32),
    /// Threads of a block, in x; a multiple of [`WARP`].
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// Type of the values in an operand of a dense product, and of scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
}

impl Element {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// A matrix in device memory, row-major: element (i, j) is value `i * stride + j` from `address`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// First element.
    pub address: u64,
    /// Type of the values.
    pub element: Element,
    /// Rows as stored.
    pub rows: usize,
    /// Columns as stored.
    pub cols: usize,
    /// Values between the starts of two rows.
    pub stride: usize,
}

/// `out = a b` with float32 sums, or `out += a b`; a and b may be taken transposed.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Left operand.
    pub a: Matrix,
    /// Take the left operand transposed.
    pub a_transposed: bool,
    /// Right operand, of the same type as the left.
    pub b: Matrix,
    /// Take the right operand transposed.
    pub b_transposed: bool,
    /// Result; float32, or of the operands' type.
    pub out: Matrix,
    /// Add to what is there.
    pub add: bool,
}

impl Product {
    /// Rows of the result, columns of the result, and the length of the sums.
    ///
    /// # Errors
    /// Sizes or types that do not go together.
    pub fn sizes(&self) -> Result<(usize, usize, usize)> {
        let turn = |m: &Matrix, t: bool| if t { (m.cols, m.rows) } else { (m.rows, m.cols) };
        let ((m, inner), (inner_b, n)) = (turn(&self.a, self.a_transposed), turn(&self.b, self.b_transposed));
        let fits = inner == inner_b && (m, n) == (self.out.rows, self.out.cols);
        let strides = [&self.a, &self.b, &self.out].iter().all(|m| m.stride >= m.cols);
        let types = self.a.element == self.b.element
            && (self.out.element == Element::F32 || self.out.element == self.a.element);
        if fits && strides && types {
            Ok((m, n, inner))
        } else {
            Err(Error::Failed(format!("a dense product does not fit: {self:?}; please report this")))
        }
    }
}

/// What a device is.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// As the driver names it.
    pub name: String,
    /// Bytes of memory that are free now.
    pub free: u64,
    /// Bytes of memory in all.
    pub total: u64,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Most bytes of dynamic shared memory of a block.
    pub shared: u32,
}

/// Names a recorded sequence of launches: what differs in it from others of the same engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordKey {
    /// Which sequence.
    pub kind: &'static str,
    /// Rows of the batch.
    pub n_rows: usize,
    /// Which of the messages sent ahead it reads; 0 where it reads none.
    pub slot: usize,
}

/// A device with one queue of work.
pub trait Device: Send {
    /// What it is, and what is free at this moment.
    ///
    /// # Errors
    /// The device does not answer.
    fn facts(&self) -> Result<Facts>;

    /// The number of the card whose memory this is, which other devices of this process with that number can read;
    /// `None` where its memory is its own.
    fn card(&self) -> Option<usize>;

    /// `bytes` of memory, all zero, aligned to 256 bytes.
    ///
    /// # Errors
    /// Not enough memory: the error names `what`, the sizes, and the flags that help.
    fn allocate(&mut self, bytes: usize, what: &'static str) -> Result<Memory>;

    /// Copies `bytes` to `to` from byte `offset` on, after all queued work, and waits.
    ///
    /// # Errors
    /// A range outside, or the device fails.
    fn write(&mut self, to: &mut Memory, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Waits for all queued work, then copies from byte `offset` of `from` on to `bytes`.
    ///
    /// # Errors
    /// A range outside, or the device or any queued work failed.
    fn read(&mut self, from: &Memory, offset: usize, bytes: &mut [u8]) -> Result<()>;

    /// Queues a copy of `len` bytes to the start of `to`. `fill` writes them into pinned memory at once; the copy
    /// is made in its turn, and nothing waits for it. Never inside [`Device::record`].
    ///
    /// # Errors
    /// A length outside, or the device fails.
    fn send(&mut self, to: &mut Memory, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()>;

    /// Queues a copy of `len` bytes to `to`, from byte `offset` on, beside the queued work: it is made as soon as the work
    /// before the last [`Device::leave`] of `slot` (below [`AHEAD`]) is done, and what is queued after the next
    /// [`Device::arrive`] sees it. `fill` writes the bytes into pinned memory of that slot, after a wait for the last copy
    /// from it. Never inside [`Device::record`].
    ///
    /// # Errors
    /// What `fill` gives: nothing is then queued. A range outside, or the device fails.
    fn send_ahead(
        &mut self,
        slot: usize,
        to: &mut Memory,
        offset: usize,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()>;

    /// Work that is queued from here on comes after the copies of `slot` so far. `in_turn`: the time that the device has
    /// nothing to do meanwhile, since the last [`Device::leave`], is counted in [`Device::idle`].
    ///
    /// # Errors
    /// The device fails.
    fn arrive(&mut self, slot: usize, in_turn: bool) -> Result<()>;

    /// Copies of `slot` that are queued from here on come after the work queued so far. Due once after what they write to
    /// was allocated, and then after the work that reads it.
    ///
    /// # Errors
    /// The device fails.
    fn leave(&mut self, slot: usize) -> Result<()>;

    /// Seconds that the device waited in [`Device::arrive`] since this was last asked, as far as it is known yet.
    ///
    /// # Errors
    /// The device fails.
    fn idle(&mut self) -> Result<f64>;

    /// Queues filling `range` (bytes) of `memory` with zero bytes.
    ///
    /// # Errors
    /// A range outside, or the device fails.
    fn zero(&mut self, memory: &mut Memory, range: Range<usize>) -> Result<()>;

    /// Queues a kernel.
    ///
    /// # Safety
    /// `args` must be the kernel's parameters in number, order and type, and every address that the kernel
    /// computes from them must lie in live memory.
    ///
    /// # Errors
    /// No such kernel, or the device refuses the launch.
    unsafe fn launch(&mut self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()>;

    /// Queues a dense product.
    ///
    /// # Safety
    /// The three matrices must lie in live memory, and `out` must not overlap the operands.
    ///
    /// # Errors
    /// Sizes that do not go together, or the library fails.
    unsafe fn product(&mut self, product: &Product) -> Result<()>;

    /// Queues what `work` queues. A device that can records it at the first time a key is seen and replays the
    /// record later, so `work` must queue the same launches with the same arguments for the same key, until
    /// [`Device::forget`]. `work` may not wait, send or allocate.
    ///
    /// # Errors
    /// As from `work`.
    fn record(&mut self, key: RecordKey, work: &mut dyn FnMut(&mut dyn Device) -> Result<()>) -> Result<()>;

    /// Seconds that the device takes for what `work` queues, once everything before it is done.
    ///
    /// # Errors
    /// As from `work`, or the device fails.
    fn timed(&mut self, work: &mut dyn FnMut(&mut dyn Device) -> Result<()>) -> Result<f64>;

    /// The stream of the work, as libraries of CUDA take it; 0 where there is none.
    fn stream(&self) -> u64;

    /// Drops all records: memory that they name is about to be freed.
    fn forget(&mut self);

    /// Waits for all queued work.
    ///
    /// # Errors
    /// Any of it failed.
    fn synchronize(&mut self) -> Result<()>;
}
