//! The kernels, compiled by NVRTC for one architecture, kept on disk; and what each takes of a card.
//!
//! All `.cu` files are one program, whose root only includes them; every file is handed to NVRTC in memory.

use super::libraries::{self, Version};
use crate::error::{Error, Result};
use cudarc::nvrtc::result::{self as nvrtc, NvrtcError};
use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};
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
        let (major, minor) = capability;
        let version = libraries::nvrtc(None).map_err(Error::Failed)?;
        newest_of(&supported()?, capability).map(Self).ok_or_else(|| {
            Error::Failed(format!(
                "NVRTC {}.{} does not compile for compute capability {major}.{minor}: install a newer one \
                 (`pip install --upgrade nvidia-cuda-nvrtc nvidia-cublas`), or use --device cpu",
                version.0, version.1
            ))
        })
    }
}

fn newest_of(known: &[u32], (major, minor): Version) -> Option<u32> {
    let fits = |arch: &&u32| **arch / 10 == major && **arch % 10 <= minor;
    known.iter().filter(fits).max().copied()
}

/// The architectures that NVRTC compiles for, as 90 for sm_90.
///
/// # Errors
/// NVRTC is missing or does not answer.
pub fn supported() -> Result<Vec<u32>> {
    libraries::nvrtc(None).map_err(Error::Failed)?;
    let failed = |e: NvrtcError| Error::Failed(format!("NVRTC does not list its architectures ({e:?})"));
    let mut count = 0;
    // SAFETY: NVRTC is open, and writes one int.
    unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) }.result().map_err(failed)?;
    let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: NVRTC writes as many ints as it has just said, and `known` has as many.
    unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) }.result().map_err(failed)?;
    Ok(known.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect())
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
    // SAFETY: the program lives.
    let text =
        unsafe { nvrtc::get_ptx(program.handle) }.map_err(|e| broken(arch, &format!("no PTX ({e:?})")))?;
    let bytes: Vec<u8> = text.into_iter().map(|c| c as u8).take_while(|c| *c != 0).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn broken(arch: Arch, what: &str) -> Error {
    let (major, minor) = libraries::nvrtc(None).unwrap_or_default();
    Error::Failed(format!(
        "the kernels do not compile for {arch} with NVRTC {major}.{minor}: {what}; please report this"
    ))
}

/// A compiled program, and what the compiler said.
fn build(sources: Sources<'_>, arch: Arch, told: bool) -> Result<(Program, String)> {
    let version = libraries::nvrtc(None).map_err(Error::Failed)?;
    let program = Program::new(sources).map_err(|what| broken(arch, &what))?;
    let options = options(arch, told);
    // SAFETY: the program was created just now and lives.
    let status = unsafe { nvrtc::compile_program(program.handle, &options) };
    let log = program.log();
    match status {
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

/// A program of NVRTC; destroyed when dropped.
struct Program {
    handle: nvrtcProgram,
    // NVRTC may refer to the texts as long as the program lives.
    _texts: Vec<CString>,
}

impl Program {
    fn new(sources: Sources<'_>) -> std::result::Result<Self, String> {
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
        // SAFETY: the caller has opened NVRTC. `bodies` and `names` have `count` strings each, all ending in a zero
        // byte, and the strings live as long as the program.
        let status = unsafe {
            sys::nvrtcCreateProgram(&mut handle, root, name, count, bodies.as_ptr(), names.as_ptr())
        };
        status.result().map_err(|e| format!("{e:?}"))?;
        Ok(Self { handle, _texts: texts })
    }

    /// What the compiler said; empty where it does not tell.
    fn log(&self) -> String {
        // SAFETY: the program lives.
        let log = unsafe { nvrtc::get_program_log(self.handle) }.unwrap_or_default();
        let bytes: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|c| *c != 0).collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    fn cubin(&self) -> std::result::Result<Vec<u8>, NvrtcError> {
        let mut size = 0;
        // SAFETY: the program lives, and NVRTC writes one size.
        unsafe { sys::nvrtcGetCUBINSize(self.handle, &mut size) }.result()?;
        let mut cubin = vec![0u8; size];
        // SAFETY: the program lives, and NVRTC writes as many bytes as it has just said, which `cubin` has.
        unsafe { sys::nvrtcGetCUBIN(self.handle, cubin.as_mut_ptr().cast()) }.result()?;
        Ok(cubin)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by `new` and destroyed here alone. An error leaves nothing to do.
        let _ = unsafe { nvrtc::destroy_program(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_newer_than_the_compiler_gets_code_of_its_generation_or_none() {
        let known = [75, 80, 86, 87, 89, 90, 100];
        assert_eq!(newest_of(&known, (8, 0)), Some(80));
        assert_eq!(newest_of(&known, (8, 6)), Some(86));
        assert_eq!(newest_of(&known, (8, 8)), Some(87));
        assert_eq!(newest_of(&known, (9, 0)), Some(90));
        assert_eq!(newest_of(&known, (10, 3)), Some(100));
        assert_eq!(newest_of(&known, (12, 0)), None);
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
