//! What `sae devices` tells: the processor, the CUDA libraries and where each was looked for, the GPUs.
//!
//! Nothing here may fail: a machine without any of it is the usual case, and gets a report as well.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::report::table::bytes;
pub use places::Place;

mod places;

/// Shown with every report, so that nobody waits for a GPU that is not used.
const NOTE: &str = "training runs on the CPU in this version";

/// Everything found, for a person (`Display`) or a program (`Serialize`).
#[derive(Debug, Clone, Serialize)]
pub struct DevicesReport {
    /// The processor that trains.
    pub cpu: Cpu,
    /// The driver and the CUDA libraries, found or not.
    pub libraries: Vec<Library>,
    /// Every folder that was looked into for each of them, in order.
    pub looked_in: Vec<Place>,
    /// Version of the NVIDIA kernel driver, as in `580.65.06`, if one is loaded.
    pub kernel_driver: Option<String>,
    /// Newest CUDA version that the driver serves, as in `13.0`.
    pub driver_cuda: Option<String>,
    /// The devices that the driver lists.
    pub gpus: Vec<Gpu>,
    /// Why a driver that is there lists no devices.
    pub gpu_problem: Option<String>,
    /// What this version does with all that.
    pub note: &'static str,
}

/// The processor.
#[derive(Debug, Clone, Serialize)]
pub struct Cpu {
    /// Model name; "unknown" where the system does not tell.
    pub model: String,
    /// Physical cores, if the system tells.
    pub cores: Option<usize>,
    /// Threads that training uses unless `--threads` says otherwise.
    pub threads: usize,
    /// The widest vector instructions found: `avx512`, `avx2`, `neon` or `baseline`.
    pub simd: &'static str,
    /// Hardware products of bfloat16 numbers: `avx512_bf16`, `amx_bf16`.
    pub bf16: Vec<String>,
    /// Main memory in bytes, if the system tells.
    pub memory_bytes: Option<u64>,
}

/// One shared library.
#[derive(Debug, Clone, Serialize)]
pub struct Library {
    /// What a person calls it.
    pub name: &'static str,
    /// Its file name without a version.
    pub file: &'static str,
    /// Whether it was found in a folder or by the system loader.
    pub found: bool,
    /// Where it lies. The loader can find a library in a place that is not among those listed.
    pub path: Option<PathBuf>,
    /// Whether the system loader opens it by name.
    pub loader_opens: bool,
}

/// One NVIDIA GPU.
#[derive(Debug, Clone, Serialize)]
pub struct Gpu {
    /// The number in `--device cuda:N`.
    pub ordinal: i32,
    /// The driver's name for it.
    pub name: String,
    /// As in `9.0`.
    pub compute_capability: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// Looks at this machine.
pub fn find() -> DevicesReport {
    let places = places::places(&|name| std::env::var(name).ok());
    let libraries = vec![
        // SAFETY: the four questions open and close a library by its name and call nothing in it;
        // opening runs the initialisers of NVIDIA's own libraries, which are made to be opened so.
        unsafe { library("NVIDIA driver", "libcuda.so", &places, cudarc::driver::sys::is_culib_present) },
        // SAFETY: as above.
        unsafe { library("NVRTC", "libnvrtc.so", &places, cudarc::nvrtc::sys::is_culib_present) },
        // SAFETY: as above.
        unsafe { library("cuBLAS", "libcublas.so", &places, cudarc::cublas::sys::is_culib_present) },
        // SAFETY: as above.
        unsafe { library("cuBLASLt", "libcublasLt.so", &places, cudarc::cublaslt::sys::is_culib_present) },
    ];
    let mut report = DevicesReport {
        cpu: cpu(),
        kernel_driver: kernel_driver(),
        driver_cuda: None,
        gpus: Vec::new(),
        gpu_problem: None,
        note: NOTE,
        libraries,
        looked_in: places,
    };
    // Any call of cudarc's driver module panics where the loader does not open the driver.
    if report.libraries[0].loader_opens {
        match ask_driver() {
            Ok((cuda, gpus)) => {
                report.driver_cuda = cuda;
                report.gpus = gpus;
            }
            // The code alone: the driver's words for it would take another call of a driver in trouble.
            Err(e) => report.gpu_problem = Some(format!("the NVIDIA driver answers {:?}", e.0)),
        }
    }
    report
}

/// # Safety
/// `opens` must be sound to call on any machine, with or without the library.
unsafe fn library(
    name: &'static str,
    file: &'static str,
    places: &[Place],
    opens: unsafe fn() -> bool,
) -> Library {
    // SAFETY: promised by the caller.
    let loader_opens = unsafe { opens() };
    let path = places.iter().find_map(|p| places::file_in(&p.folder, file));
    Library { name, file, found: loader_opens || path.is_some(), path, loader_opens }
}

/// The version of the loaded kernel module.
fn kernel_driver() -> Option<String> {
    let text = std::fs::read_to_string("/sys/module/nvidia/version").ok()?;
    Some(text.trim().to_owned())
}

/// CUDA version and devices. Call only where the loader opens the driver.
fn ask_driver() -> Result<(Option<String>, Vec<Gpu>), cudarc::driver::DriverError> {
    use cudarc::driver::result::{device, init};
    use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

    init()?;
    let mut version = 0;
    // SAFETY: the driver is open, and writes one int to the address it is given.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    let known = status == sys::CUresult::CUDA_SUCCESS && version > 0;
    let cuda = known.then(|| format!("{}.{}", version / 1000, version % 1000 / 10));
    let mut gpus = Vec::new();
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
        gpus.push(Gpu {
            ordinal,
            name: device::get_name(handle)?,
            compute_capability: format!("{major}.{minor}"),
            memory_bytes: memory as u64,
        });
    }
    Ok((cuda, gpus))
}

