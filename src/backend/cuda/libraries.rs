//! Finds and opens the driver, NVRTC and cuBLAS, and says in one line what is missing.
//!
//! The system loader is asked first. What it does not open is opened by its absolute path from the folders of
//! `sae devices`, with its symbols for all: cudarc's own `dlopen` by name then finds the library that is
//! loaded already, by its SONAME.

use super::fault;
use crate::devices::places::{self, Place};
use cudarc::cublas::sys::libraryPropertyType as Property;
use cudarc::driver::result::{device, init};
use cudarc::driver::sys::{self as driver_sys, CUdevice_attribute as Attribute, CUresult};
use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_NOW};
use std::path::{Path, PathBuf};

/// A reason in one line, for people: what was looked for, where, and what to install.
pub type Outcome<T> = std::result::Result<T, String>;

/// The oldest compute capability with a bfloat16 and TF32 unit, which the kernels and products count on.
pub const OLDEST_CARD: (u32, u32) = (8, 0);

/// The oldest CUDA that a driver must serve, as the driver counts: 1000 major + 10 minor.
const OLDEST_DRIVER: u32 = 12_000;

/// The oldest CUDA whose NVRTC and cuBLAS have all the functions that are called; a call of one that is not there
/// panics.
pub const OLDEST_LIBRARY: u32 = 12;

/// A library of CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// The driver's interface.
    Driver,
    /// The compiler.
    Nvrtc,
    /// Dense products.
    Cublas,
}

