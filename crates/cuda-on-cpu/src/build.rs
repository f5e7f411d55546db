//! Compiles kernels with the C++ compiler (`CXX`, or `c++`) into shared objects and loads them.
//!
//! A file is preprocessed, its `extern "C" __global__ void NAME(` are listed, and a table of them is added to its
//! end: names that macros make are found like any other. Results are kept in a folder named by a hash of all that
//! went into them.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use xxhash_rust::xxh3::xxh3_128;

const HEADER: &str = include_str!("../cpp/emulator.h");
const FIBER: &str = include_str!("../cpp/fiber.h");
const TURNS: &str = include_str!("../cpp/turns.h");
const RUNTIME: &str = include_str!("../cpp/emulator.cpp");

// -fno-gnu-unique: shared variables of templates must not be merged between two versions of a file.
// -fno-strict-aliasing: as NVRTC, which lets a kernel read floats as packs.
const FLAGS: &[&str] = &[
    "-fPIC",
    "-shared",
    "-std=c++17",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-gnu-unique",
    "-fvisibility=hidden",
];
const PLAIN: &[&str] = &["-O2"];
/// Beside the others, for sources with a defect planted into them: what it makes unused is no error of theirs.
const PLANTED: &[&str] = &["-Wno-unused"];
const SANITIZED: &[&str] =
    &["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
// The emulation itself tells the sanitizers which stack is in use, but is not looked at by them: half of their time.
const BESIDE_SANITIZED: &[&str] = &["-O2", "-g", "-fno-omit-frame-pointer", "-DEMULATOR_SANITIZED"];

/// One kernel, as emulator.h lays it out.
#[repr(C)]
pub struct Kernel {
    name: *const c_char,
    kinds: *const c_char,
    most: u64,
    call: *const c_void,
    body: *const c_void,
}

// SAFETY: the table and what it points to are constants of a shared object that is never unloaded.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Its name.
    pub fn name(&self) -> &'static str {
        // SAFETY: a string literal of the shared object, ASCII, never unloaded.
        unsafe { CStr::from_ptr(self.name) }.to_str().unwrap()
    }

    /// A letter a parameter: p(ointer), u(32), l (u64), f(loat).
    pub fn kinds(&self) -> &'static [u8] {
        // SAFETY: as in `name`.
        unsafe { CStr::from_ptr(self.kinds) }.to_bytes()
    }
}

/// `emulator_launch` of emulator.cpp.
pub type LaunchFn = unsafe extern "C" fn(
    kernel: *const Kernel,
    args: *const u64,
    grid_x: u32,
    grid_y: u32,
    first_x: u32,
    block: u32,
    shared: u32,
    seed: u64,
    message: *mut c_char,
    message_size: usize,
) -> c_int;

/// Whether this process runs with AddressSanitizer, as [`super::sanitizer`] starts it.
pub fn sanitized() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    // SAFETY: only asks whether the symbol exists; it is not called.
    *ANSWER.get_or_init(|| unsafe { Library::this().get::<unsafe extern "C" fn()>(b"__asan_init\0") }.is_ok())
}

/// The part of the emulation that all kernels share.
pub fn runtime() -> LaunchFn {
    static RUNTIME_FN: OnceLock<LaunchFn> = OnceLock::new();
    *RUNTIME_FN.get_or_init(|| {
        // Kernels find its symbols, so it is opened for all.
        let library = open(&runtime_file(), RTLD_GLOBAL);
        // SAFETY: emulator.cpp defines it with these parameters; the library is never unloaded.
        unsafe { *library.get::<LaunchFn>(b"emulator_launch\0").unwrap() }
    })
}

/// The shared object that [`runtime`] opens.
pub fn runtime_file() -> PathBuf {
    let files = [("emulator.h", HEADER), ("fiber.h", FIBER), ("turns.h", TURNS), ("emulator.cpp", RUNTIME)];
    let flags = if sanitized() { BESIDE_SANITIZED } else { PLAIN };
    shared_object(&files, "emulator.cpp", flags)
}

