//! A device that runs CUDA kernels on the CPU, so that launches, sizes and results are checked without a card.

mod block;

pub use block::Block;

use crate::{Arg, Launch, Product, Result, build, product, ptx};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CStr, c_char};
use std::sync::{Arc, Mutex};

/// What a block may have of dynamic shared memory on every card since 2017 (sm_70 has 96 KiB, sm_86 99 KiB).
pub const SHARED: u32 = 99 << 10;

/// Kernels, memory, and the work that is recorded.
///
/// Beyond running kernels it checks: parameters against the kernel's signature, that every pointer lies in live memory,
/// shared memory against a card's limit, divergent barriers, and that recorded work is the same each time.
pub struct Emulator {
    kernels: BTreeMap<&'static str, &'static build::Kernel>,
    launch: build::LaunchFn,
    /// The same kernels as NVIDIA's compiler has made them, where these are to run.
    compiled: Option<&'static ptx::Kernels>,
    /// What launches of them moved, by kernel.
    moved: Arc<Mutex<BTreeMap<&'static str, ptx::Counts>>>,
    live: Arc<Mutex<BTreeMap<u64, usize>>>,
    records: HashMap<String, Vec<String>>,
    recording: Option<Vec<String>>,
    launches: u64,
    launched: Arc<Mutex<BTreeSet<&'static str>>>,
    /// Bytes of static shared memory that a kernel may have beside dynamic one.
    pub static_shared: u32,
    /// Bytes of shared memory that a block can have.
    pub shared: u32,
    /// Chooses the order of blocks, warps and lanes. Each launch draws another order from it.
    pub seed: u64,
    /// New memory holds NaN instead of zeros: shows a kernel that counts on zeros that nobody promised.
    pub poison: bool,
    /// Memory of the device: what does not fit is reported as not free.
    pub total: u64,
    /// Blocks of a lower number in x are left out: the last row of a batch that nobody has the time to run whole.
    pub first_block: u32,
}

/// `from` replaced by `to` in the text of `file`, where it must occur exactly once.
pub fn mutate(sources: &[(&str, &str)], file: &str, from: &str, to: &str) -> Vec<(String, String)> {
    let found: usize = sources.iter().filter(|s| s.0 == file).map(|s| s.1.matches(from).count()).sum();
    assert_eq!(found, 1, "{file}: `{from}` must occur once");
    let change = |&(name, text): &(&str, &str)| {
        (name.to_owned(), if name == file { text.replace(from, to) } else { text.to_owned() })
    };
    sources.iter().map(change).collect()
}

impl Emulator {
    /// A device with the kernels of the `.cu` among `sources`, names and texts; the `.cuh` among them can be included.
    ///
    /// # Panics
    /// No C++ compiler, or it refuses a source.
    pub fn new<N: AsRef<str>, T: AsRef<str>>(sources: &[(N, T)]) -> Self {
        Self::of(sources, false)
    }

    /// As [`Emulator::new`], of sources that may have a defect planted into them: what that makes unused is no error.
    ///
    /// # Panics
    /// As there: a defect that is no program shows nothing.
    pub fn planted<N: AsRef<str>, T: AsRef<str>>(sources: &[(N, T)]) -> Self {
        Self::of(sources, true)
    }

    fn of<N: AsRef<str>, T: AsRef<str>>(sources: &[(N, T)], planted: bool) -> Self {
        let sources: Vec<(String, String)> =
            sources.iter().map(|(n, t)| (n.as_ref().to_owned(), t.as_ref().to_owned())).collect();
        let names: Vec<&str> = sources.iter().map(|s| s.0.as_str()).filter(|n| n.ends_with(".cu")).collect();
        let mut kernels = BTreeMap::new();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for some in names.chunks(threads) {
            std::thread::scope(|scope| {
                let all: Vec<_> =
                    some.iter().map(|n| scope.spawn(|| build::kernels(&sources, n, planted))).collect();
                for kernel in
                    all.into_iter().flat_map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
                {
                    let again = kernels.insert(kernel.name(), kernel);
                    assert!(again.is_none(), "two kernels are named {}", kernel.name());
                }
            });
        }
        Self {
            kernels,
            launch: build::runtime(),
            compiled: None,
            moved: Arc::default(),
            live: Arc::default(),
            records: HashMap::new(),
            recording: None,
            launches: 0,
            launched: Arc::default(),
            static_shared: 0,
            shared: SHARED,
            seed: 0,
            poison: false,
            total: 8 << 30,
            first_block: 0,
        }
    }

