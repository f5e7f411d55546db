//! NVRTC, cuBLAS and NCCL: their functions, from the first copy on this machine that goes with the driver and the card.
//!
//! A machine may have several: the system's, a toolkit's, those of Python environments. The system loader is asked
//! first, then the folders of `sae devices` in their order. cudarc loads a library once, by its name, so that the first
//! copy found would win even where it cannot be used; its types are taken, and its loader is not.

use super::{Library, Outcome, Version, one_line};
use crate::backend::cuda::places::{self, Place};
use cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasHandle_t, cublasMath_t, cublasOperation_t, cublasStatus_t,
    cudaDataType, cudaStream_t, libraryPropertyType,
};
use cudarc::nccl::sys::{ncclComm_t, ncclUniqueId};
use cudarc::nvrtc::sys::{nvrtcProgram, nvrtcResult};
use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{c_char, c_int, c_void};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The oldest CUDA whose NVRTC and cuBLAS are used.
const OLDEST: u32 = 12;
/// The oldest NCCL that is used: the first that names its last error.
const OLDEST_NCCL: Version = (2, 13);

/// A table of functions of a library, by the names and types of its header.
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident { $($name:ident($($type:ty),*) -> $result:ty;)* }) => {
        $(#[$doc])*
        #[allow(non_snake_case, missing_docs)]
        pub struct $table {
            $(pub $name: unsafe extern "C" fn($($type),*) -> $result,)*
            // The functions are valid as long as it is open, and so is what it needs.
            _library: Vec<Handle>,
        }

        #[allow(non_snake_case)]
        impl $table {
            /// The functions of the last of `handles`, which needs the others.
            fn of(handles: Vec<Handle>) -> Outcome<Self> {
                let library = handles.last().ok_or("nothing is open")?;
                $(
                    // SAFETY: NVIDIA's header gives this type to this name, in all versions from CUDA 12 on.
                    let $name = *unsafe {
                        library.get::<unsafe extern "C" fn($($type),*) -> $result>(
                            concat!(stringify!($name), "\0").as_bytes(),
                        )
                    }
                    .map_err(|_| concat!("it has no function ", stringify!($name)))?;
                )*
                Ok(Self { $($name,)* _library: handles })
            }
        }
    };
}

functions! {
    /// The functions of NVRTC that are called.
    Nvrtc {
        nvrtcVersion(*mut c_int, *mut c_int) -> nvrtcResult;
        nvrtcGetNumSupportedArchs(*mut c_int) -> nvrtcResult;
        nvrtcGetSupportedArchs(*mut c_int) -> nvrtcResult;
        nvrtcCreateProgram(
            *mut nvrtcProgram, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
        ) -> nvrtcResult;
        nvrtcDestroyProgram(*mut nvrtcProgram) -> nvrtcResult;
        nvrtcCompileProgram(nvrtcProgram, c_int, *const *const c_char) -> nvrtcResult;
        nvrtcGetProgramLogSize(nvrtcProgram, *mut usize) -> nvrtcResult;
        nvrtcGetProgramLog(nvrtcProgram, *mut c_char) -> nvrtcResult;
        nvrtcGetCUBINSize(nvrtcProgram, *mut usize) -> nvrtcResult;
        nvrtcGetCUBIN(nvrtcProgram, *mut c_char) -> nvrtcResult;
        nvrtcGetPTXSize(nvrtcProgram, *mut usize) -> nvrtcResult;
        nvrtcGetPTX(nvrtcProgram, *mut c_char) -> nvrtcResult;
    }
}