impl Library {
    /// What a person calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "the NVIDIA driver",
            Self::Nvrtc => "NVRTC",
            Self::Cublas => "cuBLAS",
        }
    }

    /// Files to open, in order: each needs those before it. The last is the library itself.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &["libcuda.so"],
            // NVRTC 13.0 has no RPATH to find its builtins by.
            Self::Nvrtc => &["libnvrtc-builtins.so", "libnvrtc.so"],
            Self::Cublas => &["libcublasLt.so", "libcublas.so"],
        }
    }

    /// Whether cudarc can open it; then it stays open. Any other call of a module of cudarc panics where it cannot.
    fn opens(self) -> bool {
        use cudarc::{cublas::sys as cublas, driver::sys as driver, nvrtc::sys as nvrtc};
        // SAFETY: these questions open and close a library by its name and call nothing in it; opening runs the
        // initialisers of NVIDIA's own libraries, which are made to be opened so. `culib` opens what was there
        // just now, and keeps it: half a gigabyte of cuBLAS is not mapped again at each question.
        unsafe {
            match self {
                Self::Driver => driver::is_culib_present() && kept(driver::culib()),
                Self::Nvrtc => nvrtc::is_culib_present() && kept(nvrtc::culib()),
                Self::Cublas => cublas::is_culib_present() && kept(cublas::culib()),
            }
        }
    }

    /// What to install, for a driver that serves CUDA `major`.
    fn install(self, major: Option<u32>) -> &'static str {
        match (self, major) {
            (Self::Driver, _) => {
                "install NVIDIA's driver, or start the container with its GPUs (`--gpus all`)"
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

fn kept(_: &'static libloading::Library) -> bool {
    true
}

/// Opens `library` for cudarc. `major` is the CUDA version that the driver serves: of several copies in the
/// folders the first one that is not newer is taken.
///
/// # Errors
/// It is nowhere, or no copy opens.
pub fn open(library: Library, major: Option<u32>) -> Outcome<()> {
    if library.opens() {
        return Ok(());
    }
    let places = places::places(&|name| std::env::var(name).ok());
    open_from(library, major, &places, &|| library.opens())
}

/// `opens` tells whether the library can be opened by its name now.
fn open_from(
    library: Library,
    major: Option<u32>,
    places: &[Place],
    opens: &dyn Fn() -> bool,
) -> Outcome<()> {
    let name = library.name();
    let mut refused = None;
    for file in library.files() {
        let mut copies: Vec<PathBuf> =
            places.iter().filter_map(|p| places::file_in(&p.folder, file)).collect();
        // Stable: the order of the folders stays within each half.
        copies.sort_by_key(|path| version_of(path) > major.or(Some(u32::MAX)));
        for path in copies {
            match preload(&path) {
                Ok(()) => break,
                Err(why) => refused = refused.or(Some(format!("{}: {why}", path.display()))),
            }
        }
    }
    if opens() {
        return Ok(());
    }
    let install = library.install(major);
    if let Some(refused) = refused {
        return Err(format!("{name} is there and does not open ({}); {install}", fault::one_line(&refused)));
    }
    let file = library.files().last().copied().unwrap_or_default();
    let folders = places.len();
    Err(format!(
        "{name} is missing: {file} was looked for by the system loader and in {folders} folders \
         (`sae devices` lists them); {install}"
    ))
}

/// Opens a library for the rest of the process.
fn preload(path: &Path) -> Outcome<()> {
    // SAFETY: opening runs the library's initialisers; `path` has the name of one of NVIDIA's, which are made to
    // be opened so.
    let handle = unsafe { Handle::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(|e| e.to_string())?;
    // Never closed: cudarc finds it by its name as long as it is loaded.
    std::mem::forget(handle);
    Ok(())
}

/// The major version at the end of a library's real name, as 13 of `libnvrtc.so.13.0.48`.
fn version_of(path: &Path) -> Option<u32> {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = real.file_name()?.to_str()?;
    name.split_once(".so.")?.1.split('.').next()?.parse().ok()
}

/// A version as major and minor.
pub type Version = (u32, u32);

/// Opens NVRTC and asks its version.
///
/// # Errors
/// NVRTC is missing or does not answer.
pub fn nvrtc(major: Option<u32>) -> Outcome<Version> {
    open(Library::Nvrtc, major)?;
    let (mut high, mut low) = (0, 0);
    // SAFETY: NVRTC is open, and writes two ints to the addresses it is given.
    let status = unsafe { cudarc::nvrtc::sys::nvrtcVersion(&mut high, &mut low) };
    status.result().map_err(|e| format!("NVRTC does not tell its version ({e:?})"))?;
    Ok((high.unsigned_abs(), low.unsigned_abs()))
}

/// Opens cuBLAS and asks its version.
///
/// # Errors
/// cuBLAS is missing or does not answer.
pub fn cublas(major: Option<u32>) -> Outcome<Version> {
    open(Library::Cublas, major)?;
    let ask = |property| {
        let mut value = 0;
        // SAFETY: cuBLAS is open, and writes one int to the address it is given; no handle is needed.
        let status = unsafe { cudarc::cublas::sys::cublasGetProperty(property, &mut value) };
        status.result().map_err(|e| format!("cuBLAS does not tell its version ({e:?})"))?;
        Ok::<u32, String>(value.unsigned_abs())
    };
    Ok((ask(Property::MAJOR_VERSION)?, ask(Property::MINOR_VERSION)?))
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
    open(Library::Driver, None)?;
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

/// True where an NVIDIA driver opens, so that a person would expect its GPU to be used.
pub fn driver_is_there() -> bool {
    Library::Driver.opens()
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

/// Whether a library of version `has` can be used on a driver.
///
/// # Errors
/// A library of a newer major version than the driver serves, or older than [`OLDEST_LIBRARY`].
pub fn served(library: Library, has: Version, driver: &Driver) -> Outcome<()> {
    let (major, minor) = driver.serves;
    let (name, install) = (library.name(), library.install(Some(major)));
    if has.0 < OLDEST_LIBRARY {
        return Err(format!(
            "{name} {}.{} is too old, {OLDEST_LIBRARY}.0 or newer is needed: {install}",
            has.0, has.1
        ));
    }
    if has.0 <= major {
        return Ok(());
    }
    Err(format!(
        "the NVIDIA driver is too old for {name} {}.{}: it serves CUDA up to {major}.{minor}; update the driver, or {install}",
        has.0, has.1
    ))
}

/// The driver, and the versions of NVRTC and cuBLAS, all open and fit for each other.
///
/// # Errors
/// As [`driver`], [`nvrtc`], [`cublas`] and [`served`].
pub fn open_all() -> Outcome<(Driver, Version)> {
    let driver = driver()?;
    let major = Some(driver.serves.0);
    let compiler = nvrtc(major)?;
    served(Library::Nvrtc, compiler, &driver)?;
    served(Library::Cublas, cublas(major)?, &driver)?;
    Ok((driver, compiler))
}

/// For `--device auto`: how many cards can be used, `cuda:0` among them, which the driver makes the fastest.
///
/// # Errors
/// The one-line reason why `cuda:0` cannot be used.
pub fn available() -> Outcome<usize> {
    let (driver, _) = open_all()?;
    driver.cards[0].check(0)?;
    Ok(driver.cards.iter().enumerate().filter(|(n, card)| card.check(*n).is_ok()).count())
}

#[cfg(test)]
mod tests;
