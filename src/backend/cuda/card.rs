//! A CUDA card as a [`Device`], by the driver's interface and cuBLAS.
//!
//! All work is queued on one stream of its own: the default stream cannot be recorded. Rows that are sent ahead have
//! another (`lane`).

use super::compile::{Arch, cache};
use super::device::{Arg, Device, Facts, Launch, Memory, Product, RecordKey};
use super::gemm::{Math, gemm_call};
use super::lane::Lane;
use super::pinned::Ring;
use super::{fault, libraries, sources};
use crate::error::{Error, Result};
use blas::Blas;
use cudarc::driver::result;
use cudarc::driver::sys::{
    self as driver_sys, CUdevice_attribute as Attribute, CUevent, CUevent_flags,
    CUfunction_attribute as FunctionAttribute, CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode,
};
use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaModule, CudaStream, DriverError};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

mod blas;

pub use super::libraries::available;

const WAITING: &str = "waiting for the GPU";

/// Held while a thread records, and while one does what synchronizes the whole device, as opening a card and closing
/// cuBLAS do: that would spoil a record that another thread has under way, in whatever mode it was begun.
static DEVICE_WIDE: Mutex<()> = Mutex::new(());

/// Waits until no other thread holds [`DEVICE_WIDE`]. It guards no data, so a panic of its holder leaves nothing broken.
fn device_wide() -> MutexGuard<'static, ()> {
    DEVICE_WIDE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A CUDA card with its kernels, a stream of work and one of copies.
// Fields are dropped in this order: what uses a stream before the stream.
pub struct Card {
    records: HashMap<RecordKey, Record>,
    blas: Blas,
    kernels: HashMap<&'static str, Kernel>,
    module: Arc<CudaModule>,
    ring: Ring,
    lane: Lane,
    math: Math,
    recording: bool,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

/// What became of a sequence of launches.
enum Record {
    /// It ran once, unrecorded: by then all its kernels are loaded, cuBLAS's among them, which cannot be done
    /// safely while a stream is recorded.
    Ran,
    /// It is replayed.
    Graph(CudaGraph),
}

// SAFETY: a graph belongs to a context, not to a thread: the driver allows any thread to launch it, one at a time, which
// `&mut Card` sees to.
unsafe impl Send for Record {}

/// A kernel that was launched before.
struct Kernel {
    function: CudaFunction,
    /// Most dynamic shared memory that it was given so far, in bytes.
    shared: u32,
}

/// Opens the libraries and card `ordinal`, and compiles its kernels or takes them from the disk.
///
/// # Errors
/// One line each: no driver, no such card, a driver or card too old, NVRTC or cuBLAS missing, kernels that do not
/// compile or load.
pub fn open(ordinal: usize, math: Math) -> Result<Card> {
    let driver = libraries::open_all(ordinal).map_err(Error::Failed)?;
    let Some(listed) = driver.cards.get(ordinal) else {
        let count = driver.cards.len();
        return Err(Error::Usage(format!(
            "--device cuda:{ordinal}: the driver lists {count} GPU{}, from cuda:0 to cuda:{}; see `sae devices`",
            if count == 1 { "" } else { "s" },
            count - 1
        )));
    };
    listed.check(ordinal).map_err(Error::Failed)?;
    let arch = Arch::of(listed.capability)?;
    let kept = cache::compiled(sources::SOURCES, arch, cache::folder().as_deref())?;
    let opening = format!("opening cuda:{ordinal} ({})", listed.name);
    let failed = |e| fault::driver(&opening, e);
    let alone = device_wide();
    let context = CudaContext::new(ordinal).map_err(failed)?;
    let stream = context.new_stream().map_err(failed)?;
    let copies = context.new_stream().map_err(failed)?;
    let loading = format!("loading the kernels for {arch} on cuda:{ordinal} ({})", listed.name);
    let module = context.load_module(Ptx::from_binary(kept.cubin)).map_err(|e| fault::driver(&loading, e))?;
    drop(alone);
    let blas = Blas::new(&stream, listed.capability)?;
    Ok(Card {
        records: HashMap::new(),
        blas,
        kernels: HashMap::new(),
        module,
        ring: Ring::new(),
        lane: Lane::new(copies)?,
        math,
        recording: false,
        stream,
        context,
    })
}

/// `bytes` of device memory whose content is not set, freed after all that is queued on `streams` by then.
///
/// Their context must be current.
fn take<const N: usize>(streams: [&Arc<CudaStream>; N], bytes: usize, what: &'static str) -> Result<Memory> {
    // The driver gives no memory of no bytes, and every block has an address.
    // SAFETY: the context is current; the content is set before it is read (by the callers).
    let address = match unsafe { result::malloc_sync(bytes.max(1)) } {
        Ok(address) => address,
        Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
            let free = result::mem_get_info().ok().map(|(free, total)| (free as u64, total as u64));
            return Err(fault::no_memory(what, bytes as u64, free));
        }
        Err(e) => return Err(fault::driver(&format!("taking GPU memory for {what} ({bytes} bytes)"), e)),
    };
    let streams = streams.map(Arc::clone);
    let release = move |address| {
        for stream in streams {
            // Errors leave nothing to do: the memory of a card that failed goes with the process.
            // SAFETY: `stream` keeps its context alive.
            let _ = unsafe { result::ctx::set_current(stream.context().cu_ctx()) };
            // SAFETY: as above; what is queued may still use the memory.
            let _ = unsafe { result::stream::synchronize(stream.cu_stream()) };
        }
        // SAFETY: `address` came from the driver, and `Memory` calls this once.
        let _ = unsafe { result::free_sync(address) };
    };
    Ok(Memory::new(address, bytes, what, Box::new(release)))
}

