//! What `sae devices` reports: the processor, the CUDA libraries and where each was looked for, the GPUs.
//!
//! Nothing here may fail: a machine without any of it is the usual case, and gets a report as well.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::backend::cuda::libraries::{self, Version};
use crate::backend::cuda::places;
use crate::text::bytes;
pub use places::Place;

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
    /// Compute capabilities that the kernels can be compiled for here, as in `9.0`.
    pub compiles_for: Vec<String>,
    /// Number of GPUs that training can use.
    pub usable_gpus: usize,
    /// What `--device auto` takes, and why.
    pub note: String,
}

/// The processor.
#[derive(Debug, Clone, Serialize)]
pub struct Cpu {
    /// Model name; "unknown" where the system does not say.
    pub model: String,
    /// Physical cores, if the system says.
    pub cores: Option<usize>,
    /// Threads that training uses unless `--threads` says otherwise.
    pub threads: usize,
    /// The widest vector instructions found: `avx512`, `avx2`, `neon` or `baseline`.
    pub simd: &'static str,
    /// Hardware products of bfloat16 numbers: `avx512_bf16`, `amx_bf16`.
    pub bf16: Vec<String>,
    /// Main memory in bytes, if the system says.
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
    /// Its version, as in `13.0`, if it opens and says so.
    pub version: Option<String>,
    /// Copies that come before it and cannot be used, each with the reason.
    pub skipped: Vec<String>,
    /// Why no copy can be used, where there is one.
    pub problem: Option<String>,
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
    /// Why it cannot be used; none if it can.
    pub refused: Option<String>,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// Looks at this machine.
pub fn find() -> DevicesReport {
    let places = places::here();
    let driver = libraries::driver();
    let need = libraries::Need {
        driver: driver.as_ref().ok().map(|d| d.serves),
        card: driver.as_ref().ok().and_then(|d| d.cards.first()).map(|card| card.capability),
    };
    let (nvrtc, cublas, nccl) = (libraries::nvrtc(need), libraries::cublas(need), libraries::nccl(need));
    let libraries = vec![
        library("NVIDIA driver", "libcuda.so", &places, libraries::driver_is_there()),
        library("NVRTC", "libnvrtc.so", &places, by_loader(libraries::Library::Nvrtc)).with(&nvrtc),
        library("cuBLAS", "libcublas.so", &places, by_loader(libraries::Library::Cublas)).with(&cublas),
        // For several GPUs alone.
        library("NCCL", "libnccl.so", &places, by_loader(libraries::Library::Nccl)).with(&nccl),
    ];
    let (usable_gpus, note) = match libraries::available() {
        Ok(n) => (n, "`--device auto` takes cuda:0".to_owned()),
        Err(reason) => (0, format!("`--device auto` takes the CPU: {reason}")),
    };
    let compiles_for = nvrtc.map(|copy| copy.known.clone()).unwrap_or_default();
    let compiles_for =
        compiles_for.into_iter().map(|arch| (arch / 10, arch % 10)).filter(|c| *c >= libraries::OLDEST_CARD);
    DevicesReport {
        cpu: cpu(),
        kernel_driver: kernel_driver(),
        driver_cuda: driver.as_ref().ok().map(|d| dotted(d.serves)),
        gpu_problem: driver.as_ref().err().filter(|_| libraries[0].found).cloned(),
        gpus: driver.map(|d| gpus(&d)).unwrap_or_default(),
        compiles_for: compiles_for.map(dotted).collect(),
        usable_gpus,
        note,
        libraries,
        looked_in: places,
    }
}

fn dotted((major, minor): Version) -> String {
    format!("{major}.{minor}")
}

fn gpus(driver: &libraries::Driver) -> Vec<Gpu> {
    let gpu = |(n, card): (usize, &libraries::Listed)| Gpu {
        ordinal: n as i32,
        name: card.name.clone(),
        compute_capability: dotted(card.capability),
        refused: card.check(n).err(),
        memory_bytes: card.memory,
    };
    driver.cards.iter().enumerate().map(gpu).collect()
}

/// Whether the system loader opens a library by its name; it is closed again.
fn by_loader(library: libraries::Library) -> bool {
    libraries::by_loader(library).is_some()
}

fn library(name: &'static str, file: &'static str, places: &[Place], loader_opens: bool) -> Library {
    let path = places.iter().find_map(|p| places::files_in(&p.folder, file).into_iter().next());
    let found = loader_opens || path.is_some();
    Library { name, file, found, path, loader_opens, version: None, skipped: Vec::new(), problem: None }
}

impl Library {
    /// With what is known of the copy that is used, or why none is.
    fn with<F>(mut self, copy: &libraries::Outcome<&'static libraries::Copy<F>>) -> Self {
        match copy {
            Ok(copy) => {
                self.version = Some(dotted(copy.version));
                self.path = Some(PathBuf::from(&copy.from)).filter(|path| path.is_absolute());
                self.skipped.clone_from(&copy.skipped);
            }
            Err(why) if self.found => self.problem = Some(why.clone()),
            Err(_) => {}
        }
        self
    }
}

/// The version of the loaded kernel module.
fn kernel_driver() -> Option<String> {
    let text = std::fs::read_to_string("/sys/module/nvidia/version").ok()?;
    Some(text.trim().to_owned())
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
                    let old = if gpu.refused.is_some() { " (too old: 8.0 or newer is needed)" } else { "" };
                    writeln!(
                        f,
                        "GPU        cuda:{n}  {name}, compute capability {capability}{old}, {memory}"
                    )?;
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
            let version = library.version.as_deref().map_or(String::new(), |v| format!(" ({v})"));
            writeln!(f, "  {:<14} {:<15} {place}{version}", library.name, library.file)?;
            for why in &library.skipped {
                writeln!(f, "  {:<30} skipped {why}", "")?;
            }
            if let Some(problem) = &library.problem {
                writeln!(f, "  {:<30} {problem}", "")?;
            }
        }
        if !self.compiles_for.is_empty() {
            let all = self.compiles_for.join(", ");
            writeln!(f, "  the kernels can be compiled for compute capability {all}")?;
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