functions! {
    /// The functions of cuBLAS that are called.
    Cublas {
        cublasGetProperty(libraryPropertyType, *mut c_int) -> cublasStatus_t;
        cublasCreate_v2(*mut cublasHandle_t) -> cublasStatus_t;
        cublasDestroy_v2(cublasHandle_t) -> cublasStatus_t;
        cublasSetStream_v2(cublasHandle_t, cudaStream_t) -> cublasStatus_t;
        cublasSetWorkspace_v2(cublasHandle_t, *mut c_void, usize) -> cublasStatus_t;
        cublasSetMathMode(cublasHandle_t, cublasMath_t) -> cublasStatus_t;
        cublasGemmEx(
            cublasHandle_t, cublasOperation_t, cublasOperation_t, c_int, c_int, c_int, *const c_void,
            *const c_void, cudaDataType, c_int, *const c_void, cudaDataType, c_int, *const c_void,
            *mut c_void, cudaDataType, c_int, cublasComputeType_t, cublasGemmAlgo_t
        ) -> cublasStatus_t;
    }
}

functions! {
    /// The functions of NCCL that are called. Results and kinds of values are plain numbers: a newer NCCL may give one that no
    /// list here has.
    Nccl {
        ncclGetVersion(*mut c_int) -> c_int;
        ncclGetUniqueId(*mut ncclUniqueId) -> c_int;
        ncclCommInitRank(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> c_int;
        ncclCommDestroy(ncclComm_t) -> c_int;
        ncclGetErrorString(c_int) -> *const c_char;
        ncclGetLastError(ncclComm_t) -> *const c_char;
        ncclGroupStart() -> c_int;
        ncclGroupEnd() -> c_int;
        ncclAllReduce(
            *const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, cudaStream_t
        ) -> c_int;
        ncclAllGather(*const c_void, *mut c_void, usize, c_int, ncclComm_t, cudaStream_t) -> c_int;
    }
}

/// What a copy must go with; where nothing is known, any will do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// The newest CUDA that the driver serves.
    pub driver: Option<Version>,
    /// Compute capability of the card.
    pub card: Option<Version>,
}

/// A copy of a library that was opened.
pub struct Copy<F> {
    /// Its functions.
    pub functions: F,
    /// Its version.
    pub version: Version,
    /// Its file, or "the system loader".
    pub from: String,
    /// Copies before it that cannot be used, each with the reason.
    pub skipped: Vec<String>,
    /// Compute capabilities that it knows, as 90 for 9.0; only NVRTC reports them.
    pub known: Vec<u32>,
}

/// A library of which one copy is chosen.
pub trait Functions: Sized + Sync + Send + 'static {
    /// Which one.
    const LIBRARY: Library;
    /// The table of an open library; the last handle is the library's.
    ///
    /// # Errors
    /// A function that is missing.
    fn of(handles: Vec<Handle>) -> Outcome<Self>;
    /// Its version.
    ///
    /// # Errors
    /// It does not answer.
    fn version(&self) -> Outcome<Version>;
    /// Compute capabilities that it says it knows, as 90 for 9.0.
    ///
    /// # Errors
    /// It does not answer.
    fn known(&self) -> Outcome<Vec<u32>>;
    /// Where the copy in use is kept.
    fn current() -> &'static Mutex<Option<&'static Copy<Self>>>;
}

impl Functions for Nvrtc {
    const LIBRARY: Library = Library::Nvrtc;

    fn of(handles: Vec<Handle>) -> Outcome<Self> {
        Self::of(handles)
    }

    fn version(&self) -> Outcome<Version> {
        let (mut high, mut low) = (0, 0);
        // SAFETY: NVRTC writes two ints to the addresses it is given.
        let status = unsafe { (self.nvrtcVersion)(&mut high, &mut low) };
        status.result().map_err(|e| format!("it does not report its version ({:?})", e.0))?;
        Ok((high.unsigned_abs(), low.unsigned_abs()))
    }

    fn known(&self) -> Outcome<Vec<u32>> {
        let failed = |what: nvrtcResult| format!("it does not list its architectures ({what:?})");
        let mut count = 0;
        // SAFETY: NVRTC writes one int.
        unsafe { (self.nvrtcGetNumSupportedArchs)(&mut count) }.result().map_err(|e| failed(e.0))?;
        let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: NVRTC writes as many ints as it has just said, and `known` has as many.
        unsafe { (self.nvrtcGetSupportedArchs)(known.as_mut_ptr()) }.result().map_err(|e| failed(e.0))?;
        Ok(known.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect())
    }