impl Card {
    /// Makes the context current for this thread, before anything else is asked of the driver.
    fn bind(&self, doing: &str) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| fault::driver(doing, e))
    }

    /// Refuses what would wait or allocate while a sequence is recorded, and makes the context current.
    fn bind_outside(&self, doing: &str) -> Result<()> {
        if self.recording {
            return Err(Error::Failed(format!(
                "{doing}: not while launches are recorded; please report this"
            )));
        }
        self.bind(doing)
    }

    fn attribute(&self, attribute: Attribute) -> Result<u32> {
        let value =
            self.context.attribute(attribute).map_err(|e| fault::driver("asking the GPU what it is", e))?;
        Ok(value.unsigned_abs())
    }

    fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| fault::driver(WAITING, e))
    }

    /// A kernel by name, allowed to have `shared` bytes of dynamic shared memory.
    fn kernel(&mut self, name: &'static str, shared: u32) -> Result<&CudaFunction> {
        let failed = |e| fault::driver(&format!("loading the kernel {name}"), e);
        let kernel = match self.kernels.entry(name) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let function = self.module.load_function(name).map_err(failed)?;
                entry.insert(Kernel { function, shared: 0 })
            }
        };
        // Always asked for: a block has 48 KiB without asking, of which the kernel's static shared memory takes its
        // part, and the limit of a function that the driver reports need not count that.
        if shared > kernel.shared {
            let doing = format!("giving the kernel {name} {shared} bytes of shared memory");
            kernel
                .function
                .set_attribute(
                    FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared as i32,
                )
                .map_err(|e| fault::driver(&doing, e))?;
            kernel.shared = shared;
        }
        Ok(&kernel.function)
    }

    /// Records what `work` queues.
    fn capture(&mut self, work: &mut dyn FnMut(&mut dyn Device) -> Result<()>) -> Result<CudaGraph> {
        let failed = |e| fault::driver("recording launches", e);
        // In this mode other threads' calls do not spoil the record, but for those that synchronize the device.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let _alone = device_wide();
        self.stream.begin_capture(mode).map_err(failed)?;
        self.recording = true;
        let worked = work(self);
        self.recording = false;
        // In any case, or the stream would stay in this state.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        worked?;
        graph
            .map_err(failed)?
            .ok_or_else(|| Error::Failed("recording launches gave no graph; please report this".to_owned()))
    }
}

impl Device for Card {
    fn facts(&self) -> Result<Facts> {
        const ASKING: &str = "asking the GPU what it is";
        self.bind(ASKING)?;
        let failed = |e| fault::driver(ASKING, e);
        let (free, total) = self.context.mem_get_info().map_err(failed)?;
        Ok(Facts {
            name: self.context.name().map_err(failed)?,
            free: free as u64,
            total: total as u64,
            multiprocessors: self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared: self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        })
    }

    fn card(&self) -> Option<usize> {
        Some(self.context.ordinal())
    }

    fn stream(&self) -> u64 {
        self.stream.cu_stream() as u64
    }