    /// The device, which from now on runs `compiled` in place of what g++ made of the same sources.
    pub fn of_ptx(self, compiled: &'static ptx::Kernels) -> Self {
        Self { compiled: Some(compiled), ..self }
    }

    /// What launches in PTX have moved, by kernel, now and later.
    pub fn moved(&self) -> Arc<Mutex<BTreeMap<&'static str, ptx::Counts>>> {
        self.moved.clone()
    }

    /// Runs a kernel of `compiled`, whose arguments have been checked.
    ///
    /// # Safety
    /// As [`Emulator::launch`].
    unsafe fn run_ptx(
        &self,
        kernel: &ptx::Kernel,
        name: &'static str,
        l: Launch,
        args: &[u64],
        seed: u64,
    ) -> Result<()> {
        let live: Vec<(u64, usize)> =
            self.live.lock().unwrap().iter().map(|(&start, &bytes)| (start, bytes)).collect();
        let first_block = self.first_block;
        let grid = ptx::Grid { launch: l, first_block, arguments: args, live: &live, seed };
        // SAFETY: live memory is the device's, which is borrowed; the caller promises the rest.
        let counts = unsafe { kernel.run(&grid) }?;
        let mut moved = self.moved.lock().unwrap();
        let sum = moved.entry(name).or_default();
        *sum = *sum + counts;
        Ok(())
    }

    /// Names of all kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> {
        self.kernels.keys().copied()
    }

    /// Names of the kernels that have been launched, and will be.
    pub fn launched(&self) -> Arc<Mutex<BTreeSet<&'static str>>> {
        self.launched.clone()
    }

    /// Addresses and sizes of the memory that is taken, now and later.
    pub fn live(&self) -> Arc<Mutex<BTreeMap<u64, usize>>> {
        self.live.clone()
    }

    /// Number of launches so far.
    pub fn launches(&self) -> u64 {
        self.launches
    }

    fn kernel(&self, name: &str) -> Result<&'static build::Kernel> {
        self.kernels.get(name).copied().ok_or_else(|| format!("there is no kernel {name}"))
    }

    /// Fails unless `len` bytes from `address` lie in one live block.
    fn inside(&self, what: &str, address: u64, len: usize) -> Result<()> {
        let live = self.live.lock().unwrap();
        let block = live.range(..=address).next_back();
        if block.is_some_and(|(&start, &bytes)| address + len as u64 <= start + bytes as u64) {
            return Ok(());
        }
        Err(format!("{what}: {len} bytes from {address:#x} do not lie in live memory"))
    }

    /// Arguments as the emulation takes them, checked against the kernel's parameters.
    fn pack(&self, kernel: &build::Kernel, args: &[Arg]) -> Result<Vec<u64>> {
        let (name, kinds) = (kernel.name(), kernel.kinds());
        if kinds.len() != args.len() {
            let (wants, got) = (kinds.len(), args.len());
            return Err(format!("kernel {name} takes {wants} arguments, not {got}"));
        }
        let pack_one = |(i, (&kind, &arg)): (usize, (&u8, &Arg))| {
            let (letter, bits) = match arg {
                Arg::Pointer(p) => (b'p', p),
                Arg::U32(v) => (b'u', u64::from(v)),
                Arg::U64(v) => (b'l', v),
                Arg::F32(v) => (b'f', u64::from(v.to_bits())),
            };
            if kind != letter {
                let wants = match kind {
                    b'p' => "a pointer",
                    b'u' => "a u32",
                    b'l' => "a u64",
                    _ => "a float",
                };
                return Err(format!("kernel {name}: argument {i} is {arg:?}, not {wants}"));
            }
            if kind == b'p' && bits != 0 {
                self.inside(&format!("kernel {name}: argument {i}"), bits, 0)?;
            }
            Ok(bits)
        };
        kinds.iter().zip(args).enumerate().map(pack_one).collect()
    }

    /// Notes what is queued while recording.
    fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(list) = &mut self.recording {
            list.push(text());
        }
    }

    fn not_recording(&self, what: &str) -> Result<()> {
        if self.recording.is_some() {
            return Err(format!("{what} inside recorded work"));
        }
        Ok(())
    }

    /// Bytes of memory that are taken.
    pub fn used(&self) -> u64 {
        self.live.lock().unwrap().values().map(|&bytes| bytes as u64).sum()
    }

    /// `bytes` of memory, all zero (or NaN, see [`Emulator::poison`]), aligned to 256 bytes; `what` names it in errors.
    ///
    /// # Errors
    /// There is no such memory, or work is being recorded.
    pub fn allocate(&mut self, bytes: usize, what: &str) -> Result<Block> {
        self.not_recording("an allocation")?;
        let block = Block::new(bytes, what, &self.live)?;
        if self.poison && bytes < block::RESERVED {
            // SAFETY: `bytes` bytes were just allocated, and nothing else knows of them.
            poison(unsafe { std::slice::from_raw_parts_mut(block.address() as *mut u8, bytes) });
        }
        Ok(block)
    }

    /// Copies `bytes` to live memory at `address`.
    ///
    /// # Errors
    /// Not in live memory, or work is being recorded.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        self.not_recording("a write")?;
        self.inside("a write", address, bytes.len())?;
        // SAFETY: `inside` found the range in live memory, which nothing borrows.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Ok(())
    }

    /// Copies live memory at `address` to `bytes`.
    ///
    /// # Errors
    /// Not in live memory, or work is being recorded.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.not_recording("a read")?;
        self.inside("a read", address, bytes.len())?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Has `fill` write `len` bytes, which are copied to live memory at `address`.
    ///
    /// # Errors
    /// As [`Emulator::write`].
    pub fn send(&mut self, address: u64, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        self.not_recording("a send")?;
        let mut staging = vec![0; len];
        poison(&mut staging); // as pinned memory, it holds something else before
        fill(&mut staging);
        self.write(address, &staging)
    }

    /// Fills `len` bytes of live memory at `address` with zeros.
    ///
    /// # Errors
    /// Not in live memory.
    pub fn zero(&mut self, address: u64, len: usize) -> Result<()> {
        self.inside("zeros", address, len)?;
        self.note(|| format!("zero {address:#x} {len}"));
        // SAFETY: as in `write`.
        unsafe { std::ptr::write_bytes(address as *mut u8, 0, len) };
        Ok(())
    }

    /// Runs a kernel.
    ///
    /// # Errors
    /// No such kernel, arguments that are not its parameters, pointers outside live memory, a launch that a card refuses,
    /// and what the kernel does wrong, where that is seen.
    ///
    /// # Safety
    /// Every address that the kernel computes from `args` must lie in live memory, which nothing else uses meanwhile.
    pub unsafe fn launch(&mut self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        let found = self.kernel(kernel)?;
        let (bytes, fixed) = (launch.shared, self.static_shared);
        if bytes > 0 && u64::from(bytes) + u64::from(fixed) > u64::from(self.shared) {
            return Err(format!(
                "kernel {kernel}: {bytes} bytes of dynamic shared memory beside {fixed} of static, more than a card has"
            ));
        }
        let packed = self.pack(found, args)?;
        self.note(|| format!("{kernel} {launch:?} {args:?}"));
        self.launches += 1;
        self.launched.lock().unwrap().insert(kernel);
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.launches);
        if let Some(compiled) = self.compiled {
            let ptx = compiled.get(kernel).ok_or_else(|| format!("there is no PTX of {kernel}"))?;
            // SAFETY: the arguments fit the kernel's parameters; the rest is the caller's promise.
            return unsafe { self.run_ptx(ptx, kernel, launch, &packed, seed) };
        }
        // SAFETY: the arguments fit the kernel's parameters; the rest is the caller's promise.
        unsafe { run(self.launch, found, launch, self.first_block, &packed, seed) }
    }

    /// Runs a dense product, with float64 sums.
    ///
    /// # Errors
    /// Sizes that do not go together; matrices that do not lie in live memory or are not aligned; a result over an
    /// operand.
    pub fn product(&mut self, product: &Product) -> Result<()> {
        for (what, m) in [("a", &product.a), ("b", &product.b), ("out", &product.out)] {
            self.inside(&format!("a dense product's {what}"), m.address, product::extent(m))?;
            if m.address % m.element.size() as u64 != 0 {
                return Err(format!("a dense product's {what} is not aligned: {m:?}"));
            }
        }
        self.note(|| format!("{product:?}"));
        // SAFETY: all three matrices were found to lie in live memory.
        unsafe { product::product(product) }
    }

    /// From now on notes what is queued, until [`Emulator::end_record`].
    ///
    /// # Errors
    /// It does so already.
    pub fn begin_record(&mut self) -> Result<()> {
        self.not_recording("a record")?;
        self.recording = Some(Vec::new());
        Ok(())
    }

    /// Ends a record. What a card would replay for `key` is what was recorded for it first.
    ///
    /// # Errors
    /// Other work was queued for `key` than the first time.
    pub fn end_record(&mut self, key: &str) -> Result<()> {
        let queued = self.recording.take().unwrap_or_default();
        let first = self.records.entry(key.to_owned()).or_insert_with(|| queued.clone());
        if *first == queued {
            return Ok(());
        }
        let at = first.iter().zip(&queued).take_while(|(a, b)| a == b).count();
        let show = |list: &[String]| list.get(at).cloned().unwrap_or("nothing".into());
        Err(format!(
            "the work recorded for {key} differs at place {at}: first `{}`, now `{}`",
            show(first),
            show(&queued)
        ))
    }

    /// Ends a record that failed.
    pub fn abandon_record(&mut self) {
        self.recording = None;
    }

    /// Drops all records.
    pub fn forget(&mut self) {
        self.records.clear();
    }

    /// Waits for all work, of which none is under way.
    ///
    /// # Errors
    /// Work is being recorded.
    pub fn synchronize(&self) -> Result<()> {
        self.not_recording("a wait")
    }
}