    fn current() -> &'static Mutex<Option<&'static Copy<Self>>> {
        static CURRENT: Mutex<Option<&'static Copy<Nvrtc>>> = Mutex::new(None);
        &CURRENT
    }
}

impl Functions for Cublas {
    const LIBRARY: Library = Library::Cublas;

    fn of(handles: Vec<Handle>) -> Outcome<Self> {
        Self::of(handles)
    }

    fn version(&self) -> Outcome<Version> {
        let ask = |property| {
            let mut value = 0;
            // SAFETY: cuBLAS writes one int to the address it is given; no handle is needed.
            let status = unsafe { (self.cublasGetProperty)(property, &mut value) };
            status.result().map_err(|e| format!("it does not report its version ({:?})", e.0))?;
            Ok::<u32, String>(value.unsigned_abs())
        };
        Ok((ask(libraryPropertyType::MAJOR_VERSION)?, ask(libraryPropertyType::MINOR_VERSION)?))
    }

    fn known(&self) -> Outcome<Vec<u32>> {
        Ok(Vec::new())
    }

    fn current() -> &'static Mutex<Option<&'static Copy<Self>>> {
        static CURRENT: Mutex<Option<&'static Copy<Cublas>>> = Mutex::new(None);
        &CURRENT
    }
}

impl Functions for Nccl {
    const LIBRARY: Library = Library::Nccl;

    fn of(handles: Vec<Handle>) -> Outcome<Self> {
        Self::of(handles)
    }

    fn version(&self) -> Outcome<Version> {
        let mut version = 0;
        // SAFETY: NCCL writes one int to the address it is given.
        let status = unsafe { (self.ncclGetVersion)(&mut version) };
        if status != 0 {
            return Err(format!("it does not report its version ({status})"));
        }
        let version = version.unsigned_abs();
        // 2804 was 2.8.4; from 2.9 on it is 10000 major + 100 minor.
        Ok(if version < 10_000 {
            (version / 1000, version % 1000 / 100)
        } else {
            (version / 10_000, version % 10_000 / 100)
        })
    }

    fn known(&self) -> Outcome<Vec<u32>> {
        Ok(Vec::new())
    }

    fn current() -> &'static Mutex<Option<&'static Copy<Self>>> {
        static CURRENT: Mutex<Option<&'static Copy<Nccl>>> = Mutex::new(None);
        &CURRENT
    }
}

/// The copy in use, if it goes with `need`; else the first that does, which is in use from then on.
///
/// # Errors
/// One line: no copy, or why each cannot be used, and what to install.
pub fn open<F: Functions>(need: Need) -> Outcome<&'static Copy<F>> {
    let mut current = F::current().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(copy) = *current
        && fits(F::LIBRARY, copy.version, &copy.known, need).is_ok()
    {
        return Ok(copy);
    }
    // Never closed: programs and handles made with the one before may be alive.
    let copy = Box::leak(Box::new(choose::<F>(need, &places::here(), true)?));
    *current = Some(copy);
    Ok(copy)
}