    fn allocate(&mut self, bytes: usize, what: &'static str) -> Result<Memory> {
        let doing = "taking GPU memory";
        self.bind_outside(doing)?;
        let memory = take([&self.stream, self.lane.stream()], bytes, what)?;
        if bytes > 0 {
            // SAFETY: the block has `bytes` bytes, all inside.
            unsafe { result::memset_d8_async(memory.address(), 0, bytes, self.stream.cu_stream()) }
                .map_err(|e| fault::driver(doing, e))?;
        }
        Ok(memory)
    }

    fn write(&mut self, to: &mut Memory, offset: usize, bytes: &[u8]) -> Result<()> {
        let doing = "copying to the GPU";
        let address = to.part(range(offset, bytes.len()))?;
        self.bind_outside(doing)?;
        if !bytes.is_empty() {
            // SAFETY: `part` has checked the target range; the source lives until the wait below is over.
            let copied = unsafe { result::memcpy_htod_async(address, bytes, self.stream.cu_stream()) };
            copied.map_err(|e| fault::driver(doing, e))?;
        }
        self.wait()
    }

    fn read(&mut self, from: &Memory, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let doing = "copying from the GPU";
        let address = from.part(range(offset, bytes.len()))?;
        self.bind_outside(doing)?;
        if !bytes.is_empty() {
            // SAFETY: `part` has checked the source range; the target lives until the wait below is over.
            let copied = unsafe { result::memcpy_dtoh_async(bytes, address, self.stream.cu_stream()) };
            copied.map_err(|e| fault::driver(doing, e))?;
        }
        self.wait()
    }

    fn send(&mut self, to: &mut Memory, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        let address = to.part(0..len)?;
        self.bind_outside("sending to the GPU")?;
        if len == 0 {
            fill(&mut []);
            return Ok(());
        }
        // SAFETY: `part` has checked the target range; the context is current.
        unsafe { self.ring.send(&self.stream, address, len, fill) }
    }

    fn send_ahead(
        &mut self,
        slot: usize,
        to: &mut Memory,
        offset: usize,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let address = to.part(range(offset, len))?;
        self.bind_outside("sending rows to the GPU")?;
        if len == 0 {
            return fill(&mut []);
        }
        // SAFETY: `part` has checked the target range; the context is current; memory is freed after what is queued on the
        // stream of copies (`take`).
        unsafe { self.lane.send(slot, address, len, fill) }
    }

    fn arrive(&mut self, slot: usize, in_turn: bool) -> Result<()> {
        self.bind_outside("waiting for rows on the GPU")?;
        self.lane.arrive(&self.stream, slot, in_turn)
    }

    fn leave(&mut self, slot: usize) -> Result<()> {
        self.bind_outside("giving rows on the GPU up")?;
        self.lane.leave(&self.stream, slot)
    }

    fn idle(&mut self) -> Result<f64> {
        self.bind_outside("timing work on the GPU")?;
        self.lane.idle()
    }