/// What memory is filled with to show reads of it: NaN as float32, float64 and bfloat16.
fn poison(bytes: &mut [u8]) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = [0xf5, 0xff][i % 2];
    }
}

/// Runs a launch of a kernel whose arguments have been checked.
///
/// # Safety
/// As [`Emulator::launch`].
unsafe fn run(
    run: build::LaunchFn,
    kernel: &build::Kernel,
    l: Launch,
    first_block: u32,
    args: &[u64],
    seed: u64,
) -> Result<()> {
    // With the sanitizers `__shared__` is static: one launch at a time.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = build::sanitized().then(|| ONE.lock().unwrap_or_else(|e| e.into_inner()));
    let mut message = [0 as c_char; 512];
    // SAFETY: `args` are as many as the kernel's parameters and of their kinds; the caller promises that what the
    // kernel does with them is sound; the message has the length that is told.
    let failed = unsafe {
        let (text, size) = (message.as_mut_ptr(), message.len());
        run(kernel, args.as_ptr(), l.grid.0, l.grid.1, first_block, l.block, l.shared, seed, text, size)
    };
    if failed == 0 {
        return Ok(());
    }
    // SAFETY: the emulation ends its messages with a zero byte inside the buffer.
    let message = unsafe { CStr::from_ptr(message.as_ptr()) };
    Err(message.to_string_lossy().into_owned())
}
