//! Finds and opens the driver, NVRTC and cuBLAS, and says in one line what is missing.

use super::fault::{self, one_line};
use crate::backend::cuda::places;
pub use copies::{Copy, Cublas, Functions, Nccl, Need, Nvrtc, by_loader, newest_of};
use cudarc::driver::result::{device, init};
use cudarc::driver::sys::{self as driver_sys, CUdevice_attribute as Attribute, CUresult};
use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_NOW};

mod copies;

/// A reason in one line, for people: what was looked for, where, and what to install.
pub type Outcome<T> = std::result::Result<T, String>;

/// The oldest compute capability with a bfloat16 and TF32 unit, which the kernels and products count on.
pub const OLDEST_CARD: (u32, u32) = (8, 0);

/// The oldest CUDA that a driver must serve, as the driver counts: 1000 major + 10 minor.
const OLDEST_DRIVER: u32 = 12_000;

/// A library of CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// The driver's interface.
    Driver,
    /// The compiler.
    Nvrtc,
    /// Dense products.
    Cublas,
    /// What several cards do together.
    Nccl,
}

impl Library {
    /// What a person calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "the NVIDIA driver",
            Self::Nvrtc => "NVRTC",
            Self::Cublas => "cuBLAS",
            Self::Nccl => "NCCL",
        }
    }

    /// Its file, without a version.
    pub fn file(self) -> &'static str {
        match self {
            Self::Driver => "libcuda.so",
            Self::Nvrtc => "libnvrtc.so",
            Self::Cublas => "libcublas.so",
            Self::Nccl => "libnccl.so",
        }
    }

    /// The file that it needs open. NVRTC 13.0 has no path to find its builtins by.
    fn needs(self) -> Option<&'static str> {
        match self {
            Self::Driver | Self::Nccl => None,
            Self::Nvrtc => Some("libnvrtc-builtins.so"),
            Self::Cublas => Some("libcublasLt.so"),
        }
    }

    /// What to install, for a driver that serves CUDA `major`.
    fn install(self, major: Option<u32>) -> &'static str {
        match (self, major) {
            (Self::Driver, _) => {
                "install NVIDIA's driver, or start the container with its GPUs (`--gpus all`)"
            }
            (Self::Nccl, Some(12)) => {
                "`pip install nvidia-nccl-cu12` in the active Python environment, or install libnccl2"
            }
            (Self::Nccl, _) => {
                "`pip install nvidia-nccl-cu13` in the active Python environment, or install libnccl2"
            }
            (_, Some(12)) => {
                "`pip install nvidia-cuda-nvrtc-cu12 nvidia-cublas-cu12` in the active Python environment, \
                 or install the CUDA 12 toolkit"
            }
            _ => {
                "`pip install nvidia-cuda-nvrtc nvidia-cublas` in the active Python environment, \
                 or install the CUDA toolkit"
            }
        }
    }
}

/// Opens the driver for cudarc, which finds it by its name: from the folders of `sae devices` where the system loader
/// does not know it.
fn open_driver() -> Outcome<()> {
    if driver_is_there() {
        return Ok(());
    }
    let places = places::here();
    let mut refused = None;
    for path in places.iter().flat_map(|place| places::files_in(&place.folder, Library::Driver.file())) {
        // SAFETY: opening runs the library's initialisers; `path` has the name of NVIDIA's driver, which is made to be
        // opened so.
        match unsafe { Handle::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(handle) => {
                // Never closed: cudarc finds it by its name as long as it is loaded.
                std::mem::forget(handle);
                break;
            }
            Err(why) => refused = refused.or(Some(format!("{}: {why}", path.display()))),
        }
    }
    if driver_is_there() {
        return Ok(());
    }
    let (name, install) = (Library::Driver.name(), Library::Driver.install(None));
    if let Some(refused) = refused {
        return Err(format!("{name} is there and does not open ({}); {install}", fault::one_line(&refused)));
    }
    let (file, folders) = (Library::Driver.file(), places.len());
    Err(format!(
        "{name} is missing: {file} was looked for by the system loader and in {folders} folders \
         (`sae devices` lists them); {install}"
    ))
}

/// True where an NVIDIA driver opens, so that a person would expect its GPU to be used.
pub fn driver_is_there() -> bool {
    // SAFETY: the question opens and closes the library by its name and calls nothing in it; opening runs the
    // initialisers of NVIDIA's own library, which is made to be opened so. `culib` opens what was there just now and
    // keeps it.
    unsafe { driver_sys::is_culib_present() && kept(driver_sys::culib()) }
}

fn kept(_: &'static libloading::Library) -> bool {
    true
}

/// A version as major and minor.
pub type Version = (u32, u32);

/// NVRTC: the copy in use, or the first that goes with `need`.
///
/// # Errors
/// None does; one line.
pub fn nvrtc(need: Need) -> Outcome<&'static Copy<Nvrtc>> {
    copies::open(need)
}

/// cuBLAS: the copy in use, or the first that goes with `need`.
///
/// # Errors
/// None does; one line.
pub fn cublas(need: Need) -> Outcome<&'static Copy<Cublas>> {
    copies::open(need)
}