    fn zero(&mut self, memory: &mut Memory, range: Range<usize>) -> Result<()> {
        let doing = "setting GPU memory to zero";
        let bytes = range.len();
        let address = memory.part(range)?;
        self.bind(doing)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: `part` has checked the range.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) }
            .map_err(|e| fault::driver(doing, e))
    }

    unsafe fn launch(&mut self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        self.bind("launching a kernel")?;
        let function = self.kernel(kernel, launch.shared)?.cu_function();
        // The driver reads as many bytes of each value as its parameter has: the low ones come first.
        let mut values: Vec<u64> = args.iter().map(|arg| bits(*arg)).collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        // SAFETY: the caller vouches for the arguments; `values` outlives the call, which copies them.
        let launched = unsafe {
            result::launch_kernel(
                function,
                (launch.grid.0, launch.grid.1, 1),
                (launch.block, 1, 1),
                launch.shared,
                self.stream.cu_stream(),
                &mut pointers,
            )
        };
        launched.map_err(|e| fault::driver(&format!("launching the kernel {kernel} {launch:?}"), e))
    }

    unsafe fn product(&mut self, product: &Product) -> Result<()> {
        let call = gemm_call(product, self.math)?;
        self.bind("a dense product")?;
        // SAFETY: the caller vouches for the memory, and `gemm_call` has checked the sizes.
        unsafe { self.blas.gemm(&call) }
    }

    fn record(&mut self, key: RecordKey, work: &mut dyn FnMut(&mut dyn Device) -> Result<()>) -> Result<()> {
        self.bind_outside("recording launches")?;
        match self.records.get(&key) {
            None => {
                // What cannot be recorded is refused at the first time already.
                self.recording = true;
                let worked = work(self);
                self.recording = false;
                worked?;
                self.records.insert(key, Record::Ran);
                return Ok(());
            }
            Some(Record::Ran) => {
                let graph = self.capture(work)?;
                self.records.insert(key, Record::Graph(graph));
            }
            Some(Record::Graph(_)) => {}
        }
        match self.records.get(&key) {
            Some(Record::Graph(graph)) => {
                graph.launch().map_err(|e| fault::driver("replaying recorded launches", e))
            }
            _ => Ok(()),
        }
    }

    fn timed(&mut self, work: &mut dyn FnMut(&mut dyn Device) -> Result<()>) -> Result<f64> {
        let doing = "timing work on the GPU";
        self.bind_outside(doing)?;
        let failed = |e| fault::driver(doing, e);
        // Events with the time in them, which is not cudarc's default.
        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let began = self.stream.record_event(flags).map_err(failed)?;
        work(self)?;
        let ended = self.stream.record_event(flags).map_err(failed)?;
        ended.synchronize().map_err(failed)?;
        let ms = elapsed_ms(&began, &ended).map_err(failed)?;
        Ok(f64::from(ms) * 1e-3)
    }

    fn forget(&mut self) {
        // A graph may still be running. An error shows up again at the next call.
        let _ = self.stream.synchronize();
        self.records.clear();
    }

    fn synchronize(&mut self) -> Result<()> {
        self.bind_outside(WAITING)?;
        self.wait()
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // The card may be dropped on another thread than it was used on; what is dropped after this needs the context.
        let _ = self.context.bind_to_thread();
        // Pinned memory, graphs and the workspace may be in use until then. There is nobody to report an error to.
        let _ = self.stream.synchronize();
        let _ = self.lane.stream().synchronize();
    }
}

/// Milliseconds between two events. cudarc calls `cuEventElapsedTime_v2`, which came with CUDA 12.8 and panics on the
/// older drivers that are served; every driver exports the function of this name.
pub(super) fn elapsed_ms(began: &CudaEvent, ended: &CudaEvent) -> std::result::Result<f32, DriverError> {
    type Elapsed = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;
    let mut ms = 0.0;
    // SAFETY: the driver is open, the function has had these parameters since CUDA 2, both events are live and were
    // recorded with the time, and the driver writes one float.
    unsafe {
        let elapsed = driver_sys::culib().get::<Elapsed>(b"cuEventElapsedTime\0");
        let elapsed = elapsed.map_err(|_| DriverError(CUresult::CUDA_ERROR_NOT_FOUND))?;
        elapsed(&mut ms, began.cu_event(), ended.cu_event()).result()?;
    }
    Ok(ms)
}

fn range(offset: usize, len: usize) -> Range<usize> {
    // An end that overflows lies outside of any memory, which `part` then says.
    offset..offset.saturating_add(len)
}

/// An argument's bytes as they lie in memory, low ones first.
fn bits(arg: Arg) -> u64 {
    let mut bytes = [0; 8];
    match arg {
        Arg::Pointer(v) | Arg::U64(v) => bytes = v.to_ne_bytes(),
        Arg::U32(v) => bytes[..4].copy_from_slice(&v.to_ne_bytes()),
        Arg::F32(v) => bytes[..4].copy_from_slice(&v.to_ne_bytes()),
    }
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_lie_in_memory_as_the_driver_reads_them() {
        let first_four = |arg| {
            let [a, b, c, d, ..] = bits(arg).to_ne_bytes();
            [a, b, c, d]
        };
        assert_eq!(first_four(Arg::U32(0x0102_0304)), 0x0102_0304u32.to_ne_bytes());
        assert_eq!(first_four(Arg::F32(1.5)), 1.5f32.to_ne_bytes());
        assert_eq!(bits(Arg::U64(u64::MAX - 1)), u64::MAX - 1);
        assert_eq!(bits(Arg::Pointer(0)), 0);
    }

    #[test]
    fn without_a_usable_gpu_opening_says_why_in_one_line() {
        let reason = match available() {
            Ok(_) => {
                eprintln!("SKIPPED: this machine has a usable GPU");
                return;
            }
            Err(reason) => reason,
        };
        let told = open(0, Math::F32).err().map(|e| e.to_string());
        assert_eq!(told.as_deref(), Some(reason.as_str()));
        assert!(!reason.contains('\n'), "{reason}");
    }
}