/// The first of `files`, names and texts that may include emulator.h, as a shared object of its own.
pub fn beside(files: &[(&str, &str)]) -> PathBuf {
    shared_object(&[files, &[("emulator.h", HEADER)]].concat(), files[0].0, PLAIN)
}

fn shared_object(files: &[(&str, &str)], main: &str, flags: &[&str]) -> PathBuf {
    cached(files, flags, |folder| compile(folder, main, flags, &["-o", "out.so"])).join("out.so")
}

/// The kernels of `file`, one of `sources`, `planted` or as they should be.
pub fn kernels(sources: &[(String, String)], file: &str, planted: bool) -> &'static [Kernel] {
    type Slot = Arc<OnceLock<&'static [Kernel]>>;
    static LOADED: Mutex<Option<HashMap<PathBuf, Slot>>> = Mutex::new(None);
    runtime();
    let path = kernels_file(sources, file, planted);
    let slot = LOADED.lock().unwrap().get_or_insert_default().entry(path.clone()).or_default().clone();
    slot.get_or_init(|| {
        let library = open(&path, RTLD_LOCAL);
        // SAFETY: `build` adds both symbols with these types; the library is never unloaded.
        unsafe {
            let count = **library.get::<*const usize>(b"emulator_kernel_count\0").unwrap();
            let table = *library.get::<*const Kernel>(b"emulator_kernels\0").unwrap();
            std::slice::from_raw_parts(table, count)
        }
    })
}

/// The shared object that [`kernels`] opens.
pub fn kernels_file(sources: &[(String, String)], file: &str, planted: bool) -> PathBuf {
    let used = sources.iter().filter(|(name, _)| name == file || name.ends_with(".cuh"));
    let mut files: Vec<(&str, &str)> = used.map(|(name, text)| (name.as_str(), text.as_str())).collect();
    files.push(("emulator.h", HEADER));
    files.push(("name", file));
    let flags = [if sanitized() { SANITIZED } else { PLAIN }, if planted { PLANTED } else { &[] }].concat();
    cached(&files, &flags, |folder| build(folder, file, &flags)).join("out.so")
}

fn open(path: &Path, scope: c_int) -> &'static Library {
    // SAFETY: its only initializer fills the table of kernels.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | scope) };
    Box::leak(Box::new(library.unwrap_or_else(|e| panic!("{}: cannot load: {e}", path.display()))))
}

fn build(folder: &Path, file: &str, flags: &[&str]) {
    compile(folder, file, flags, &["-E", "-include", "emulator.h", "-o", "unit.ii"]);
    let text = std::fs::read_to_string(folder.join("unit.ii")).unwrap();
    let kernels = declared(file, &text);
    let entries: String =
        kernels.iter().map(|(n, most)| format!("emulator::kernel(\"{n}\", {most}, {n}),\n")).collect();
    let table = format!(
        "\n# 1 \"table of kernels\"\n#pragma GCC visibility push(default)\n\
         extern \"C\" {{ extern const emulator::Kernel emulator_kernels[]; extern const size_t emulator_kernel_count; }}\n\
         const emulator::Kernel emulator_kernels[] = {{\n{entries}}};\n\
         const size_t emulator_kernel_count = {};\n",
        kernels.len()
    );
    let plain = without_bounds(&text).replace("__global__", "");
    std::fs::write(folder.join("unit.ii"), plain + &table).unwrap();
    compile(folder, "unit.ii", flags, &["-o", "out.so"]);
}

/// What emulator.h makes of `__launch_bounds__(`.
const BOUNDS: &str = "__emulated_bounds__(";

/// Preprocessed text without launch bounds, which are no C++.
fn without_bounds(text: &str) -> String {
    let mut parts = text.split(BOUNDS);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.split_once(')').map_or("", |(_, rest)| rest))
}

