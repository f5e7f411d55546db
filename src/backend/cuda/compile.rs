//! The kernels, compiled by NVRTC for one architecture, kept on disk; and what each takes of a card.
//!
//! All `.cu` files are one program, whose root only includes them; every file is handed to NVRTC in memory.

use super::libraries::{self, Copy, Need, Nvrtc, Version};
use crate::error::{Error, Result};
use cudarc::nvrtc::result::NvrtcError;
use cudarc::nvrtc::sys::{nvrtcProgram, nvrtcResult};
use std::ffi::{CString, c_char};
use std::io::Write;

pub mod cache;
pub mod resources;

/// Names and texts of the files of a program; the `.cu` among them are its roots.
pub type Sources<'a> = &'a [(&'a str, &'a str)];

/// A real architecture: 90 is sm_90.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arch(pub u32);

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sm_{}", self.0)
    }
}

impl Arch {
    /// The architecture to compile for on a card of this compute capability: its own, or the newest that this
    /// NVRTC knows in the same generation, whose code runs on the later cards of it.
    ///
    /// # Errors
    /// NVRTC is missing, or knows nothing of the generation.
    pub fn of(capability: Version) -> Result<Self> {
        let need = Need { card: Some(capability), ..Need::default() };
        let copy = libraries::nvrtc(need).map_err(Error::Failed)?;
        libraries::newest_of(&copy.known, capability).map(Self).ok_or_else(|| {
            Error::Failed(format!("NVRTC does not know compute capability {}.{}", capability.0, capability.1))
        })
    }
}

/// The copy of NVRTC in use.
fn nvrtc() -> Result<&'static Copy<Nvrtc>> {
    libraries::nvrtc(Need::default()).map_err(Error::Failed)
}

/// The architectures that NVRTC compiles for, as 90 for sm_90.
///
/// # Errors
/// NVRTC is missing or does not answer.
pub fn supported() -> Result<Vec<u32>> {
    Ok(nvrtc()?.known.clone())
}

/// A compiled program.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// What the driver loads.
    pub cubin: Vec<u8>,
    /// What the compiler said; empty if nothing.
    pub log: String,
}

/// The options for `arch`; `told` has the assembler say what each kernel takes.
fn options(arch: Arch, told: bool) -> Vec<String> {
    // A CUBIN comes for a real architecture only. Line numbers cost nothing and name the place in profilers
    // and in compute-sanitizer.
    let mut options =
        vec![format!("--gpu-architecture={arch}"), "--std=c++17".to_owned(), "-lineinfo".to_owned()];
    if told {
        options.push("--ptxas-options=-v".to_owned());
    }
    options
}

/// Compiles `sources` for `arch`. With `told`, [`resources::resources`] reads from the log what each kernel takes.
///
/// # Errors
/// NVRTC is missing, or the sources do not compile: the first error, and where the whole log was written.
pub fn compile(sources: Sources<'_>, arch: Arch, told: bool) -> Result<Compiled> {
    let (program, log) = build(sources, arch, told)?;
    let cubin = program.cubin().map_err(|e| broken(arch, &format!("no CUBIN ({e:?})")))?;
    if cubin.is_empty() {
        return Err(broken(arch, "an empty CUBIN"));
    }
    Ok(Compiled { cubin, log })
}

/// The PTX from which the CUBIN of `arch` is made.
///
/// # Errors
/// As [`compile`].
pub fn ptx(sources: Sources<'_>, arch: Arch) -> Result<String> {
    let (program, _) = build(sources, arch, false)?;
    let text = program.text(program.nvrtc.nvrtcGetPTXSize, program.nvrtc.nvrtcGetPTX);
    text.map_err(|e| broken(arch, &format!("no PTX ({e:?})")))
}

fn broken(arch: Arch, what: &str) -> Error {
    let (major, minor) = nvrtc().map(|copy| copy.version).unwrap_or_default();
    Error::Failed(format!(
        "the kernels do not compile for {arch} with NVRTC {major}.{minor}: {what}; please report this"
    ))
}

/// A compiled program, and what the compiler said.
fn build(sources: Sources<'_>, arch: Arch, told: bool) -> Result<(Program, String)> {
    let copy = nvrtc()?;
    let version = copy.version;
    let program = Program::new(&copy.functions, sources).map_err(|what| broken(arch, &what))?;
    let status = program.compile(&options(arch, told)).map_err(|what| broken(arch, &what))?;
    let log = program.log();
    match status.result() {
        Ok(()) => Ok((program, log)),
        Err(NvrtcError(nvrtcResult::NVRTC_ERROR_INVALID_OPTION)) => Err(Error::Failed(format!(
            "NVRTC {}.{} does not compile for {arch}: install a newer one (`pip install --upgrade \
             nvidia-cuda-nvrtc nvidia-cublas`), or use --device cpu",
            version.0, version.1
        ))),
        Err(e) => Err(broken(arch, &first_error(&log, &format!("{e:?}")))),
    }
}

/// The first error of a log, and the file that has all of it.
fn first_error(log: &str, otherwise: &str) -> String {
    let first = log.lines().map(str::trim).find(|line| line.contains("error")).unwrap_or(otherwise);
    match write_log(log) {
        Some(path) => format!("{first}; the whole log is in {path}"),
        None => first.to_owned(),
    }
}

/// Best effort: without a place for temporary files the first error must do.
fn write_log(log: &str) -> Option<String> {
    let mut file = tempfile::Builder::new().prefix("sae-nvrtc-").suffix(".log").tempfile().ok()?;
    file.write_all(log.as_bytes()).ok()?;
    let (_, path) = file.keep().ok()?;
    Some(path.display().to_string())
}

