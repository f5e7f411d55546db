//! Memory of the device, which is memory of this process.

use crate::Result;
use std::alloc::Layout;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// From this size on memory is reserved alone: what is not touched takes none.
pub const RESERVED: usize = 1 << 30;

type Live = Arc<Mutex<BTreeMap<u64, usize>>>;

/// A block of memory of the device; given back when dropped.
pub struct Block {
    address: u64,
    bytes: usize,
    live: Live,
}

/// How memory of fewer than [`RESERVED`] bytes is taken.
fn layout(bytes: usize) -> Result<Layout> {
    Layout::from_size_align(bytes.max(1), 256).map_err(|e| e.to_string())
}

impl Block {
    /// `bytes` zero bytes, which count as live until the block is dropped.
    pub(super) fn new(bytes: usize, what: &str, live: &Live) -> Result<Self> {
        let address = if bytes >= RESERVED { reserve(bytes, what)? } else { allocate(bytes, what)? };
        live.lock().unwrap().insert(address, bytes);
        Ok(Self { address, bytes, live: live.clone() })
    }

    /// Address of its first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.live.lock().unwrap().remove(&self.address);
        if self.bytes >= RESERVED {
            // SAFETY: mapped by `reserve` with this length; a block is dropped once.
            unsafe { libc::munmap(self.address as *mut libc::c_void, self.bytes) };
        } else if let Ok(layout) = layout(self.bytes) {
            // SAFETY: allocated by `allocate` with this layout; a block is dropped once.
            unsafe { std::alloc::dealloc(self.address as *mut u8, layout) };
        }
    }
}

fn allocate(bytes: usize, what: &str) -> Result<u64> {
    // SAFETY: the layout is not empty.
    let start = unsafe { std::alloc::alloc_zeroed(layout(bytes)?) };
    if start.is_null() {
        return Err(format!("not enough memory for {bytes} bytes of {what}"));
    }
    Ok(start as u64)
}

/// `bytes` zero bytes that come into being page by page.
fn reserve(bytes: usize, what: &str) -> Result<u64> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, at an address that the system chooses.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        let why = std::io::Error::last_os_error();
        return Err(format!("{bytes} bytes of {what} cannot be reserved: {why}"));
    }
    // A page of 2 MiB for each touched row would be thousands of times what is wanted.
    // SAFETY: the mapping was made above with this length. An error costs memory alone.
    let _ = unsafe { libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE) };
    Ok(start as u64)
}
