//! The device of `cuda_on_cpu` as a [`Device`] of the engine, with the project's kernels.

use cuda_on_cpu as rig;
use std::ops::{Deref, DerefMut, Range};
use topk_sae::backend::cuda::device::{
    AHEAD, Arg, Device, Element, Facts, Launch, Matrix, Memory, Product, RecordKey,
};
use topk_sae::backend::cuda::sources::SOURCES;
use topk_sae::backend::cuda::work::STATIC_SHARED;
use topk_sae::error::{Error, Result};

pub struct Emulator(pub rig::Emulator);

impl Emulator {
    /// A device with the project's kernels.
    pub fn new() -> Self {
        Self::of(rig::Emulator::new(SOURCES))
    }

    /// A device with the kernels of other sources: names and texts, as in [`SOURCES`].
    #[allow(dead_code)] // Benches have the project's kernels alone.
    pub fn with_sources<N: AsRef<str>, T: AsRef<str>>(sources: &[(N, T)]) -> Self {
        Self::of(rig::Emulator::planted(sources))
    }

    fn of(mut device: rig::Emulator) -> Self {
        device.static_shared = STATIC_SHARED as u32;
        Self(device)
    }
}

impl Deref for Emulator {
    type Target = rig::Emulator;

    fn deref(&self) -> &rig::Emulator {
        &self.0
    }
}

impl DerefMut for Emulator {
    fn deref_mut(&mut self) -> &mut rig::Emulator {
        &mut self.0
    }
}

fn arg(arg: &Arg) -> rig::Arg {
    match *arg {
        Arg::Pointer(address) => rig::Arg::Pointer(address),
        Arg::U32(v) => rig::Arg::U32(v),
        Arg::U64(v) => rig::Arg::U64(v),
        Arg::F32(v) => rig::Arg::F32(v),
    }
}

fn matrix(m: &Matrix) -> rig::Matrix {
    let element = match m.element {
        Element::F32 => rig::Element::F32,
        Element::Bf16 => rig::Element::Bf16,
    };
    rig::Matrix { address: m.address, element, rows: m.rows, cols: m.cols, stride: m.stride }
}

impl Device for Emulator {
    fn facts(&self) -> Result<Facts> {
        Ok(Facts {
            name: "emulation on the CPU".into(),
            free: self.total.saturating_sub(self.used()),
            total: self.total,
            multiprocessors: 132,
            shared: self.shared,
        })
    }

    fn card(&self) -> Option<usize> {
        None
    }

    fn allocate(&mut self, bytes: usize, what: &'static str) -> Result<Memory> {
        let block = self.0.allocate(bytes, what).map_err(Error::Failed)?;
        Ok(Memory::new(block.address(), bytes, what, Box::new(move |_| drop(block))))
    }

    fn write(&mut self, to: &mut Memory, offset: usize, bytes: &[u8]) -> Result<()> {
        let address = to.part(offset..offset + bytes.len())?;
        self.0.write(address, bytes).map_err(Error::Failed)
    }

    fn read(&mut self, from: &Memory, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let address = from.part(offset..offset + bytes.len())?;
        self.0.read(address, bytes).map_err(Error::Failed)
    }

    fn send(&mut self, to: &mut Memory, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        let address = to.part(0..len)?;
        self.0.send(address, len, fill).map_err(Error::Failed)
    }

    // All is done at once, so that what is sent ahead lies there when it is asked for: `tests/card.rs` has the order.
    fn send_ahead(
        &mut self,
        slot: usize,
        to: &mut Memory,
        offset: usize,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        assert!(slot < AHEAD, "{slot}");
        let address = to.part(offset..offset + len)?;
        let mut bytes = vec![0; len];
        fill(&mut bytes)?;
        self.0.send(address, len, &mut |out| out.copy_from_slice(&bytes)).map_err(Error::Failed)
    }

    fn arrive(&mut self, slot: usize, _: bool) -> Result<()> {
        assert!(slot < AHEAD, "{slot}");
        Ok(())
    }

    fn leave(&mut self, slot: usize) -> Result<()> {
        assert!(slot < AHEAD, "{slot}");
        Ok(())
    }

    fn idle(&mut self) -> Result<f64> {
        Ok(0.0)
    }

    fn zero(&mut self, memory: &mut Memory, range: Range<usize>) -> Result<()> {
        let address = memory.part(range.clone())?;
        self.0.zero(address, range.len()).map_err(Error::Failed)
    }

    unsafe fn launch(&mut self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        let Launch { grid, block, shared } = launch;
        let args: Vec<rig::Arg> = args.iter().map(arg).collect();
        // SAFETY: the caller's promise is handed on.
        unsafe { self.0.launch(kernel, rig::Launch { grid, block, shared }, &args) }.map_err(Error::Failed)
    }

    unsafe fn product(&mut self, p: &Product) -> Result<()> {
        p.sizes()?;
        let product = rig::Product {
            a: matrix(&p.a),
            a_transposed: p.a_transposed,
            b: matrix(&p.b),
            b_transposed: p.b_transposed,
            out: matrix(&p.out),
            add: p.add,
        };
        self.0.product(&product).map_err(Error::Failed)
    }

    fn record(&mut self, key: RecordKey, work: &mut dyn FnMut(&mut dyn Device) -> Result<()>) -> Result<()> {
        self.0.begin_record().map_err(Error::Failed)?;
        if let Err(error) = work(self) {
            self.0.abandon_record();
            return Err(error);
        }
        self.0.end_record(&format!("{key:?}")).map_err(Error::Failed)
    }

    fn timed(&mut self, work: &mut dyn FnMut(&mut dyn Device) -> Result<()>) -> Result<f64> {
        let began = std::time::Instant::now();
        work(self)?;
        Ok(began.elapsed().as_secs_f64())
    }

    fn stream(&self) -> u64 {
        0
    }

    fn forget(&mut self) {
        self.0.forget();
    }

    fn synchronize(&mut self) -> Result<()> {
        self.0.synchronize().map_err(Error::Failed)
    }
}