type GetSize = unsafe extern "C" fn(nvrtcProgram, *mut usize) -> nvrtcResult;
type GetBytes = unsafe extern "C" fn(nvrtcProgram, *mut c_char) -> nvrtcResult;

/// A program of NVRTC; destroyed when dropped.
struct Program {
    nvrtc: &'static Nvrtc,
    handle: nvrtcProgram,
    // NVRTC may refer to the texts as long as the program lives.
    _texts: Vec<CString>,
}

impl Program {
    fn new(nvrtc: &'static Nvrtc, sources: Sources<'_>) -> std::result::Result<Self, String> {
        let root: String = sources
            .iter()
            .filter(|(name, _)| name.ends_with(".cu"))
            .map(|(name, _)| format!("#include \"{name}\"\n"))
            .collect();
        let mut texts = Vec::with_capacity(2 * sources.len() + 2);
        let all = sources.iter().flat_map(|(name, text)| [*name, *text]).chain([root.as_str(), "kernels"]);
        for text in all {
            texts.push(CString::new(text).map_err(|_| "a source has a zero byte".to_owned())?);
        }
        let pointer = |n: usize| texts[n].as_ptr();
        let names: Vec<*const c_char> = (0..sources.len()).map(|n| pointer(2 * n)).collect();
        let bodies: Vec<*const c_char> = (0..sources.len()).map(|n| pointer(2 * n + 1)).collect();
        let (root, name) = (pointer(2 * sources.len()), pointer(2 * sources.len() + 1));
        let count = i32::try_from(sources.len()).map_err(|e| e.to_string())?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `bodies` and `names` have `count` strings each, all ending in a zero
        // byte, and the strings live as long as the program.
        let status = unsafe {
            (nvrtc.nvrtcCreateProgram)(&mut handle, root, name, count, bodies.as_ptr(), names.as_ptr())
        };
        status.result().map_err(|e| format!("{e:?}"))?;
        Ok(Self { nvrtc, handle, _texts: texts })
    }

    /// What NVRTC answers when it is asked to compile.
    fn compile(&self, options: &[String]) -> std::result::Result<nvrtcResult, String> {
        let options = options.iter().map(|option| CString::new(option.as_str()));
        let options: Vec<CString> =
            options.collect::<std::result::Result<_, _>>().map_err(|e| e.to_string())?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let count = i32::try_from(pointers.len()).map_err(|e| e.to_string())?;
        // SAFETY: the program lives, and so do the `count` strings during the call.
        Ok(unsafe { (self.nvrtc.nvrtcCompileProgram)(self.handle, count, pointers.as_ptr()) })
    }

    /// Bytes that NVRTC has for the program: it reports how many, and writes them.
    fn bytes(&self, size: GetSize, get: GetBytes) -> std::result::Result<Vec<u8>, NvrtcError> {
        let mut count = 0;
        // SAFETY: the program lives, and NVRTC writes one size.
        unsafe { size(self.handle, &mut count) }.result()?;
        let mut bytes = vec![0u8; count];
        // SAFETY: the program lives, and NVRTC writes as many bytes as it has just said, which `bytes` has.
        unsafe { get(self.handle, bytes.as_mut_ptr().cast()) }.result()?;
        Ok(bytes)
    }

    /// The same as text, up to the zero byte that ends it.
    fn text(&self, size: GetSize, get: GetBytes) -> std::result::Result<String, NvrtcError> {
        let bytes = self.bytes(size, get)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    /// What the compiler said; empty where it said nothing.
    fn log(&self) -> String {
        let log = self.text(self.nvrtc.nvrtcGetProgramLogSize, self.nvrtc.nvrtcGetProgramLog);
        log.unwrap_or_default().trim().to_owned()
    }

    fn cubin(&self) -> std::result::Result<Vec<u8>, NvrtcError> {
        self.bytes(self.nvrtc.nvrtcGetCUBINSize, self.nvrtc.nvrtcGetCUBIN)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by `new` and destroyed here alone. An error leaves nothing to do.
        let _ = unsafe { (self.nvrtc.nvrtcDestroyProgram)(&mut self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_newer_than_the_compiler_gets_code_of_its_generation_or_none() {
        let known = [75, 80, 86, 87, 89, 90, 100];
        assert_eq!(libraries::newest_of(&known, (8, 0)), Some(80));
        assert_eq!(libraries::newest_of(&known, (8, 6)), Some(86));
        assert_eq!(libraries::newest_of(&known, (8, 8)), Some(87));
        assert_eq!(libraries::newest_of(&known, (9, 0)), Some(90));
        assert_eq!(libraries::newest_of(&known, (10, 3)), Some(100));
        assert_eq!(libraries::newest_of(&known, (12, 0)), None);
    }

    #[test]
    fn the_first_error_is_told_and_the_log_kept() {
        let log =
            "kernels/a.cu(3): warning #177-D: unused\na.cu(7): error: identifier \"x\" is undefined\nmore";
        let text = first_error(log, "NVRTC_ERROR_COMPILATION");
        assert!(text.starts_with("a.cu(7): error: identifier"), "{text}");
        let path = text.rsplit(' ').next().unwrap_or_default();
        assert_eq!(std::fs::read_to_string(path).ok().as_deref(), Some(log));
        let _ = std::fs::remove_file(path);
        assert!(first_error("", "NVRTC_ERROR_COMPILATION").starts_with("NVRTC_ERROR_COMPILATION"));
    }
}
