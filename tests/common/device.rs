//! The device that tests run on: the emulation, which runs what g++ makes of the kernels or, with
//! `SAE_TEST_DEVICE=ptx`, what NVRTC makes of them; or, with `SAE_TEST_DEVICE=cuda`, the first CUDA card.

use super::emulator::Emulator;
use cuda_on_cpu::ptx;
use std::cell::RefCell;
use std::ops::Range;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::{Arc, Mutex};
use topk_sae::backend::cuda::card::{self, Card};
use topk_sae::backend::cuda::compile::Arch;
use topk_sae::backend::cuda::device::{Arg, Device, Facts, Launch, Memory, Product, RecordKey};
use topk_sae::backend::cuda::sources::SOURCES;
use topk_sae::backend::cuda::{self, gemm::Math};
use topk_sae::error::Result;
use topk_sae::spec::Precision;

const WANTED: &str = "SAE_TEST_DEVICE";

#[derive(PartialEq)]
enum Wanted {
    Emulation,
    Ptx,
    Card,
}

fn wanted() -> Wanted {
    match std::env::var(WANTED).as_deref() {
        Ok("cuda") => Wanted::Card,
        Ok("ptx") => Wanted::Ptx,
        Ok(name) => panic!("{WANTED}={name}: it can be cuda, ptx, or not set"),
        Err(_) => Wanted::Emulation,
    }
}

/// Whether tests run on a card.
pub fn on_card() -> bool {
    wanted() == Wanted::Card
}

/// Whether tests run on what NVRTC makes of the kernels, without a card.
pub fn of_nvrtc() -> bool {
    wanted() == Wanted::Ptx
}

/// The kernels as NVRTC makes them for sm_90.
pub fn compiled() -> &'static ptx::Kernels {
    static KERNELS: OnceLock<ptx::Kernels> = OnceLock::new();
    KERNELS.get_or_init(|| ptx::parse(&cuda::compile::ptx(SOURCES, Arch(90)).unwrap()).unwrap())
}

impl Emulator {
    /// A device that runs `compiled` in place of what g++ makes of the project's kernels.
    pub fn of_ptx(compiled: &'static ptx::Kernels) -> Self {
        Self(Self::new().0.of_ptx(compiled))
    }
}

/// True on a card and with NVRTC's kernels, with a line that says that `what` is for those of g++ alone.
pub fn emulation_only(what: &str) -> bool {
    only(Wanted::Emulation, what)
}

/// True where tests do not run on NVRTC's kernels without a card, with a line that says that `what` is for these.
pub fn nvrtc_only(what: &str) -> bool {
    only(Wanted::Ptx, what)
}

fn only(device: Wanted, what: &str) -> bool {
    let skip = wanted() != device;
    if skip {
        eprintln!("NOT HERE: {what}");
    }
    skip
}

/// The emulation that is wanted; `seed` chooses the order of blocks and threads.
pub fn emulator(seed: u64) -> Emulator {
    let mut device = if of_nvrtc() { Emulator::of_ptx(compiled()) } else { Emulator::new() };
    device.seed = seed;
    device
}

/// The device for float32. On the emulation, `seed` chooses the order of blocks and threads; a card has its own.
pub fn device(seed: u64) -> Box<dyn Device> {
    device_for(Precision::F32, seed, None)
}

/// The device for `precision` that tells `free` bytes as free, where given.
pub fn device_for(precision: Precision, seed: u64, free: Option<u64>) -> Box<dyn Device> {
    if on_card() {
        return Box::new(Lent { card: lend(cuda::math(precision)), free });
    }
    let mut device = emulator(seed);
    device.total = free.unwrap_or(device.total);
    Box::new(device)
}

type Shared = Arc<Mutex<Card>>;

/// A card that is free: opening one takes longer than most tests, so that those of a thread use one after another.
fn lend(math: Math) -> Shared {
    thread_local!(static CARDS: RefCell<Vec<(Math, Shared)>> = const { RefCell::new(vec![]) });
    CARDS.with_borrow_mut(|cards| {
        let unused = cards.iter().find(|(m, card)| *m == math && Arc::strong_count(card) == 1);
        if let Some((_, card)) = unused {
            return card.clone();
        }
        let card = Arc::new(Mutex::new(card::open(0, math).unwrap()));
        cards.push((math, card.clone()));
        card
    })
}