/// Names after `extern "C" __global__ void` in preprocessed text, and the most threads that their launch bounds allow.
fn declared(file: &str, text: &str) -> Vec<(String, u32)> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let code = code.join(" ");
    let parts: Vec<&str> = code.split("__global__").collect();
    assert!(parts.len() > 1, "{file}: no kernels in it");
    let kernels = parts.windows(2).map(|pair| {
        let head = pair[1].trim_start().strip_prefix("void").map(str::trim_start);
        // Without bounds a card allows what no block exceeds.
        let (bounds, rest) = match head.and_then(|head| head.strip_prefix(BOUNDS)?.split_once(')')) {
            Some((bounds, rest)) => (bounds.split(',').next().unwrap_or_default(), Some(rest)),
            None => ("1024", head),
        };
        let mut words = rest.unwrap_or_default().split('(').next().unwrap_or_default().split_whitespace();
        match (words.next(), words.next(), bounds.trim().parse()) {
            (Some(name), None, Ok(most)) if pair[0].trim_end().ends_with("extern \"C\"") => (name.to_owned(), most),
            _ => panic!(
                "{file}: a kernel must read `extern \"C\" __global__ void __launch_bounds__(THREADS) NAME(`: {}",
                pair[1].chars().take(60).collect::<String>()
            ),
        }
    });
    kernels.collect()
}

/// The folder that `SAE_TEST_TMP` names; else `tmp` of Cargo's target folder, where this program lies in one; else the
/// system's: a test that was copied to another machine finds no target folder there.
fn scratch() -> PathBuf {
    if let Some(named) = std::env::var_os("SAE_TEST_TMP") {
        return named.into();
    }
    // target/release/deps/NAME
    let program = std::env::current_exe().unwrap_or_default();
    let mut folders = program.ancestors().skip(1);
    let in_target = folders.next().is_some_and(|folder| folder.ends_with("deps"));
    let target = folders.nth(1).filter(|_| in_target);
    target.map_or_else(std::env::temp_dir, |folder| folder.join("tmp"))
}

/// The folder in which `make` has built something from `files`; built at most once by this process, and renamed
/// into its place as a whole, so that processes beside each other may build the same.
fn cached(files: &[(&str, &str)], flags: &[&str], make: impl FnOnce(&Path)) -> PathBuf {
    type Slot = Arc<OnceLock<()>>;
    static BUILT: Mutex<Option<HashMap<u128, Slot>>> = Mutex::new(None);
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let hash = xxh3_128(format!("{files:?} {FLAGS:?} {flags:?} {}", compiler_version()).as_bytes());
    let root = scratch().join("emulator");
    let folder = root.join(format!("{hash:032x}"));
    let slot = BUILT.lock().unwrap().get_or_insert_default().entry(hash).or_default().clone();
    slot.get_or_init(|| {
        if folder.exists() {
            return;
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let draft = root.join(format!("{hash:032x}.{}.{count}", std::process::id()));
        std::fs::create_dir_all(&draft).unwrap();
        for (name, text) in files {
            std::fs::write(draft.join(name), text).unwrap();
        }
        make(&draft);
        if std::fs::rename(&draft, &folder).is_err() {
            assert!(folder.exists(), "{}: cannot be made", folder.display());
            std::fs::remove_dir_all(&draft).unwrap();
        }
    });
    folder
}

fn compile(folder: &Path, file: &str, flags: &[&str], more: &[&str]) {
    let language = if file.ends_with(".ii") { "c++-cpp-output" } else { "c++" };
    let mut command = compiler();
    // The folder gets another name once it is complete.
    let mut rename = std::ffi::OsString::from("-ffile-prefix-map=");
    rename.push(folder);
    rename.push("=.");
    command.arg(rename);
    command.current_dir(folder).args(FLAGS).args(flags).args(["-I", ".", "-x", language, file]).args(more);
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        out.status.success(),
        "{file}: the C++ compiler refuses it:\n{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// The C++ compiler, itself without the sanitizer that this process may have.
pub fn compiler() -> Command {
    let mut command = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
    command.env_remove("LD_PRELOAD");
    command
}

fn compiler_version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let out = compiler().arg("--version").output();
        let out = out.unwrap_or_else(|e| {
            panic!(
                "the tests of the CUDA kernels need a C++ compiler ({:?}: {e}); install g++ or set CXX",
                compiler()
            )
        });
        String::from_utf8_lossy(&out.stdout).into_owned()
    })
}