/// The first copy that goes with `need`: of the system loader (if `by_name`), then of `places`.
pub(super) fn choose<F: Functions>(need: Need, places: &[Place], by_name: bool) -> Outcome<Copy<F>> {
    let library = F::LIBRARY;
    let mut skipped = Vec::new();
    let mut take = |from: String, handles: Outcome<Vec<Handle>>| -> Option<Copy<F>> {
        let tried = handles.and_then(F::of).and_then(|functions| {
            let (version, known) = (functions.version()?, functions.known()?);
            fits(library, version, &known, need)?;
            Ok(Copy { functions, version, from: from.clone(), skipped: skipped.clone(), known })
        });
        tried.map_err(|why| skipped.push(format!("{from}: {}", one_line(&why)))).ok()
    };
    if by_name
        && let Some(handle) = by_loader(library)
        && let Some(copy) = take("the system loader".into(), Ok(vec![handle]))
    {
        return Ok(copy);
    }
    for file in places.iter().flat_map(|place| places::files_in(&place.folder, library.file())) {
        if let Some(copy) = take(file.display().to_string(), by_path(library, &file)) {
            return Ok(copy);
        }
    }
    let (name, install) = (library.name(), library.install(need.driver.map(|d| d.0)));
    if skipped.is_empty() {
        let (file, folders) = (library.file(), places.len());
        return Err(format!(
            "{name} is missing: {file} was looked for by the system loader and in {folders} folders \
             (`sae devices` lists them); {install}"
        ));
    }
    let newer = if skipped.iter().any(|why| why.contains(DRIVER)) { "update the driver, or " } else { "" };
    Err(format!("no copy of {name} can be used ({}); {newer}{install}", skipped.join("; ")))
}

const DRIVER: &str = "the NVIDIA driver is too old for it";

/// Whether a copy goes with the driver and the card.
///
/// # Errors
/// Why not.
pub(super) fn fits(library: Library, version: Version, known: &[u32], need: Need) -> Outcome<()> {
    let (major, minor) = version;
    if library == Library::Nccl {
        // It has versions of its own, and names a driver that is too old by itself.
        return if version >= OLDEST_NCCL {
            Ok(())
        } else {
            let (high, low) = OLDEST_NCCL;
            Err(format!("version {major}.{minor} is too old, {high}.{low} or newer is needed"))
        };
    }
    if major < OLDEST {
        return Err(format!("version {major}.{minor} is too old, {OLDEST}.0 or newer is needed"));
    }
    if let Some(serves) = need.driver.filter(|serves| major > serves.0) {
        let (high, low) = serves;
        return Err(format!("{DRIVER}, version {major}.{minor}: it serves CUDA up to {high}.{low}"));
    }
    let Some(card) = need.card else { return Ok(()) };
    let knows = match library {
        Library::Nvrtc => newest_of(known, card).is_some(),
        // By the release notes: Blackwell came with CUDA 12.8, all cards before it with 12.0.
        _ => card.0 < 10 || version >= (12, 8),
    };
    if knows {
        return Ok(());
    }
    Err(format!("version {major}.{minor} does not know compute capability {}.{}", card.0, card.1))
}

/// The newest architecture that is known in the generation of a card and not newer than it.
pub fn newest_of(known: &[u32], (major, minor): Version) -> Option<u32> {
    let fits = |arch: &&u32| **arch / 10 == major && **arch % 10 <= minor;
    known.iter().filter(fits).max().copied()
}

/// The system loader's copy: the name that a toolkit links, then those of the libraries themselves.
pub fn by_loader(library: Library) -> Option<Handle> {
    let file = library.file();
    // The last is that of NCCL, which no toolkit links.
    let names = [file.to_owned(), format!("{file}.13"), format!("{file}.12"), format!("{file}.2")];
    names.iter().find_map(|name| dlopen(Path::new(name)).ok())
}

/// A library by its file, after those beside it that it needs: a wheel's have no path of their own to find them by.
fn by_path(library: Library, file: &Path) -> Outcome<Vec<Handle>> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let needed = library.needs().map(|name| places::files_in(folder, name)).unwrap_or_default();
    let mut handles: Vec<Handle> = needed.iter().filter_map(|path| dlopen(path).ok()).collect();
    handles.push(dlopen(file)?);
    Ok(handles)
}

fn dlopen(path: &Path) -> Outcome<Handle> {
    // SAFETY: opening runs the library's initialisers; `path` has the name of one of NVIDIA's, which are made to be
    // opened so.
    let handle = unsafe { Handle::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    handle.map_err(|e| format!("it does not open: {e}"))
}