fn cpu() -> Cpu {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let flags = field(&info, "flags").unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
    Cpu {
        model: field(&info, "model name").unwrap_or("unknown").to_owned(),
        cores: physical_cores(&info),
        threads: rayon::current_num_threads(),
        simd: simd(),
        bf16: ["avx512_bf16", "amx_bf16"].into_iter().filter(|f| has(f)).map(str::to_owned).collect(),
        memory_bytes: field(&memory, "MemTotal")
            .and_then(|v| v.strip_suffix(" kB")?.parse::<u64>().ok())
            .map(|kib| kib * 1024),
    }
}

/// The value of the first `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

/// Different pairs of socket and core; threads that share a core count once.
fn physical_cores(info: &str) -> Option<usize> {
    let mut cores = BTreeMap::new();
    for processor in info.split("\n\n") {
        if let (Some(socket), Some(core)) = (field(processor, "physical id"), field(processor, "core id")) {
            cores.insert((socket, core), ());
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

fn simd() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return "avx2";
        }
    }
    if cfg!(target_arch = "aarch64") {
        return "neon";
    }
    "baseline"
}

impl fmt::Display for DevicesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = &self.cpu;
        writeln!(f, "CPU        {}", cpu.model)?;
        let cores = cpu.cores.map_or(String::new(), |n| format!("{n} cores, "));
        let bf16 = cpu.bf16.iter().map(|b| format!(" + {b}")).collect::<String>();
        write!(f, "           {cores}{} threads, {}{bf16}", cpu.threads, cpu.simd)?;
        match cpu.memory_bytes {
            Some(n) => writeln!(f, ", {} memory", bytes(n))?,
            None => writeln!(f)?,
        }
        match (&self.gpu_problem, self.gpus.as_slice()) {
            (Some(problem), _) => writeln!(f, "GPU        none: {problem}")?,
            (None, []) => writeln!(f, "GPU        none found")?,
            (None, gpus) => {
                for gpu in gpus {
                    let memory = bytes(gpu.memory_bytes);
                    let (n, name, capability) = (gpu.ordinal, &gpu.name, &gpu.compute_capability);
                    writeln!(f, "GPU        cuda:{n}  {name}, compute capability {capability}, {memory}")?;
                }
            }
        }
        if let Some(version) = &self.kernel_driver {
            writeln!(f, "driver     {version}")?;
        }
        if let Some(version) = &self.driver_cuda {
            writeln!(f, "           serves CUDA up to {version}")?;
        }
        writeln!(f, "libraries")?;
        for library in &self.libraries {
            let place = match (&library.path, library.loader_opens) {
                (Some(path), _) => path.display().to_string(),
                (None, true) => "found by the system loader".to_owned(),
                (None, false) => "not found".to_owned(),
            };
            writeln!(f, "  {:<14} {:<15} {place}", library.name, library.file)?;
        }
        writeln!(f, "looked in, in this order (a dash: no such folder)")?;
        for place in &self.looked_in {
            let mark = if place.folder.is_dir() { ' ' } else { '-' };
            let folder = place.folder.display();
            writeln!(f, "  {mark} {:<16} {folder}", place.reason)?;
        }
        write!(f, "{}", self.note)
    }
}

#[cfg(test)]
mod tests;