/// NCCL: the copy in use, or the first that can be used.
///
/// # Errors
/// None does; one line.
pub fn nccl(need: Need) -> Outcome<&'static Copy<Nccl>> {
    copies::open(need)
}

/// A card as the driver lists it.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The driver's name for it.
    pub name: String,
    /// Compute capability.
    pub capability: Version,
    /// Memory in bytes.
    pub memory: u64,
}

impl Listed {
    /// Why `cuda:ordinal` cannot be used.
    ///
    /// # Errors
    /// It is older than [`OLDEST_CARD`].
    pub fn check(&self, ordinal: usize) -> Outcome<()> {
        let ((major, minor), (oldest, _)) = (self.capability, OLDEST_CARD);
        if self.capability >= OLDEST_CARD {
            return Ok(());
        }
        Err(format!(
            "cuda:{ordinal} ({}) is a card too old: it has compute capability {major}.{minor}, and {oldest}.0 \
             (A100, RTX 30) or newer is needed; use --device cpu",
            self.name
        ))
    }
}

/// What the driver serves and lists.
#[derive(Debug, Clone, PartialEq)]
pub struct Driver {
    /// Newest CUDA that it serves.
    pub serves: Version,
    /// Its cards; never empty.
    pub cards: Vec<Listed>,
}

/// Opens the driver and asks for its cards.
///
/// # Errors
/// No driver, a driver that is too old, or one without a device.
pub fn driver() -> Outcome<Driver> {
    open_driver()?;
    let mut version = 0;
    // SAFETY: the driver is open, and writes one int to the address it is given; this may come before `init`, at
    // which a driver that is too old may fail in its own way.
    let status = unsafe { driver_sys::cuDriverGetVersion(&mut version) };
    status.result().map_err(|e| refusal(e.0))?;
    let version = version.unsigned_abs();
    let serves = (version / 1000, version % 1000 / 10);
    if version < OLDEST_DRIVER {
        return Err(format!(
            "the NVIDIA driver is too old: it serves CUDA up to {}.{}, and 12.0 is needed; update it to 525 or newer",
            serves.0, serves.1
        ));
    }
    init().map_err(|e| refusal(e.0))?;
    let cards = cards().map_err(|e| refusal(e.0))?;
    if cards.is_empty() {
        return Err(refusal(CUresult::CUDA_ERROR_NO_DEVICE));
    }
    Ok(Driver { serves, cards })
}

fn cards() -> std::result::Result<Vec<Listed>, cudarc::driver::DriverError> {
    let mut cards = Vec::new();
    for ordinal in 0..device::get_count()? {
        let handle = device::get(ordinal)?;
        // SAFETY: `handle` comes from the driver just now; devices stay valid while the process lives.
        let (major, minor, memory) = unsafe {
            (
                device::get_attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                device::get_attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
                device::total_mem(handle)?,
            )
        };
        let capability = (major.unsigned_abs(), minor.unsigned_abs());
        cards.push(Listed { name: device::get_name(handle)?, capability, memory: memory as u64 });
    }
    Ok(cards)
}

/// What a driver that is open means by an error at its start.
fn refusal(code: CUresult) -> String {
    use CUresult as E;
    let advice = match code {
        E::CUDA_ERROR_NO_DEVICE => {
            return "the NVIDIA driver lists no device (CUDA_ERROR_NO_DEVICE): see whether `nvidia-smi` lists one, \
                    and whether CUDA_VISIBLE_DEVICES hides it"
                .to_owned();
        }
        E::CUDA_ERROR_STUB_LIBRARY => {
            "that is the toolkit's stub, not a driver: take its folder out of LD_LIBRARY_PATH"
        }
        E::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "libcuda.so and the loaded kernel module differ: restart the machine, or update the driver"
        }
        E::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "CUDA's compatibility package does not serve this card: take it out of LD_LIBRARY_PATH, or update the driver"
        }
        _ => "see whether `nvidia-smi` works",
    };
    format!("the NVIDIA driver does not start ({code:?}): {advice}")
}

/// The driver, with copies of NVRTC and cuBLAS that go with it and with card `ordinal`, where it has one of that number
/// that can be used.
///
/// # Errors
/// As [`driver`], [`nvrtc`] and [`cublas`].
pub fn open_all(ordinal: usize) -> Outcome<Driver> {
    let driver = driver()?;
    let usable = driver.cards.get(ordinal).filter(|card| card.check(ordinal).is_ok());
    let need = Need { driver: Some(driver.serves), card: usable.map(|card| card.capability) };
    nvrtc(need)?;
    cublas(need)?;
    Ok(driver)
}

/// For `--device auto`: how many cards can be used, `cuda:0` among them, which the driver makes the fastest.
///
/// # Errors
/// The one-line reason why `cuda:0` cannot be used.
pub fn available() -> Outcome<usize> {
    let driver = open_all(0)?;
    driver.cards[0].check(0)?;
    Ok(driver.cards.iter().enumerate().filter(|(n, card)| card.check(*n).is_ok()).count())
}

#[cfg(test)]
mod tests;