struct Lent {
    card: Shared,
    free: Option<u64>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Records name memory of the test that ends.
        self.card.lock().unwrap().forget();
    }
}

impl Device for Lent {
    fn facts(&self) -> Result<Facts> {
        let facts = self.card.lock().unwrap().facts()?;
        Ok(Facts { free: self.free.unwrap_or(facts.free), ..facts })
    }

    fn card(&self) -> Option<usize> {
        self.card.lock().unwrap().card()
    }

    fn allocate(&mut self, bytes: usize, what: &'static str) -> Result<Memory> {
        self.card.lock().unwrap().allocate(bytes, what)
    }

    fn write(&mut self, to: &mut Memory, offset: usize, bytes: &[u8]) -> Result<()> {
        self.card.lock().unwrap().write(to, offset, bytes)
    }

    fn read(&mut self, from: &Memory, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.card.lock().unwrap().read(from, offset, bytes)
    }

    fn send(&mut self, to: &mut Memory, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        self.card.lock().unwrap().send(to, len, fill)
    }

    fn send_ahead(
        &mut self,
        slot: usize,
        to: &mut Memory,
        offset: usize,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.card.lock().unwrap().send_ahead(slot, to, offset, len, fill)
    }

    fn arrive(&mut self, slot: usize, in_turn: bool) -> Result<()> {
        self.card.lock().unwrap().arrive(slot, in_turn)
    }

    fn leave(&mut self, slot: usize) -> Result<()> {
        self.card.lock().unwrap().leave(slot)
    }

    fn idle(&mut self) -> Result<f64> {
        self.card.lock().unwrap().idle()
    }

    fn zero(&mut self, memory: &mut Memory, range: Range<usize>) -> Result<()> {
        self.card.lock().unwrap().zero(memory, range)
    }

    unsafe fn launch(&mut self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.card.lock().unwrap().launch(kernel, launch, args) }
    }

    unsafe fn product(&mut self, product: &Product) -> Result<()> {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.card.lock().unwrap().product(product) }
    }

    fn record(&mut self, key: RecordKey, work: &mut dyn FnMut(&mut dyn Device) -> Result<()>) -> Result<()> {
        self.card.lock().unwrap().record(key, work)
    }

    fn timed(&mut self, work: &mut dyn FnMut(&mut dyn Device) -> Result<()>) -> Result<f64> {
        self.card.lock().unwrap().timed(work)
    }

    fn stream(&self) -> u64 {
        self.card.lock().unwrap().stream()
    }

    fn forget(&mut self) {
        self.card.lock().unwrap().forget();
    }

    fn synchronize(&mut self) -> Result<()> {
        self.card.lock().unwrap().synchronize()
    }
}

/// Runs this binary's other tests on a card; tests whose names contain one of `skip` are left out. Without a card it
/// says so, and fails where `SAE_REQUIRE_GPU=1` asks for one.
pub fn same_on_a_card(skip: &[&str]) {
    if let Err(missing) = cuda::available() {
        eprintln!("no GPU: {}; these tests did not run on a card", missing.reason);
        let required = std::env::var("SAE_REQUIRE_GPU").is_ok_and(|v| v == "1");
        assert!(!required, "SAE_REQUIRE_GPU=1, and there is no GPU: {}", missing.reason);
        return;
    }
    again("cuda", skip);
}

/// Runs this binary's tests again, but those whose names contain one of `skip`, on another device.
pub fn again(device: &str, skip: &[&str]) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.env(WANTED, device).arg("--nocapture");
    for name in skip {
        child.args(["--skip", name]);
    }
    let out = child.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{:?} with {WANTED}={device}:\n{text}", out.status);
    assert!(!text.contains("running 0 tests"), "no tests ran with {WANTED}={device}:\n{text}");
    // The counts, for whoever reads the log.
    text.lines()
        .filter(|l| l.starts_with("test result") || l.starts_with("NOT HERE"))
        .for_each(|l| eprintln!("{device}: {l}"));
}
